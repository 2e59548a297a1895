"""Data sets as annotation tools export them."""

import json

import cv2
import numpy as np
import pytest

from yolact_ros.cli import main
from yolact_ros.data import (
    DataError,
    DataSource,
    check,
    read_countable,
)

NAMES = ("a.png", "b.png")


def content():
    """Two images with an object each, the second of the class that comes first."""
    box, polygon = [10, 10, 20, 20], [[10, 10, 30, 10, 30, 30, 10, 30]]
    return {
        "categories": [{"id": 1, "name": "fig"}, {"id": 2, "name": "date"}],
        "images": [
            {"id": i, "file_name": name, "height": 48, "width": 64} for i, name in enumerate(NAMES)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 2 - i, "bbox": box, "segmentation": polygon}
            for i in range(2)
        ],
    }


def export(root, file, folder, data=None):
    """A data set under `root`: its annotations in `file`, its images in `folder`."""
    for path in (root / file).parent, root / folder:
        path.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        cv2.imwrite(str(root / folder / name), np.zeros((48, 64, 3), np.uint8))
    (root / file).write_text(json.dumps(data or content()))
    return DataSource.parse(str(root / file))


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("data.json", "images"),
        ("train/_annotations.coco.json", "train"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_default.json", "images"),
        ("annotations/instances_train.json", "images/train"),
        ("annotations/instances_train_night.json", "images/train_night"),
        ("annotations/instances_night-val.json", "images/night"),
        ("annotations/instances_night-train.json", "night"),
        ("annotations/person_keypoints_val2017.json", "val2017"),
        ("annotations/person_keypoints_val2017-train-val.json", "val2017"),
        ("annotations/my_data_train.json", "images/train"),
    ],
)
def test_images_are_found_where_tools_put_them(tmp_path, monkeypatch, file, folder):
    source = export(tmp_path, file, folder)
    assert check(source, decode=True).problems == ()
    records = source.read().records(["fig", "date"])
    assert [record.path for record in records] == [tmp_path / folder / name for name in NAMES]
    monkeypatch.chdir(source.annotations.parent)
    assert check(DataSource.parse(source.annotations.name)).problems == ()


def test_the_folder_of_a_part_comes_before_that_of_the_whole(tmp_path):
    source = export(tmp_path, "annotations/instances_night-val.json", "night")
    export(tmp_path, "annotations/instances_night-val.json", "images/night-val")
    assert source.read().folder == tmp_path / "images" / "night-val"


def test_one_missing_image_is_missing_where_the_others_are(tmp_path):
    source = export(tmp_path, "train/_annotations.coco.json", "train")
    (tmp_path / "train" / NAMES[0]).unlink()
    first, _ = check(source).problems
    assert first.where == "image 0" and first.reason == f"{tmp_path}/train/a.png is missing"


@pytest.mark.parametrize("named", [True, False])
def test_without_any_image_the_folders_are_named(tmp_path, named):
    source = export(tmp_path, "data.json", "elsewhere")
    if named:
        source = DataSource.parse(f"{source.annotations}:{tmp_path}/nowhere")
    with pytest.raises(DataError, match=r"none of its 2 images, such as a\.png, is in") as error:
        check(source)
    looked_in = "nowhere" if named else "images"
    assert f"{tmp_path}/{looked_in}" in str(error.value)
    assert str(error.value).endswith(f"name their folder as {source.annotations}:FOLDER")


@pytest.mark.parametrize("heading", ["fruits", "fig"])
def test_a_heading_above_the_classes_is_none(tmp_path, heading):
    """Roboflow's first category, which may have the name of a class."""
    data = content()
    for category in data["categories"]:
        category["supercategory"] = heading
    data["categories"].insert(0, {"id": 0, "name": heading, "supercategory": "none"})
    source = export(tmp_path, "data.json", "images", data)
    assert check(source).dataset.class_names == ("fig", "date")
    (first, second) = source.read().records(["fig", "date"])
    assert (first.annotations[0].label, second.annotations[0].label) == (1, 0)


def test_a_category_above_others_is_a_class_if_an_object_is_of_it(tmp_path):
    data = content()
    data["categories"][1]["supercategory"] = "fig"
    source = export(tmp_path, "data.json", "images", data)
    assert source.read().class_names == ("fig", "date")
    data["annotations"].pop()  # the fig
    source = export(tmp_path, "data.json", "images", data)
    assert source.read().class_names == ("date",)
    data["annotations"].clear()
    source = export(tmp_path, "data.json", "images", data)
    assert source.read().class_names == ("fig", "date"), "nothing tells"


def test_boxes_may_be_numbers_in_quotes(tmp_path):
    data = content()
    data["annotations"][0]["bbox"] = [10, 10, "20.25", "20"]
    source = export(tmp_path, "data.json", "images", data)
    assert check(source).problems == ()
    assert source.read().records(["date"])[0].annotations[0].box == (10, 10, 20.25, 20)
    for text in ("wide", "nan", "1e999"):
        data["annotations"][0]["bbox"][2] = text
        (problem,) = check(export(tmp_path, "data.json", "images", data)).problems
        assert problem.reason.endswith("is not four finite numbers")


