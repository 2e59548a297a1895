"""PyTorch compiled ahead of time (AOTInductor): packages that load without tracing.

A package holds machine code, which runs when it is loaded: load only packages that you trust.
"""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from yolact_ros.engine.device import choose_device, choose_precision
from yolact_ros.engine.runtimes.files import (
    check_compiler,
    check_file,
    check_precision,
    pytorch_release,
    unreadable,
)
from yolact_ros.engine.runtimes.header import Detected, Header
from yolact_ros.engine.runtimes.runtime import Runtime
from yolact_ros.engine.runtimes.shapes import check_outputs
from yolact_ros.extras import MissingExtraError
from yolact_ros.network import Predictions, WeightsError
from yolact_ros.network.anchors import make_anchors
from yolact_ros.network.deformable import refuse_capture

_ENTRY = "extra/yolact_ros.json"  # below the package's top-level folder
_INSTRUCTION_SETS = re.compile(
    "ssse|sse(?!4a)|avx|amx|fma$|f16c|bmi|gfni|vaes|vpclmul|asimd|sve|sme|bf16|i8mm|fphp"
)
_DEVICE, _INSTRUCTIONS, _PRECISION = "device", "instructions", "precision"


def oldest_pytorch(device: torch.device) -> tuple[int, int]:
    """Return the oldest release of PyTorch that runs packages for a device."""
    return (2, 8) if device.type == "cuda" else (2, 6)


def save(program: ExportedProgram, header: Header, path: Path) -> None:
    """Compile a graph for its device and write the package `path` (.pt2).

    Raises MissingExtraError without a compiler or, for CUDA, without the toolkit.
    """
    from torch.utils.cpp_extension import CUDA_HOME  # a heavy import, needed only here

    weight = next(iter(program.state_dict.values()))
    check_compiler(f"{path.name}, a compiled package,", weight.device)
    if weight.device.type == "cuda" and CUDA_HOME is None:
        raise MissingExtraError(
            f"{path.name}, a compiled package for CUDA, needs the CUDA toolkit: install it, or "
            "name its folder in the environment variable CUDA_HOME"
        )
    options: dict[str, object] = {}
    if weight.device.type == "cpu":
        options = {
            "freezing": True,  # packs weights in the layout of the convolutions
            "cpp.dynamic_threads": True,  # the target machine may have more cores
        }
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=options
        )
    values = header.to_metadata() | {
        _DEVICE: weight.device.type,
        _INSTRUCTIONS: " ".join(sorted(_instructions(weight.device))),
        _PRECISION: str(weight.dtype).removeprefix("torch."),
    }
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/{_ENTRY}", json.dumps(values))


def read(path: Path, precision: str = "auto", device: str = "auto") -> Runtime:
    """Load a package written by `save`; this runs the machine code inside.

    Raises WeightsError if this machine cannot run it, ValueError for a device or precision that it
    does not support.
    """
    check_file(path)
    values = _metadata(path)
    header = Header.from_metadata(values, path)
    where = _choose_device(path, values.get(_DEVICE, "cpu"), device)
    made_in = values.get(_PRECISION, "float32")
    check_precision(precision, (made_in,), path.name)
    dtype = choose_precision(made_in, where)
    _check_machine(path, values.get(_INSTRUCTIONS, "unknown-parts"), where)
    if header.config.dcn_variant != "none":
        import torchvision.ops  # noqa: F401  # registers the operator that the package calls
    package = _load(path, where)
    if header.mask_iou is not None:
        header = replace(header, mask_iou=header.mask_iou.to(where, dtype))

    def run(images: Tensor) -> Predictions | Detected:
        if header.config.dcn_variant != "none":
            refuse_capture(images)
        outputs = package(images.contiguous(memory_format=torch.channels_last))
        # Only the outputs reveal their shapes, not the package itself.
        shapes = {name: each.shape for name, each in zip(header.outputs, outputs, strict=False)}
        check_outputs(header, shapes, path)
        return header.read_outputs(outputs)

    anchors = make_anchors(header.config).to(where)
    return Runtime("compiled", header, run, where, dtype, anchors)


def _choose_device(path: Path, made_for: str, wanted: str) -> torch.device:
    if made_for == "cuda" and not torch.cuda.is_available():
        raise WeightsError(f"{path} was compiled for CUDA, and this machine has no CUDA device")
    device = choose_device(made_for if wanted == "auto" else wanted)
    if device.type != made_for:
        raise ValueError(f"device={wanted!r} is not allowed: {path} was compiled for {made_for}")
    return device


def _check_machine(path: Path, instructions: str, device: torch.device) -> None:
    """Raise WeightsError unless PyTorch and the device can run a package that was compiled for
    these instruction sets."""
    if pytorch_release() < (needed := oldest_pytorch(device)):
        raise WeightsError(
            f"{path} takes PyTorch {needed[0]}.{needed[1]} on {device}, this is {torch.__version__}"
        )
    missing = set(instructions.split()) - _instructions(device)
    if missing:
        raise WeightsError(
            f"{path} was compiled for a {device.type} with {' '.join(sorted(missing))}, which this "
            "one lacks: export it on this machine"
        )


def _load(path: Path, device: torch.device) -> Callable[[Tensor], Sequence[Tensor]]:
    # Without its own tracking of streams, which a CUDA graph could not capture.
    placed: dict[str, Any] = {"run_single_threaded": True, "device_index": device.index}
    # Without a C++ compiler PyTorch warns that every package is outdated, but loads it correctly.
    logger = logging.getLogger("torch._inductor.package.package")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return torch._inductor.aoti_load_package(
            str(path), **(placed if device.type == "cuda" else {})
        )
    except RuntimeError as error:
        raise unreadable(path, "compiled package", error) from error
    finally:
        logger.setLevel(level)


def _instructions(device: torch.device) -> set[str]:
    """Return the instruction sets or compute capability of a device, one word each."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return {f"compute-capability-{major}.{minor}"}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, values = line.partition(":")
            if name.strip() in ("flags", "Features"):  # on x86, on Arm
                return {platform.machine(), *filter(_INSTRUCTION_SETS.match, values.split())}
    return {platform.machine(), torch.backends.cpu.get_cpu_capability().replace(" ", "-")}


def _metadata(path: Path) -> dict[str, str]:
    """Read the metadata that `save` added to the package, without running any of its code."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [name for name in archive.namelist() if name.endswith(f"/{_ENTRY}")]
            content = json.loads(archive.read(entries[0])) if entries else {}
    except (zipfile.BadZipFile, OSError, ValueError, RecursionError) as error:
        raise unreadable(path, "compiled package", error) from error
    return content if isinstance(content, dict) else {}
