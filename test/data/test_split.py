"""One file becomes two, to train with and to measure with."""

import json

import cv2
import numpy as np
import pytest

from yolact_ros.cli import main
from yolact_ros.data import DataSource, check, read_json
from yolact_ros.data.split import split


def content(count=10):
    """Images with as many objects as their number says."""
    return {
        "categories": [{"id": 1, "name": "fig"}],
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 48, "width": 64} for i in range(count)
        ],
        "annotations": [
            {"id": 100 * i + j, "image_id": i, "category_id": 1, "bbox": [10, 10, 20, 20]}
            for i in range(count)
            for j in range(i)
        ],
    }


def ids(part):
    return [image["id"] for image in part["images"]]


@pytest.mark.parametrize("seed", [0, 1, None])
def test_every_image_is_in_one_part_with_its_objects(seed):
    parts = split(content(), 0.3, seed)
    assert [len(ids(part)) for part in parts] == [7, 3]
    assert sorted(ids(parts[0]) + ids(parts[1])) == list(range(10))
    for part in parts:
        assert ids(part) == sorted(ids(part)), "in the order of the file"
        images = [a["image_id"] for a in part["annotations"]]
        assert images == [i for i in ids(part) for _ in range(i)]
        assert part["categories"] == content()["categories"]


def test_which_ones_is_chosen_by_seed_or_place():
    drawn = [ids(split(content(), 0.3, seed)[1]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert ids(split(content(), 0.3, None)[1]) == [7, 8, 9]
    assert ids(split(content(), 0.01, None)[1]) == [9], "one at least"


@pytest.mark.parametrize("share", [0, 1, -0.5, 0.96, float("nan")])
def test_both_parts_have_images(share):
    with pytest.raises(ValueError, match=f"share={share} is not allowed"):
        split(content(), share)


def test_the_command_writes_what_train_and_eval_take(tmp_path, capsys):
    (tmp_path / "frames").mkdir()
    for entry in content()["images"]:
        path = str(tmp_path / "frames" / entry["file_name"])
        cv2.imwrite(path, np.zeros((48, 64, 3), np.uint8))
    file = tmp_path / "all.json"
    file.write_text(json.dumps(content()))
    command = ["data", "split", f"{file}:{tmp_path}/frames", "--share", "0.3", "--last"]
    assert main(command) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path}/all-train.json:{tmp_path}/frames  7 images, 21 objects"
    assert second == f"{tmp_path}/all-val.json:{tmp_path}/frames  3 images, 24 objects"
    for line in (first, second):
        assert check(DataSource.parse(line.rsplit("  ", 1)[0]), masks=False).problems == ()
    assert main([*command[:3], "--share", "2"]) == 1
    assert "share=2.0 is not allowed" in capsys.readouterr().err
    assert ids(read_json(tmp_path / "all-val.json")) == [7, 8, 9]
