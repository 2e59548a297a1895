"""A broken data set gets an error that names the entry and the reason."""

import json
import math

import cv2
import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask

from yolact_ros.data import DataError, DataSource, check, class_names, decode_mask, read_records
from yolact_ros.data.check import _runs

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / "images" / name), np.zeros((48, 64, 3), np.uint8))
    return tmp_path


def content():
    return {
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "images": [
            {"id": 1, "file_name": "a.png", "height": 48, "width": 64},
            {"id": 2, "file_name": "b.png", "height": 48, "width": 64},
        ],
        "annotations": [
            {
                "id": 11,
                "image_id": 1,
                "category_id": 7,
                "bbox": [10, 10, 20, 20],
                "segmentation": SQUARE,
                "iscrowd": 0,
            },
            {
                "id": 12,
                "image_id": 2,
                "category_id": 3,
                "bbox": [0, 0, 64, 48],
                "segmentation": {"size": [48, 64], "counts": [5, 48 * 64 - 5]},
                "iscrowd": 1,
            },
        ],
    }


def write(folder, data):
    path = folder / "data.json"
    path.write_text(json.dumps(data))
    return DataSource.parse(str(path))


def test_a_good_set_has_no_problems(folder):
    source = write(folder, content())
    report = check(source, decode=True)
    assert report.problems == ()
    assert class_names(report.content) == ("dog", "cat")
    records = read_records(source, ["cat"], report.content)
    assert [len(r.annotations) for r in records] == [1, 0]
    assert records[0].annotations[0].label == 0


CASES = {
    "missing picture": (("images", 0, "file_name", "c.png"), "image 1", "c.png is missing"),
    "wrong size": (("images", 0, "width", 65), "image 1", "has 64 x 48 pixels"),
    "duplicate image": (("images", 1, "id", 1), "image 1", "an earlier entry has the same id 1"),
    "duplicate annotation": (("annotations", 1, "id", 11), "annotation 11", "the same id 11"),
    "duplicate category": (("categories", 1, "name", "cat"), "category 3", "the same name 'cat'"),
    "unknown image": (("annotations", 0, "image_id", 9), "annotation 11", "image_id 9"),
    "unknown category": (("annotations", 0, "category_id", 9), "annotation 11", "category_id 9"),
    "box outside": (("annotations", 0, "bbox", [50, 0, 20, 20]), "annotation 11", "is outside"),
    "flat box": (("annotations", 0, "bbox", [5, 5, 0, 20]), "annotation 11", "has no area"),
    "short box": (("annotations", 0, "bbox", [5, 5, 20]), "annotation 11", "four finite"),
    "nan in box": (("annotations", 0, "bbox", [5, 5, math.nan, 2]), "annotation 11", "finite"),
    "no polygon": (("annotations", 0, "segmentation", []), "annotation 11", "no polygon"),
    "short polygon": (("annotations", 0, "segmentation", [[1, 2, 3, 4]]), "annotation 11", "three"),
    "infinite polygon": (
        ("annotations", 0, "segmentation", [[1, 2, 3, math.inf, 5, 6]]),
        "annotation 11",
        "inf, which is not a finite number",
    ),
    "RLE of another size": (
        ("annotations", 1, "segmentation", {"size": [9, 9], "counts": [0, 81]}),
        "annotation 12",
        "size",
    ),
    "RLE too short": (
        ("annotations", 1, "segmentation", {"size": [48, 64], "counts": [5, 5]}),
        "annotation 12",
        "does not fill",
    ),
    "RLE of nonsense": (
        ("annotations", 1, "segmentation", {"size": [48, 64], "counts": "\u00e9"}),
        "annotation 12",
        "broken RLE",
    ),
    "empty RLE": (
        ("annotations", 1, "segmentation", {"size": [48, 64], "counts": [48 * 64]}),
        "annotation 12",
        "empty mask",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_named(folder, case):
    (kind, index, key, value), where, reason = CASES[case]
    data = content()
    data[kind][index][key] = value
    source = write(folder, data)
    report = check(source)
    found = report.problems[0]
    assert (found.where, found.file) == (where, source.annotations)
    assert reason in found.reason
    with pytest.raises(DataError, match=where):
        report.raise_if_bad()
    assert len(report.content[kind]) == 1, "the bad entry is left out, the good one stays"


def test_a_broken_picture_is_found_when_decoded(folder):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    path = folder / "images" / "a.png"
    cv2.imwrite(str(path), noise)
    path.write_bytes(path.read_bytes()[:60])
    problems = check(write(folder, content()), decode=True).problems
    assert problems[0].where == "image 1" and "a.png" in problems[0].reason


@pytest.mark.parametrize("text", ["", "{", "[]", '{"images": []}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"data\.json"):
        check(DataSource.parse(str(path)))


def test_classes_that_are_not_there_are_refused(folder):
    with pytest.raises(DataError, match="none of the classes bird; it has cat, dog"):
        read_records(write(folder, content()), ["bird"])


def test_all_three_forms_of_a_mask_are_the_same():
    generator = np.random.default_rng(0)
    mask = (cv2.blur(generator.random((48, 64)), (9, 9)) > 0.5).astype(np.uint8)
    packed = coco_mask.encode(np.asfortranarray(mask))
    counts = packed["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    assert (decode_mask({"size": [48, 64], "counts": text}, 48, 64) == mask).all()
    assert (decode_mask({"size": [48, 64], "counts": _runs(text)}, 48, 64) == mask).all()
    square = decode_mask(SQUARE, 48, 64)
    assert square.sum() == 400 and square[10:30, 10:30].all()


@pytest.mark.parametrize("name", ["coco-mini/train", "coco-mini/val", "pennfudan/train"])
def test_the_shared_sets_are_good(shared, name):
    path = shared / "data" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"needs {path}")
    assert check(DataSource.parse(str(path))).problems == ()
