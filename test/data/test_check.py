"""A broken data set gets an error that names the entry and the reason."""

import json
import math
import os
import re

import cv2
import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from yolact_ros.cli import main
from yolact_ros.data import (
    DataError,
    DataSource,
    check,
    decode_mask,
    read_json,
)
from yolact_ros.data.masks import encode_mask, run_lengths

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / "images" / name), np.zeros((48, 64, 3), np.uint8))
    return tmp_path


RLE = encode_mask(np.ones((48, 64), np.uint8))


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
                "segmentation": {"size": [48, 64], "counts": [0, 48 * 64]},
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
    assert report.dataset.class_names == ("dog", "cat")
    records = report.dataset.records(["cat"])
    assert [len(r.annotations) for r in records] == [1, 0]
    assert records[0].annotations[0].label == 0


CASES = {
    "missing image": (("images", 0, "file_name", "c.png"), "image 1", "c.png is missing"),
    "wrong size": (("images", 0, "width", 65), "image 1", "has 64 x 48 pixels"),
    "duplicate image": (("images", 1, "id", 1), "image 1", "an earlier entry has the same id 1"),
    "duplicate annotation": (("annotations", 1, "id", 11), "annotation 11", "the same id 11"),
    "duplicate category": (("categories", 1, "name", "cat"), "category 3", "the same name 'cat'"),
    "unknown image": (("annotations", 0, "image_id", 9), "annotation 11", "image_id 9"),
    "unknown category": (("annotations", 0, "category_id", 9), "annotation 11", "category_id 9"),
    "box outside": (("annotations", 0, "bbox", [50, 0, 20, 20]), "annotation 11", "is outside"),
    "box below": (("annotations", 0, "bbox", [0, 40, 20, 20]), "annotation 11", "is outside"),
    "box above": (("annotations", 0, "bbox", [0, -9, 20, 20]), "annotation 11", "is outside"),
    "flat box": (("annotations", 0, "bbox", [5, 5, 0, 20]), "annotation 11", "has no area"),
    "low box": (("annotations", 0, "bbox", [5, 5, 20, 0]), "annotation 11", "has no area"),
    "short box": (("annotations", 0, "bbox", [5, 5, 20]), "annotation 11", "four finite"),
    "nan in box": (("annotations", 0, "bbox", [5, 5, math.nan, 2]), "annotation 11", "finite"),
    "no polygon": (("annotations", 0, "segmentation", []), "annotation 11", "it has no mask"),
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
    "RLE with less than nothing": (
        ("annotations", 1, "segmentation", {"size": [48, 64], "counts": [-5, 48 * 64 + 5]}),
        "annotation 12",
        "has the run -5, which is not an integer from 0 on",
    ),
    "RLE cut off": (
        ("annotations", 1, "segmentation", {"size": [48, 64], "counts": RLE["counts"] + "P"}),
        "annotation 12",
        "in the middle of a number",
    ),
    "RLE of nonsense": (
        ("annotations", 1, "segmentation", {"size": [48, 64], "counts": "\u00e9"}),
        "annotation 12",
        "broken RLE",
    ),
    "RLE with points": (
        ("annotations", 1, "segmentation", {"size": [48, 64], "counts": [48.5, 48 * 64 - 48.5]}),
        "annotation 12",
        "has the run 48.5, which is not an integer from 0 on",
    ),
    "empty RLE": (
        ("annotations", 1, "segmentation", {"size": [48, 64], "counts": [48 * 64]}),
        "annotation 12",
        "covers no pixel",
    ),
    "RLE without a size": (
        ("annotations", 1, "segmentation", {"size": None, "counts": [1, 2]}),
        "annotation 12",
        "the size None",
    ),
    "RLE with one size": (
        ("annotations", 1, "segmentation", {"size": 5, "counts": [1, 2]}),
        "annotation 12",
        "the size 5",
    ),
    "polygon of one point": (
        ("annotations", 0, "segmentation", [[10, 10] * 3]),
        "annotation 11",
        "covers no pixel of its image of 64 x 48",
    ),
    "polygon beside the image": (
        ("annotations", 0, "segmentation", [[70, 10, 80, 10, 80, 20]]),
        "annotation 11",
        "covers no pixel",
    ),
    "polygon far away": (
        ("annotations", 0, "segmentation", [[0, 0, 1e9, 0, 1e9, 1e9]]),
        "annotation 11",
        "1000000000.0, far outside",
    ),
    "segmentation of nothing": (
        ("annotations", 0, "segmentation", None),
        "annotation 11",
        "it has no mask; only a network without masks (mask_branch none) learns without",
    ),
    "enormous box": (
        ("annotations", 0, "bbox", [10**400, 1.5, 2, 3]),
        "annotation 11",
        "four finite",
    ),
    "box beside its mask": (
        ("annotations", 0, "bbox", [31, 10, 20, 20]),
        "annotation 11",
        "is not around its mask, which is within [10, 10, 20, 20]",
    ),
    "corners for a box": (("annotations", 0, "bbox", [10, 10, 30, 30]), "annotation 11", "around"),
    "shares for a box": (
        ("annotations", 0, "bbox", [0.1, 0.1, 0.3, 0.3]),
        "annotation 11",
        "aroun",
    ),
    "area in words": (("annotations", 0, "area", "900"), "annotation 11", "area '900' is not"),
    "area of nan": (("annotations", 0, "area", math.nan), "annotation 11", "area nan is not"),
    "crowd in words": (("annotations", 0, "iscrowd", "0"), "annotation 11", "iscrowd '0' is not"),
    "nan crowd": (("annotations", 0, "iscrowd", math.nan), "annotation 11", "iscrowd nan is not"),
    "an image's id below 0": (
        ("images", 0, "id", -1),
        "image -1",
        "id is not an integer from 0 to 2^53",
    ),
    "half an id": (("annotations", 0, "id", 1.5), "annotation 1.5", "id is not an integer"),
    "hash as an id": (("categories", 1, "id", 2**62), f"category {2**62}", "from -2^53 to 2^53"),
    "half a pixel": (("images", 0, "height", 48.5), "image 1", "height 48.5 is not"),
    "size in words": (("images", 0, "height", "48"), "image 1", "height '48' is not"),
    "file name of nothing": (("images", 0, "file_name", None), "image 1", "file_name None"),
    "long file name": (("images", 0, "file_name", "x" * 300), "image 1", "x is missing"),
    "zero in a file name": (("images", 0, "file_name", "a\0.png"), "image 1", "a\0.png"),
    "category in words": (("categories", 1, "id", "3"), "category '3'", "id is not an integer"),
    "category of a number": (("categories", 1, "name", 3), "category 3", "name 3 is not a name"),
    "half an emoji": (("categories", 1, "name", "\ud83d"), "category 3", "'\\ud83d' is not a name"),
    "category without name": (("categories", 1, "name", " "), "category 3", "' ' is not a name"),
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
    with pytest.raises(DataError, match=re.escape(where)):
        report.raise_if_bad()
    assert len(report.dataset.content[kind]) == 1, "the bad entry is left out, the good one stays"


def test_boxes_need_not_be_exact(folder):
    data = content()
    for box in ([8, 8, 25, 25], [12, 10, 18, 20]):
        data["annotations"][0]["bbox"] = box
        assert not check(write(folder, data)).problems
    data["annotations"][0] |= {"segmentation": [[10, 10, 12, 10, 12, 12]], "bbox": [8, 8, 3, 3]}
    assert not check(write(folder, data)).problems, "three pixels are within what rounding does"


@pytest.mark.parametrize(
    "nothing",
    [{}, {"segmentation": None}, {"segmentation": []}, {"segmentation": [[]]}],
    ids=str,
)
def test_boxes_are_enough_where_no_masks_are_wanted(folder, nothing):
    data = content()
    del data["annotations"][0]["segmentation"]
    data["annotations"][0] |= nothing
    source = write(folder, data)
    assert check(source).problems[0].where == "annotation 11"
    report = check(source, masks=False)
    assert not report.problems
    (annotation,) = report.dataset.records(["cat"])[0].annotations
    mask = decode_mask(annotation.segmentation, 48, 64)
    assert mask.sum() == 400 and mask[10:30, 10:30].all(), "the box stands for it"
    data["annotations"][0]["segmentation"] = [[1, 2, 3]]
    assert "three or more" in check(write(folder, data), masks=False).problems[0].reason


def test_crowd_regions_are_told_where_they_are_many(folder, capsys):
    """CVAT's brush makes nothing else."""
    data = content()
    for annotation in data["annotations"]:
        annotation["iscrowd"] = 0
    source = write(folder, data)
    assert main(["data", "check", str(source.annotations)]) == 0
    assert "iscrowd" not in capsys.readouterr().out
    for annotation in data["annotations"]:
        annotation["iscrowd"] = 1
    write(folder, data)
    assert main(["data", "check", str(source.annotations)]) == 0
    count = len(data["annotations"])
    assert f"{count} of {count} annotations are crowd regions (iscrowd 1" in capsys.readouterr().out


def test_images_of_a_kind_that_opencv_cannot_decode_are_found(folder):
    data = content()
    path = folder / "images" / "float.tif"
    Image.fromarray(np.ones((48, 64), np.float32)).save(path)
    data["images"][0]["file_name"] = path.name
    assert str(path) in check(write(folder, data)).problems[0].reason


def test_folders_whose_names_are_not_utf8(folder):
    """Handed to OpenCV, such a name would end the process."""
    (folder / "images").rename(folder / os.fsdecode(b"b\xe4ume"))
    source = DataSource(write(folder, content()).annotations, folder / os.fsdecode(b"b\xe4ume"))
    assert not check(source, decode=True).problems
    assert source.read().records(["cat"])[0].read().shape == (48, 64, 3)


@pytest.mark.parametrize("kind", ["jpg", "webp", "tif"])
def test_an_image_is_never_read_on_its_side(folder, kind):
    """Pillow tells how it lies, OpenCV turns it: of some formats older versions do not."""
    data = content()
    data["images"][0] |= {"file_name": f"a.{kind}", "height": 64, "width": 48}
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(folder / "images" / f"a.{kind}", exif=exif)
    source = write(folder, data)
    problems = [problem.reason for problem in check(source, decode=True).problems]
    try:
        assert source.read().records(["cat"])[0].read().shape == (64, 48, 3)
        assert not problems
    except DataError as error:
        assert problems == [str(error)]


def test_the_command_checks_boxes_alone(folder):
    data = content()
    for annotation in data["annotations"]:
        del annotation["segmentation"]
    source = write(folder, data)
    command = ["data", "check", str(source.annotations)]
    assert main(command) == 1
    assert main([*command, "--boxes", "--samples", str(folder / "page.png")]) == 0
    assert (folder / "page.png").exists()


@pytest.mark.parametrize("key", ["id", "name"])
def test_fields_that_are_missing_are_named(folder, key):
    data = content()
    del data["categories"][0][key]
    data["annotations"].append([1, 2])
    source = write(folder, data)
    first, second, third = check(source).problems
    assert first.reason == f"it has no {key}"
    assert (second.where, second.reason) == (
        "annotation no. 3",
        "[1, 2] is not an object with fields",
    )
    assert third.reason == "category_id 7 is not a valid category of this file"
    with pytest.raises(DataError, match=f"it has no {key}"):
        read_json(source.annotations)


def test_true_and_false_tell_crowds_too(folder):
    data = content()
    for annotation in data["annotations"]:
        annotation["iscrowd"] = bool(annotation["iscrowd"])
    report = check(write(folder, data))
    assert not report.problems
    records = report.dataset.records(["cat", "dog"])
    assert [a.is_crowd for r in records for a in r.annotations] == [False, True]


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("kind", ["jpg", "png", "bmp"])
def test_images_cut_short_are_found(folder, kind, decode):
    """All but the last of their bytes or half of them; a whole one with more behind it is good."""
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    path = folder / "images" / f"c.{kind}"
    cv2.imwrite(str(path), noise)
    whole = path.read_bytes()
    data = content()
    data["images"][0]["file_name"] = path.name
    source = write(folder, data)
    for share in (0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        problems = check(source, decode=decode).problems
        assert problems[0].where == "image 1" and f"c.{kind} cannot be read" in problems[0].reason
    for good in (whole, whole + b"\xff\xda and a film behind it"):
        path.write_bytes(good)
        assert not check(source, decode=decode).problems


def test_damage_within_an_image_is_found_when_decoded(folder):
    path = folder / "images" / "a.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole[:500] + bytes(100) + whole[600:])
    (problem, _) = check(write(folder, content()), decode=True).problems
    assert problem.where == "image 1" and "a.png cannot be read" in problem.reason


@pytest.mark.parametrize("decode", [False, True])
def test_annotations_say_which_way_up_an_image_is(folder, decode):
    """Cameras store images on their side; annotations may count pixels as stored or as shown."""
    stored = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    tags = Image.Exif()
    tags[0x0112] = 8  # to be turned to the left
    Image.fromarray(stored[..., ::-1]).save(folder / "images" / "a.png", exif=tags)
    data = content()
    (annotation,) = data["annotations"] = data["annotations"][:1]
    source = write(folder, data)
    assert not check(source, decode=decode).problems
    assert (source.read().records(["cat"])[0].read() == stored).all()

    annotation["bbox"], annotation["segmentation"] = [10, 40, 20, 20], [[10, 40, 30, 40, 30, 60]]
    data["images"][0] |= {"height": 64, "width": 48}
    source = write(folder, data)
    assert not check(source, decode=decode).problems
    shown = cv2.rotate(stored, cv2.ROTATE_90_COUNTERCLOCKWISE)
    assert (source.read().records(["cat"])[0].read() == shown).all()

    data["images"][1] |= {"height": 64, "width": 48}  # this one lies on no side
    (problem,) = check(write(folder, data), decode=decode).problems
    assert problem.reason.endswith("b.png has 64 x 48 pixels, its entry says 48 x 64")


def test_the_command_draws_samples_into_a_new_folder_or_fails(folder, capsys):
    source = write(folder, content())
    page = folder / "new" / "samples.png"
    assert main(["data", "check", str(source.annotations), "--samples", str(page)]) == 0
    out = capsys.readouterr().out
    assert "no wrong entries" in out and f"samples: {page}" in out
    assert cv2.imread(str(page)).any()
    page = source.annotations / "samples.png"  # in a file, not a folder
    assert main(["data", "check", str(source.annotations), "--samples", str(page)]) == 1
    printed = capsys.readouterr()
    assert "samples:" not in printed.out and "samples.png cannot be written" in printed.err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"images": []}', "[" * 100_000])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"data\.json"):
        check(DataSource.parse(str(path)))


@pytest.mark.parametrize("kind", ["categories", "images"])
def test_nothing_to_learn_is_refused(folder, kind):
    data = content()
    data[kind] = []
    with pytest.raises(DataError, match=rf"data\.json has no {kind}"):
        check(write(folder, data))


def test_classes_that_are_not_there_are_refused(folder):
    with pytest.raises(DataError, match="none of the classes bird; it has cat, dog"):
        write(folder, content()).read().records(["bird"])


def test_all_three_forms_of_a_mask_are_the_same():
    generator = np.random.default_rng(0)
    mask = (cv2.blur(generator.random((48, 64)), (9, 9)) > 0.5).astype(np.uint8)
    packed = coco_mask.encode(np.asfortranarray(mask))
    counts = packed["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    assert (decode_mask({"size": [48, 64], "counts": text}, 48, 64) == mask).all()
    assert (decode_mask({"size": [48, 64], "counts": run_lengths(text)}, 48, 64) == mask).all()
    square = decode_mask(SQUARE, 48, 64)
    assert square.sum() == 400 and square[10:30, 10:30].all()


@pytest.mark.parametrize("name", ["coco-mini/train", "coco-mini/val", "pennfudan/train"])
def test_the_shared_sets_are_good(shared, name):
    path = shared / "data" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"needs {path}")
    assert check(DataSource.parse(str(path))).problems == ()
