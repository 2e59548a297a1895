"""Detections are counted with the objects that they are of."""

import cv2
import numpy as np
import pytest

from yolact_ros.data import Annotation, DataSource, ImageRecord
from yolact_ros.evaluation.confusion import confusion_matrix, match, plot_confusion

ANNOTATIONS = (
    Annotation(1, 0, (0, 0, 20, 20), [], False),
    Annotation(2, 1, (40, 0, 20, 20), [], False),
    Annotation(3, 0, (0, 50, 60, 40), [], True),
)
RECORD = ImageRecord("", 7, 100, 100, ANNOTATIONS)
RESULTS = [
    {"bbox": [80, 80, 10, 10], "score": 0.6, "category_id": 5},  # nothing
    {"bbox": [0, 1, 20, 20], "score": 0.8, "category_id": 5},  # the first again
    {"bbox": [1, 0, 20, 20], "score": 0.9, "category_id": 9},  # the first, as another class
    {"bbox": [10, 60, 10, 10], "score": 0.7, "category_id": 5},  # one of the crowd
]


def test_each_object_goes_to_its_best_detection():
    found = match(RECORD, RESULTS)
    assert found.pairs == ((0, 2),)
    assert found.missed == (1,)
    assert set(found.wrong) == {0, 1}
    nothing = match(RECORD, [])
    assert nothing.pairs == nothing.wrong == () and nothing.missed == (0, 1)
    empty = ImageRecord("", 7, 100, 100, ())
    assert match(empty, RESULTS).wrong == (2, 1, 3, 0)


def test_counts():
    counts = confusion_matrix([match(RECORD, RESULTS)], {5: 0, 9: 1}, classes=2)
    assert counts.tolist() == [[0, 1, 0], [0, 0, 1], [2, 0, 0]]


def test_the_truth_is_found_as_itself(shared):
    """All classes of a real data set; every image of it is in `coco-mini`."""
    path = shared / "data" / "coco-mini" / "val.json"
    if not path.exists():
        pytest.skip(f"needs {path}")
    dataset = DataSource.parse(str(path)).read()
    content, names = dataset.content, dataset.class_names
    records = dataset.records(names)
    results = {
        record.id: [
            {"bbox": list(a.box), "score": 1 - i / 1000, "category_id": a.label}
            for i, a in enumerate(record.annotations)
            if not a.is_crowd
        ]
        for record in records
    }
    labels = {i: i for i in range(len(names))}
    images = [match(record, results[record.id]) for record in records]
    counts = confusion_matrix(images, labels, len(names))
    objects = sum(not a["iscrowd"] for a in content["annotations"])
    assert counts.sum() == objects and counts[:, -1].sum() == counts[-1].sum() == 0
    # Boxes of different objects may be equal to within the threshold; hardly any are.
    assert np.trace(counts) > 0.98 * objects


@pytest.mark.parametrize("classes", [1, 80])
def test_the_plot_grows_with_the_classes(tmp_path, classes):
    counts = 20 * np.eye(classes + 1, dtype=int)
    counts[0, -1] = 3
    plot_confusion(counts, [f"class {i}" for i in range(classes)], tmp_path / "a.png")
    drawn = cv2.imread(str(tmp_path / "a.png")).astype(int)
    height, width = drawn.shape[:2]
    assert height > 30 * classes and width > 30 * classes
    dark_blue = (drawn[..., 0] > drawn[..., 2] + 60).sum()
    assert dark_blue > 300 * classes, "the diagonal: found as what they are"
