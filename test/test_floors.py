"""Imports go down only, and ROS stays in node/: docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# Each floor, and the floors that it may import.
ALLOWED = {
    "kernels": set(),
    "network": {"kernels", "files", "text"},
    "masks": set(),
    "image_files": set(),
    "extras": set(),
    "files": set(),
    "text": set(),
    "openmp": set(),
    "detection": {"network", "kernels"},
    "engine": {"detection", "network", "kernels", "extras", "files", "image_files"},
    "data": {"image_files", "extras", "text"},
    "training": {"evaluation", "engine", "detection", "network", "data", "files"},
    "evaluation": {"benchmark", "engine", "detection", "network", "data", "image_files"},
    "benchmark": {"engine", "detection", "network", "image_files", "extras"},
    "export": {"benchmark", "engine", "detection", "network", "image_files", "extras"},
    "node": {"engine", "detection", "network", "masks", "msg", "openmp", "image_files", "extras"},
    "cli": {
        "training",
        "export",
        "evaluation",
        "benchmark",
        "engine",
        "detection",
        "network",
        "data",
        "openmp",
        "image_files",
        "extras",
    },
    "__init__": {"engine"},
}
ROS_MODULES = {
    "ament_index_python",
    "diagnostic_msgs",
    "geometry_msgs",
    "launch",
    "launch_ros",
    "lifecycle_msgs",
    "message_filters",
    "rcl_interfaces",
    "rclpy",
    "sensor_msgs",
    "std_msgs",
    "visualization_msgs",
}
PACKAGE = Path(__file__).resolve().parent.parent / "yolact_ros"
MODULES = sorted(PACKAGE.rglob("*.py"))


def floor_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """The full names of all modules, or of names in modules, that a file imports."""
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{path}:{statement.lineno}: imports are absolute"
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    floor = floor_of(path)
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("yolact_ros.")}
    assert ours <= ALLOWED[floor] | {floor, "__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_node_imports_ros(path: Path) -> None:
    if floor_of(path) != "node":
        modules = {name.split(".")[0] for name in imports(path)}
        assert not modules & ROS_MODULES
        assert not any(name.startswith("yolact_ros.msg") for name in imports(path))


@pytest.mark.parametrize("floor", ALLOWED)
def test_what_is_allowed_is_needed(floor: str) -> None:
    names = [name for path in MODULES if floor_of(path) == floor for name in imports(path)]
    assert ALLOWED[floor] <= {n.split(".")[1] for n in names if n.startswith("yolact_ros.")}
