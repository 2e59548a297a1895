"""The shipped person model is as good as docs/models.md says."""

import re

import pytest

from yolact_ros.data import DataSource
from yolact_ros.engine import Segmenter
from yolact_ros.evaluation.coco import evaluate


def test_accuracy_is_the_documented_one(shared, repository):
    path = shared / "data" / "pennfudan" / "val.json"
    if not path.exists():
        pytest.skip(f"needs {path}")
    text = (repository / "docs" / "models.md").read_text()
    row = re.search(r"^\| pennfudan \|[^|]*\| *([\d.]+) *\| *([\d.]+)", text, re.MULTILINE)
    assert row, "docs/models.md states mask AP and AP50 on pennfudan"
    found = evaluate(Segmenter(score_threshold=0), DataSource.parse(str(path))).masks
    assert found is not None
    assert found.overall.ap * 100 == pytest.approx(float(row[1]), abs=0.5)
    assert found.overall.ap50 * 100 == pytest.approx(float(row[2]), abs=0.5)
