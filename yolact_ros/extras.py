"""Optional dependencies, which only some tasks need."""

from __future__ import annotations

import importlib.util


class MissingExtraError(ModuleNotFoundError):
    """A dependency is not installed; the message says how to install it."""


def how_to_install(extra: str) -> str:
    """Return instructions for an extra, by its file: pip has no extras of a colcon package."""
    return f"pip install -r requirements/{extra}.txt, in the folder of yolact_ros's source"


def missing(error: ModuleNotFoundError, extra: str, what: str) -> MissingExtraError:
    """Make the error for a missing extra."""
    return MissingExtraError(f"{what} needs {error.name}: {how_to_install(extra)}", name=error.name)


def check_installed(package: str, what: str, how: str) -> None:
    """Raise MissingExtraError unless `package` is installed. `how` says how to install it."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(f"{what} needs {package}: {how}", name=package)
