"""Pascal SBD's MATLAB files become the same masks in COCO's format."""

import shutil

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from yolact_ros.cli import main
from yolact_ros.data import DataSource, check, decode_mask
from yolact_ros.network.classes import PASCAL_CLASSES

PHOTOS = {"2008_000001": "riders", "2008_000002": "elephant", "2008_000003": "kitchen"}


def write_instances(path, labels, categories):
    """A file of `inst`, with the fields that the release has."""
    boundaries = np.empty((len(categories), 1), object)
    for i in range(len(categories)):
        boundaries[i, 0] = cv2.Canny((labels == i + 1).astype(np.uint8) * 255, 1, 2) > 0
    content = {
        "Segmentation": labels,
        "Boundaries": boundaries,
        "Categories": np.array(categories, np.uint8).reshape(-1, 1),
    }
    savemat(path, {"GTinst": content})


@pytest.fixture
def release(repository, tmp_path):
    """A benchmark_RELEASE of three photographs; the last one shows nothing that is labelled."""
    dataset = tmp_path / "benchmark_RELEASE" / "dataset"
    for folder in ("img", "inst", "cls"):
        (dataset / folder).mkdir(parents=True)
    masks = {}
    for name, photo in PHOTOS.items():
        source = repository / "yolact_ros" / "demo" / "photos" / f"{photo}.jpg"
        shutil.copy(source, dataset / "img" / f"{name}.jpg")
        labels = np.zeros(cv2.imread(str(source)).shape[:2], np.uint8)
        categories = []
        if photo != "kitchen":
            cv2.ellipse(labels, (200, 150), (80, 120), 30, 0, 360, 1, cv2.FILLED)
            categories.append(15)
        if photo == "riders":
            cv2.rectangle(labels, (250, 100), (400, 300), 2, cv2.FILLED)
            labels[150:180, 300:320] = 0  # a hole
            categories.append(2)
        write_instances(dataset / "inst" / f"{name}.mat", labels, categories)
        masks[name] = labels
    (dataset / "train.txt").write_text("2008_000001\n2008_000003\n")
    (dataset / "val.txt").write_text("2008_000002\n")
    return dataset, masks


def test_masks_and_classes_stay(release, capsys):
    dataset, masks = release
    assert main(["data", "convert-sbd", str(dataset.parent)]) == 0
    assert f"{dataset / 'train.json'}:{dataset / 'img'}  2 images, 2 objects" in (
        capsys.readouterr().out
    )
    source = DataSource(dataset / "train.json", dataset / "img")
    assert not check(source, decode=True).problems
    riders, kitchen = source.read().records(PASCAL_CLASSES)
    assert riders.path.stem == "2008_000001" and kitchen.annotations == ()
    assert [PASCAL_CLASSES[a.label] for a in riders.annotations] == ["person", "bicycle"]
    for i, annotation in enumerate(riders.annotations, start=1):
        mask = decode_mask(annotation.segmentation, riders.height, riders.width)
        assert (mask == (masks["2008_000001"] == i)).all()
        y, x = np.nonzero(mask)
        assert annotation.box == (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)
        assert not annotation.is_crowd
    val = DataSource(dataset / "val.json", dataset / "img")
    assert main(["data", "check", f"{val.annotations}:{val.images}"]) == 0
    assert "1 objects, 0 of them crowd regions; 20 classes: person 1" in capsys.readouterr().out


def test_broken_files_are_named(release, tmp_path, capsys):
    dataset, masks = release
    command = ["data", "convert-sbd", str(dataset), "--splits", "val", "--output", str(tmp_path)]
    inst = dataset / "inst" / "2008_000002.mat"

    def error():
        assert main(command) == 1
        assert not (tmp_path / "val.json").exists()
        return capsys.readouterr().err

    write_instances(inst, masks["2008_000002"][:100], [15])
    assert "2008_000002.mat is of (100, 640) pixels" in error()
    write_instances(inst, masks["2008_000002"], [21])
    assert "2008_000002.mat has instances up to 1 of the categories [21]" in error()
    savemat(inst, {"GTcls": 1})
    assert "2008_000002.mat has no instances in SBD's form" in error()
    inst.write_bytes(inst.read_bytes()[:100])
    assert "2008_000002.mat has no instances in SBD's form" in error()
    inst.unlink()
    assert "2008_000002.mat has no instances in SBD's form" in error()
    command[-1], command[2] = str(tmp_path / "other"), str(tmp_path)
    assert "is not SBD's benchmark_RELEASE" in error()
