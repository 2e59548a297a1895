"""A few real images of people, where the shared data are there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from yolact_ros.data import DataSource, read_json


@pytest.fixture
def some_people(shared: Path, tmp_path: Path) -> Callable[[int], DataSource]:
    """A function: the first so many images of pennfudan's validation file."""
    path = shared / "data" / "pennfudan" / "val.json"

    def first(count: int) -> DataSource:
        if not path.exists():
            pytest.skip(f"needs {path}")
        content = read_json(path)
        content["images"] = content["images"][:count]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        few = tmp_path / "few.json"
        few.write_text(json.dumps(content))
        return DataSource(few, path.parent / "images")

    return first