def test_stray_points_of_a_brush_mask_have_no_pixel(tmp_path):
    """cv2.findContours makes parts of one and of two points."""
    data, alone = content(), content()
    data["annotations"][0]["segmentation"][:0] = [[5, 5], [5, 5, 6, 5]]
    data["annotations"][0]["segmentation"].append([1, 2])
    source = export(tmp_path, "data.json", "images", data)
    assert check(source).problems == check(source, "measuring").problems == ()
    found = source.read().content["annotations"]
    assert found[0]["segmentation"] == alone["annotations"][0]["segmentation"]
    for parts in ([[5, 5]], [[5, 5], [5, 5, 6, 5]]):  # no mask beside them
        data["annotations"][0]["segmentation"] = parts
        (problem,) = check(export(tmp_path, "data.json", "images", data)).problems
        assert problem.where == "annotation 0" and "three or more x and y" in problem.reason


def test_file_names_of_windows(tmp_path):
    data = content()
    for image in data["images"]:
        image["file_name"] = f"images\\{image['file_name']}"
    source = export(tmp_path, "result.json", "images", data)
    assert check(source, decode=True).problems == ()
    assert source.read().records(["fig"])[0].path == tmp_path / "images" / NAMES[0]
    real = tmp_path / f"images\\{NAMES[0]}"  # on Linux a backslash is a character as any other
    (tmp_path / "images" / NAMES[0]).rename(real)
    assert check(source, decode=True).problems == ()
    assert source.read().records(["fig"])[0].path == real


def test_values_of_tables(tmp_path):
    """Whole numbers with a point, empty fields, and a mark at the start of the file."""
    runs = {"size": [48, 64], "counts": [10 * 48 + 10, 20, 48 * 64 - 10 * 48 - 30]}
    data, plain = content(), content()["annotations"]
    plain[1] |= {"segmentation": runs, "bbox": [10, 10, 1, 20]}
    data["annotations"][1] |= plain[1]
    data["annotations"][1]["segmentation"] = {n: [*map(float, v)] for n, v in runs.items()}
    for entry in (*data["categories"], *data["images"], *data["annotations"]):
        entry |= {name: float(v) for name, v in entry.items() if isinstance(v, int)}
    for annotation in data["annotations"]:
        annotation |= {"iscrowd": None, "area": None}
    source = export(tmp_path, "data.json", "images", data)
    source.annotations.write_bytes(b"\xef\xbb\xbf" + source.annotations.read_bytes())
    assert check(source).problems == check(source, "measuring").problems == ()
    assert source.read().content["annotations"] == plain
    assert type(source.read().content["images"][0]["height"]) is int


def test_what_is_wrong_with_many_is_said_once(tmp_path, capsys):
    data = content()
    data["annotations"] = [
        data["annotations"][0] | {"id": number, "segmentation": []} for number in range(7)
    ]
    source = export(tmp_path, "data.json", "images", data)
    assert main(["data", "check", str(source.annotations)]) == 1
    out, err = capsys.readouterr()
    assert "no object of fig, date" in out and "7 wrong entries" in out
    assert "\n  annotation 0, 1, 2, 3, 4 and 2 more: it has no mask" in out
    assert "7 entries are wrong" in err
    with pytest.raises(DataError, match="annotation 0, 1, 2, 3, 4 and 2 more: it has no mask"):
        check(source).raise_if_bad()


def test_a_heading_may_have_the_name_of_the_only_class(tmp_path):
    data = content()
    data["categories"] = [
        {"id": 0, "name": "person", "supercategory": "none"},
        {"id": 1, "name": "person", "supercategory": "person"},
    ]
    for annotation in data["annotations"]:
        annotation["category_id"] = 1
    source = export(tmp_path, "data.json", "images", data)
    found = check(source)
    assert found.problems == () and [c["id"] for c in found.dataset.content["categories"]] == [1]


def test_folders_may_have_colons_in_their_names(tmp_path):
    source = export(tmp_path / "10:30", "data.json", "images", content())
    assert check(DataSource.parse(str(source.annotations))).problems == ()
    both = DataSource.parse(f"{tmp_path}/10:30/data.json:{tmp_path}/a:b")
    assert both == DataSource(tmp_path / "10:30" / "data.json", tmp_path / "a:b")


def test_what_cannot_be_counted_is_refused_before_the_work(tmp_path, capsys):
    data = content()
    far = [10, 10, 40, 10, 1234567890, 50, 10, 50]
    data["annotations"][0]["segmentation"] = [far]
    source = export(tmp_path, "data.json", "images", data)
    with pytest.raises(DataError, match="has 1234567890, far outside an image"):
        read_countable(source, masks=True)
    data |= {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    source.annotations.write_text(json.dumps(data))
    assert main(["eval", str(source.annotations)]) == 1
    assert "has no images" in capsys.readouterr().err
