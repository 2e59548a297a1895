"""Networks in 8 bits: what they find, and what is refused."""

from __future__ import annotations

import sys

import cv2
import pytest

from yolact_ros.cli import main
from yolact_ros.engine import Segmenter
from yolact_ros.export import check, export
from yolact_ros.export.check import FLOAT, INT8
from yolact_ros.export.quantise import quantise
from yolact_ros.extras import MissingExtraError


@pytest.fixture(scope="module")
def person():
    """The embedded model. With random weights rounding changes what is found."""
    return Segmenter(device="cpu", backend="torch")


@pytest.fixture(scope="module")
def photos(repository):
    return sorted((repository / "yolact_ros/demo/photos").glob("*.jpg"))


def test_it_finds_nearly_the_same(person, photos, tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    path = tmp_path / "person.xml"
    images = {each.name: cv2.imread(str(each)) for each in photos}
    checked = export(person, path, images, precision="int8", calibration=photos)
    assert checked.limits == INT8 and checked.problems == [] and checked.overall.matched >= 4
    assert sorted(each.name for each in tmp_path.iterdir()) == ["person.bin", "person.xml"]

    exported = Segmenter(weights=path)
    assert "openvino, int8" in exported.description
    assert exported.config == person.config
    weights = sum(each.numel() for each in person.runtime.run.parameters())
    assert path.with_suffix(".bin").stat().st_size < 1.5 * weights, "a byte each, and some float"

    strict = check(exported, person, {"riders.jpg": images["riders.jpg"]}, FLOAT)
    assert any("an output differs" in problem for problem in strict.problems), "it is rounded"


def test_the_detection_stage_stays_in_float(person, photos, tmp_path):
    """Boxes, masks and re-scoring are those of the same network with the stage in PyTorch."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    images = {each.name: cv2.imread(str(each)) for each in photos}
    plain, whole = tmp_path / "plain.xml", tmp_path / "whole.xml"
    for path in (plain, whole):
        options = {"precision": "int8", "calibration": photos, "detection": path is whole}
        export(person, path, images, **options)
    theirs, ours = Segmenter(weights=plain), Segmenter(weights=whole)
    checked = check(ours, theirs, images, FLOAT)
    assert checked.problems == [] and checked.overall.matched >= 4


def test_without_nncf(segmenters, images, photos, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, "nncf", None)
    path, message = tmp_path / "net.xml", r"int8 needs nncf: pip install -r requirements/int8\.txt"
    with pytest.raises(MissingExtraError, match=message):
        export(segmenters["small"], path, images, precision="int8", calibration=photos)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_image_is_named(exported, segmenters, tmp_path):
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    model = openvino.Core().read_model(exported("small", ".xml", False))
    path = tmp_path / "broken.jpg"
    path.write_text("no image")
    with pytest.raises(ValueError, match=r"broken.jpg is not an image"):
        quantise(model, segmenters["small"].config, [path])


@pytest.mark.parametrize(
    ("name", "precision", "calibrate", "message"),
    [
        ("net.xml", "int8", False, "int8 needs images to calibrate with"),
        ("net.onnx", "int8", True, r"net.onnx is not allowed for int8: .* must end in .xml"),
        ("net.xml", "float32", True, "to calibrate with are for int8, not for float32"),
        ("net.xml", "float16", False, "for a .xml: it must be 'float32' or 'int8'$"),
    ],
)
def test_what_does_not_go_together(
    segmenters, images, photos, tmp_path, name, precision, calibrate, message
):
    options = {"precision": precision, "calibration": photos if calibrate else ()}
    with pytest.raises(ValueError, match=message):
        export(segmenters["small"], tmp_path / name, images, **options)
    assert list(tmp_path.iterdir()) == []


def test_the_command_names_what_is_missing(tmp_path, capsys):
    words = ["export", str(tmp_path / "net.xml"), "--precision", "int8"]
    assert main(words) == 1
    assert "int8 needs images to calibrate with" in capsys.readouterr().err
    assert main([*words, "--calibrate", str(tmp_path)]) == 1
    assert f"the folder {tmp_path} has no image" in capsys.readouterr().err
