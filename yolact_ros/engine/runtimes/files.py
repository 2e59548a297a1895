"""Checks shared by the readers of exported files and the compilers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from yolact_ros.extras import MissingExtraError, check_installed
from yolact_ros.network import WeightsError


def check_file(path: Path) -> None:
    """Raise WeightsError unless the file exists and is not empty."""
    if not path.is_file():
        raise WeightsError(f"there is no exported network {path}")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty")


def check_precision(precision: str, allowed: Sequence[str], name: str) -> None:
    """Raise ValueError, naming what is allowed, for a precision that a runtime does not support."""
    if precision not in ("auto", *allowed):
        raise ValueError(
            f"precision={precision!r} is not allowed for {name} on this machine: one of "
            f"{', '.join(('auto', *allowed))}"
        )


def pytorch_release() -> tuple[int, int]:
    """Return the major and minor version of PyTorch."""
    major, minor = torch.__version__.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def check_compiler(what: str, device: torch.device) -> None:
    """Raise MissingExtraError unless everything that PyTorch needs to compile is installed."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise MissingExtraError(
            f"{what} needs a C++ compiler, and there is no {compiler}: install g++, or name "
            "another in the environment variable CXX"
        )
    if device.type == "cuda":
        check_installed("triton", f"{what} on CUDA", "pip install triton")


def unreadable(path: object, what: str, error: Exception) -> WeightsError:
    """Make the error for a file that a library fails to read."""
    # The last line: OpenVINO starts with the location in its own source.
    line = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
    return WeightsError(f"{path} is not a whole {what}: {line}")
