"""What the readers of exported files share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from yolact_ros.network import WeightsError


def check_file(path: Path) -> None:
    """Raise WeightsError unless there is such a file with something in it."""
    if not path.is_file():
        raise WeightsError(f"there is no exported network {path}")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty")


def check_precision(precision: str, allowed: Sequence[str], name: str) -> None:
    """Raise ValueError, naming what is allowed, for a precision that a runtime has not."""
    if precision not in ("auto", *allowed):
        raise ValueError(
            f"precision={precision!r} is not allowed for {name} on this machine: one of "
            f"{', '.join(('auto', *allowed))}"
        )


class MissingExtraError(ModuleNotFoundError):
    """Something that is needed is not installed; the message says how to install it."""


def missing(error: ModuleNotFoundError, extra: str, what: str) -> MissingExtraError:
    """What to tell a user who lacks an extra."""
    return MissingExtraError(
        f"{what} needs {error.name}: pip install 'yolact_ros[{extra}]'", name=error.name
    )


def unreadable(path: object, what: str, error: Exception) -> WeightsError:
    """What to tell of a file that a library stumbles over."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return WeightsError(f"{path} is not a whole {what}: {line}")
