"""What only some tasks need, and does not come with the package."""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """For a message. By its file: pip knows no extras of a package that colcon built."""
    return f"pip install -r requirements/{extra}.txt, in the folder of yolact_ros's source"
