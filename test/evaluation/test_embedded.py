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
    row = re.search(r"^\| pennfudan \|[^|]*\|(.*)\|$", text, re.MULTILINE)
    assert row, "docs/models.md states mask AP, AP50 and AP75 and box AP and AP50 on pennfudan"
    found = evaluate(Segmenter(score_threshold=0), DataSource.parse(str(path)))
    assert found.masks is not None
    masks, boxes = found.masks.overall, found.boxes.overall
    percent = [100 * each for each in (masks.ap, masks.ap50, masks.ap75, boxes.ap, boxes.ap50)]
    assert percent[0] >= 50 and percent[1] >= 85, "the aims"
    assert percent == pytest.approx([float(each) for each in row[1].split("|")], abs=0.5)
