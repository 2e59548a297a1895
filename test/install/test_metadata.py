"""What the package says of itself is the same everywhere, and complete."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import yolact_ros

# Python modules that rosdep knows by other names, or that only some installations use.
ROSDEP_KEYS = {"cv2": "python3-opencv", "numpy": "python3-numpy", "yaml": "python3-yaml"}
# No ROS distribution packages these in the versions that are needed: requirements/core.txt.
FROM_PIP = {"torch", "torchvision", "safetensors"}
EXTRAS = {"matplotlib"}
"""What only draws a measurement: of the extra eval."""


def test_one_version(repository: Path) -> None:
    patterns = {
        "package.xml": r"<version>(.+)</version>",
        "pyproject.toml": r'^version = "(.+)"$',
        "CHANGELOG.md": r"^## (\d\S+)",
    }
    for name, pattern in patterns.items():
        found = re.search(pattern, (repository / name).read_text(), re.MULTILINE)
        assert found and found.group(1) == yolact_ros.__version__, name


def test_package_xml_names_what_the_node_imports(repository: Path) -> None:
    manifest = ElementTree.parse(repository / "package.xml").getroot()
    declared = {element.text for element in manifest if element.tag in ("depend", "exec_depend")}
    imported = set()
    for folder in (repository / "yolact_ros" / "node", repository / "launch"):
        for path in folder.rglob("*.py"):
            for statement in ast.walk(ast.parse(path.read_text())):
                if isinstance(statement, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in statement.names}
                elif isinstance(statement, ast.ImportFrom):
                    imported.add((statement.module or "").split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - FROM_PIP - EXTRAS - {"yolact_ros"}
    assert {ROSDEP_KEYS.get(name, name) for name in foreign} <= declared
