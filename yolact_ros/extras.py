"""What only some tasks need, and does not come with the package."""

from __future__ import annotations

import importlib.util


class MissingExtraError(ModuleNotFoundError):
    """Something that is needed is not installed; the message says how to install it."""


def how_to_install(extra: str) -> str:
    """For a message. By its file: pip knows no extras of a package that colcon built."""
    return f"pip install -r requirements/{extra}.txt, in the folder of yolact_ros's source"


def missing(error: ModuleNotFoundError, extra: str, what: str) -> MissingExtraError:
    """What to tell a user who lacks an extra."""
    return MissingExtraError(f"{what} needs {error.name}: {how_to_install(extra)}", name=error.name)


def check_installed(package: str, what: str, how: str) -> None:
    """Raise MissingExtraError unless `package` is there. `how` says how to install it."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(f"{what} needs {package}: {how}", name=package)
