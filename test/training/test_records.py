"""What a run learns from is checked first, whatever is wrong with it."""

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolact_ros.data import DataError
from yolact_ros.training.records import training_data
from yolact_ros.training.train import train


@pytest.fixture
def broken(settings, tmp_path):
    """A function: settings whose data set was changed by `change`, called with its content."""

    def make(change, **changes):
        path = tmp_path / "broken" / "broken.json"
        shutil.copytree(Path(settings.train[0]).parent / "images", path.parent / "images")
        content = json.loads(Path(settings.train[0]).read_text())
        change(content, path.parent / "images")
        path.write_text(json.dumps(content))
        return dataclasses.replace(settings, **{"train": (str(path),), **changes})

    return make


def without_name(content, images):
    del content["categories"][0]["name"]


def without_id(content, images):
    del content["categories"][0]["id"]


def same_name(content, images):
    content["categories"][0]["name"] = "square"


def no_object(content, images):
    content["categories"][0] = "disc"


@pytest.mark.parametrize("change", [without_name, without_id, no_object])
def test_broken_categories_are_left_out_or_named(broken, change, capsys):
    settings = broken(change)
    with pytest.raises(DataError, match=r"broken\.json: category "):
        training_data(settings)
    records, classes = training_data(dataclasses.replace(settings, skip_bad=True))
    assert classes == ("square",)
    assert [len(record.annotations) for record in records] == [1] * 6
    assert "7 wrong entries are left out" in capsys.readouterr().out, "the class and its objects"


def test_no_name_stands_for_two_classes(broken):
    records, classes = training_data(broken(same_name, skip_bad=True))
    assert classes == ("square",), "the first one"
    assert {annotation.label for record in records for annotation in record.annotations} == {0}


def test_an_image_cut_short_is_left_out_or_named(broken):
    def cut(content, images):
        whole = (images / "2.png").read_bytes()
        (images / "2.png").write_bytes(whole[: len(whole) // 2])

    settings = broken(cut)
    with pytest.raises(DataError, match=r"image 2: .*2\.png cannot be read: it is cut short"):
        training_data(settings)
    records, _ = training_data(dataclasses.replace(settings, skip_bad=True))
    assert [record.id for record in records] == [1, 3, 4, 5, 6]


def damage(content, images):
    """In the middle, which only decoding finds."""
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    cv2.imwrite(str(images / "2.png"), noise)
    content["images"][1] |= {"height": 96, "width": 128}
    whole = (images / "2.png").read_bytes()
    (images / "2.png").write_bytes(whole[:500] + bytes(100) + whole[600:])


def test_images_that_accuracy_is_measured_on_are_decoded(settings, broken):
    wrong = broken(damage)
    settings = dataclasses.replace(wrong, train=settings.train, val=wrong.train)
    with pytest.raises(DataError, match=r"image 2: .*2\.png cannot be read"):
        training_data(settings)


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_that_is_found_on_the_way_is_named(broken, workers):
    settings = broken(damage, workers=workers)
    with pytest.raises(DataError, match=r"^.*2\.png is not an image .*; `yolact data check`"):
        train(settings)
    assert train(dataclasses.replace(settings, skip_bad=True)).exists()


def test_what_accuracy_is_measured_on_is_checked_too(settings, broken):
    def half_pixels(content, images):
        content["images"][0]["height"] = 96.5

    wrong = broken(half_pixels)
    settings = dataclasses.replace(wrong, train=settings.train, val=wrong.train)
    for skip_bad in (False, True):
        with pytest.raises(DataError, match=r"image 1: height 96\.5 is not a positive integer"):
            training_data(dataclasses.replace(settings, skip_bad=skip_bad))


def test_accuracy_can_be_measured(settings, broken):
    def other_classes(content, images):
        for category in content["categories"]:
            category["name"] += "s"

    wrong = broken(other_classes).train
    for val, message in ((wrong, "none of the classes disc, square"), (("no.json",), r"no\.json")):
        with pytest.raises(DataError, match=message):
            training_data(dataclasses.replace(settings, val=val, skip_bad=True))
