"""What the README says is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_parameter_table_is_up_to_date(repository: Path) -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2")
    import parameter_table

    text = (repository / "README.md").read_text()
    assert text == parameter_table.with_table(text), "run: python tools/parameter_table.py"


def test_links_lead_somewhere(repository: Path) -> None:
    for document in [repository / "README.md", *(repository / "docs").glob("*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", document.read_text()):
            if target.startswith(("https://", "http://")):
                continue
            file = document.parent / target if target else document
            assert file.exists(), f"{document.name}: {target}"
            assert not anchor or anchor in anchors(file), f"{document.name}: {target}#{anchor}"


def anchors(document: Path) -> set[str]:
    """What its headings are called in links, as GitHub does."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_make_has_the_commands(repository: Path) -> None:
    named = set(re.findall(r"\bmake ([a-z]+)\b", (repository / "README.md").read_text()))
    targets = set(re.findall(r"^([a-z]+):", (repository / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named - {"cmake"} <= targets
