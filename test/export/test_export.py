"""Exported files find what PyTorch finds, wherever they are given as weights."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import re
import shutil
import subprocess
import sys
import typing

import cv2
import numpy as np
import pytest
import torch

from yolact_ros.benchmark.agreement import Agreement
from yolact_ros.cli import main
from yolact_ros.data import DataSource
from yolact_ros.engine import Segmenter, preprocess
from yolact_ros.engine.runtimes import EXPORTED, Header
from yolact_ros.export import ExportError, check, export
from yolact_ros.export.check import FLOAT, ExportCheck, ImageCheck
from yolact_ros.network import NetworkConfig, WeightsError
from yolact_ros.network.config import Backbone

KINDS = [
    ("small", ".onnx", False),
    ("small", ".xml", False),
    ("small", ".pt2", False),
    ("plus", ".pt2", True),
    ("plus", ".onnx", True),
]


@pytest.fixture(params=KINDS, ids=str)
def pair(request, exported, segmenters):
    """An exported network, and the one that it was made from."""
    name, ending, detection = request.param
    original = segmenters[name]
    weights = exported(name, ending, detection)
    return Segmenter(weights=weights, score_threshold=0.2, top_k=10), original


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=0, atol=0.01)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.mask_scores, theirs.mask_scores, rtol=0, atol=1e-4)
    assert torch.equal(ours.class_ids, theirs.class_ids)
    assert (ours.masks != theirs.masks).float().mean() < 1e-3


def test_every_kind_finds_what_pytorch_finds(pair, images):
    exported, original = pair
    assert exported.config == original.config and exported.class_names == original.class_names
    assert exported.runtime.name != "torch" and exported.runtime.name in exported.description
    if original.config.mask_rescoring:
        found = original(list(images.values()))
        assert any((each.mask_scores != each.scores).any() for each in found)
    for image in images.values():  # one at a time, then together
        assert_same(exported(image), original(image))
    together = list(images.values())
    for ours, theirs in zip(exported(together), original(together), strict=True):
        assert_same(ours, theirs)


def test_settings_change_between_calls(pair, images):
    exported, original = pair
    image = next(iter(images.values()))
    before = original.settings
    for changes in ({"top_k": 3}, {"score_threshold": 0.4}, {"class_ids": (1,)}):
        try:
            exported.settings = original.settings = dataclasses.replace(before, **changes)
            ours, theirs = exported(image), original(image)
        finally:
            original.settings = before
        if "class_ids" in changes:  # a detection stage inside has taken its ten best before
            assert set(ours.class_ids.tolist()) == {1}
            theirs = theirs[: len(ours)]
        assert_same(ours, theirs)


def test_releases_that_are_too_old_are_refused(segmenters, images, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu124")
    for ending in (".onnx", ".pt2"):
        with pytest.raises(ValueError, match=r"not allowed with PyTorch 2\.5\.1.*: it takes 2\.6"):
            export(segmenters["small"], tmp_path / f"net{ending}", images)


def test_settings_that_are_inside_are_refused(exported):
    segmenter = Segmenter(weights=exported("plus", ".onnx", True))
    for changes, message in (
        ({"nms_iou_threshold": 0.7}, "nms_iou_threshold=0.7 is not allowed: .* with 0.5"),
        ({"nms_method": "standard"}, "nms_method='standard' is not allowed: .* with 'fast'"),
    ):
        with pytest.raises(ValueError, match=message):
            segmenter.settings = dataclasses.replace(segmenter.settings, **changes)
    for options in ({"nms_method": "cross_class"}, {"nms_iou_threshold": 0.7}):
        with pytest.raises(ValueError, match=r"=.* is not allowed: the exported network has"):
            Segmenter(weights=exported("plus", ".onnx", True), **options)


@pytest.fixture(scope="module")
def own_nms(segmenters, images, tmp_path_factory):
    """A file with other settings inside than the defaults, and those that it was made with."""
    pytest.importorskip("openvino")
    path, original = tmp_path_factory.mktemp("own") / "own.xml", segmenters["small"]
    before = original.settings
    changes = {"nms_method": "cross_class", "nms_iou_threshold": 0.3, "nms_top_k": 50}
    original.settings = dataclasses.replace(before, **changes, confidence_threshold=0.1)
    try:
        export(original, path, images, detection=True)
        return path, original.settings
    finally:
        original.settings = before


def test_what_is_inside_is_the_default(own_nms, segmenters, images):
    path, settings = own_nms
    segmenter, original = (
        Segmenter(weights=path, score_threshold=0.2, top_k=10),
        segmenters["small"],
    )
    assert segmenter.settings == settings
    image, before = next(iter(images.values())), original.settings
    assert segmenter(image).scores.tolist() != original(image).scores.tolist(), "another NMS"
    try:
        original.settings = settings
        assert_same(segmenter(image), original(image))
    finally:
        original.settings = before
    named = Segmenter(weights=path, nms_method="cross_class", nms_iou_threshold=0.3)
    assert named.settings.nms_top_k == 50 and named.settings.score_threshold == 0.3
    with pytest.raises(ValueError, match=r"nms_method='fast' is not allowed: .* 'cross_class'"):
        Segmenter(weights=path, nms_method="fast")


def test_commands_run_a_file_with_another_nms_inside(own_nms, images, tmp_path, capsys):
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), next(iter(images.values())))
    out = tmp_path / "out"
    words = ["predict", str(image), "--weights", str(own_nms[0]), "--output", str(out)]
    assert main([*words, "--score", "0.2"]) == 0
    found = json.loads((out / "image.json").read_text())["instances"]
    assert len(found) > 0
    assert main([*words, "--nms", "cross_class", "--nms-iou", "0.3"]) == 0
    assert main([*words, "--nms-iou", "0.5"]) == 1
    assert "nms_iou_threshold=0.5 is not allowed: the exported" in capsys.readouterr().err


@pytest.mark.parametrize("ending", EXPORTED)
def test_accuracy_is_that_of_pytorch(exported, segmenters, images, tmp_path, ending):
    """Against half of what PyTorch finds, by `yolact eval`'s own function."""
    pytest.importorskip("faster_coco_eval", reason="needs the extra eval")
    from yolact_ros.evaluation import coco, findings

    original = segmenters["small"]
    categories = {name: i for i, name in enumerate(original.class_names, start=1)}
    content = {"categories": [{"id": i, "name": n} for n, i in categories.items()]}
    content |= {"images": [], "annotations": []}
    for number, image in enumerate(images.values(), start=1):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
        height, width = image.shape[:2]
        size = {"height": height, "width": width}
        content["images"].append({"id": number, "file_name": f"{number}.png", **size})
        masks, boxes = findings.to_results(number, original(image)[::2], categories)
        for mask, box in zip(masks, boxes, strict=True):
            found = {"id": len(content["annotations"]) + 1, "iscrowd": 0, "area": 100}
            content["annotations"].append({**mask, **box, **found})
    source = DataSource(tmp_path / "val.json", tmp_path)
    source.annotations.write_text(json.dumps(content))
    scores = []
    for weights in (original, Segmenter(weights=exported("small", ending, False))):
        weights.settings = dataclasses.replace(weights.settings, score_threshold=0.2, top_k=10)
        scores.append(coco.evaluate(weights, source).masks.overall)
    theirs, ours = scores
    assert 0.2 < theirs.ap < 0.9 and ours.ap == pytest.approx(theirs.ap, abs=0.01)


def test_other_programs_get_all_of_the_detections(exported, segmenters, images):
    """What docs/export.md promises to those who run the file without this package."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(exported("plus", ".onnx", True)))
    assert session.get_inputs()[0].shape == ["batch", 3, 256, 256]
    assert {output.shape[0] for output in session.get_outputs()} == {"batch"}
    names = [output.name for output in session.get_outputs()]
    assert names == [
        "boxes",
        "scores",
        "class_ids",
        "counts",
        "coefficients",
        "prototypes",
        "mask_scores",
    ]
    image = next(iter(images.values()))
    batch = preprocess([torch.from_numpy(image)], segmenters["plus"].config).numpy()
    found = dict(zip(names, session.run(None, {"images": batch}), strict=True))
    expected = segmenters["plus"](image)
    count = len(expected)
    assert found["counts"][0] >= count
    np.testing.assert_allclose(found["scores"][0, :count], expected.scores, atol=1e-4)
    np.testing.assert_allclose(found["mask_scores"][0, :count], expected.mask_scores, atol=1e-4)


def test_the_documented_program(exported, segmenters, images, repository, tmp_path):
    """The text of docs/export.md alone, with a file and an image."""
    text = (repository / "docs/export.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "yolact_ros" not in program and "torch" not in program
    script, image_file = tmp_path / "program.py", tmp_path / "image.png"
    script.write_text(program)
    image = images["(60, 90)"]
    cv2.imwrite(str(image_file), image)
    words = [sys.executable, str(script), str(exported("plus", ".onnx", True)), str(image_file)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, masks = done.stdout.splitlines(), np.load(tmp_path / "masks.npy")
    expected = segmenters["plus"](image)
    expected = expected[expected.scores > 0.3]
    assert len(found) == len(masks) == len(expected) > 0
    assert [line.split()[0] for line in found] == expected.names
    scores = [float(line.split()[1]) for line in found]
    assert scores == pytest.approx(expected.scores.tolist(), abs=1e-3)
    boxes = np.array([line.split()[2:] for line in found], float).clip(0, [90, 60, 90, 60])
    np.testing.assert_allclose(boxes, expected.boxes.numpy().clip(0, [90, 60, 90, 60]), atol=0.1)
    assert masks.any() and (masks != expected.masks.numpy()).mean() < 1e-3


@pytest.mark.parametrize("backbone", typing.get_args(Backbone))
def test_the_file_says_how_images_are_prepared(backbone):
    config = NetworkConfig(name="any", backbone=backbone, image_size=64)
    values = json.loads(Header(config).to_metadata()["input"])
    assert values["size"] == 64 and values["channels"] == "RGB"
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)  # BGR
    ours = (image[..., ::-1] - np.array(values["mean"])) / np.array(values["std"])
    batch = preprocess([torch.from_numpy(image)], config)[0].permute(1, 2, 0)
    np.testing.assert_allclose(ours, batch.numpy(), atol=1e-5)
    assert all(round(value, 2) == value for value in (*values["mean"], *values["std"]))


def test_the_command(tmp_path, capsys, repository):
    pytest.importorskip("openvino")
    photo = repository / "yolact_ros/demo/photos/riders.jpg"
    folders = tmp_path / "day", tmp_path / "night"
    for folder in folders:
        folder.mkdir()
        shutil.copy(photo, folder)
        (folder / "film.mp4").touch()  # is no image
    target = tmp_path / "model" / "person.xml"
    target.parent.mkdir()
    assert main(["export", str(target), "--images", *map(str, folders)]) == 0
    printed = capsys.readouterr().out
    assert "day-riders " in printed and "night-riders " in printed
    assert f"{target} finds what PyTorch finds" in printed
    found = Segmenter(weights=target)(cv2.imread(str(photo)))
    assert set(found.names) == {"person"}
    assert sorted(path.name for path in target.parent.iterdir()) == ["person.bin", "person.xml"]


@pytest.mark.parametrize(
    "option", [("--nms", "cross_class"), ("--nms-iou", "0.6"), ("--top-k", "50")], ids=str
)
def test_settings_of_a_stage_that_is_not_inside_are_refused(tmp_path, capsys, option):
    assert main(["export", str(tmp_path / "net.onnx"), *option]) == 1
    assert f"{' '.join(option)} is not allowed without --detection" in capsys.readouterr().err


def test_what_does_not_do_the_same_is_noticed(segmenters, exported, images):
    other = Segmenter(weights=exported("small", ".onnx", False), score_threshold=0.2, top_k=10)
    original = segmenters["small"]
    same = check(other, original, images)
    assert same.problems == [] and sum(p.agreement.matched for p in same.images) >= 30
    run = other.runtime.run

    def wrong(batch):
        predictions = run(batch)
        return dataclasses.replace(predictions, class_logits=predictions.class_logits.flip(1))

    other.runtime = dataclasses.replace(other.runtime, run=wrong)
    different = check(other, original, images)
    assert any("have no partner" in problem for problem in different.problems)
    assert any("an output differs" in problem for problem in different.problems)


@pytest.mark.parametrize(
    "count, steps",
    [
        (1, ["read", 2, 1, "read", 1, 1]),
        (5, [*4 * ["read"], 4, 1, 1, 1, 1, "read", 2, 1, "read", 1, 1]),
    ],
)
def test_images_are_read_and_given_in_small_batches(segmenters, images, count, steps):
    original, seen = segmenters["small"], []
    other, image = copy.copy(original), next(iter(images.values()))

    class Images(dict):
        def __getitem__(self, name):
            seen.append("read")
            return image

    def run(batch):
        seen.append(len(batch))
        return original.runtime.run(batch)

    def wrong(batch):
        return run(batch.flip(2) if len(batch) > 1 else batch)

    given = Images.fromkeys(map(str, range(count)))
    for call, is_right in ((run, True), (wrong, False)):
        other.runtime = dataclasses.replace(original.runtime, run=call)
        assert (check(other, original, given).problems == []) == is_right
    assert seen == 2 * steps


def test_a_detection_stage_that_is_wrong_for_one_image_is_noticed(segmenters, exported, images):
    other = Segmenter(weights=exported("small", ".onnx", True))
    run = other.runtime.run
    other.runtime = dataclasses.replace(
        other.runtime, run=lambda batch: run(batch.flip(2) if len(batch) == 1 else batch)
    )
    problems = check(other, segmenters["small"], images).problems
    assert any("have no partner" in problem for problem in problems)


def test_a_failed_check_leaves_nothing(segmenters, images, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    module = importlib.import_module("yolact_ros.export.write")
    monkeypatch.setattr(module, "FLOAT", dataclasses.replace(FLOAT, output=0.0))  # no rounding
    path = tmp_path / "net.xml"
    with pytest.raises(ExportError, match=r"net.xml was not written.*an output differs by"):
        export(segmenters["small"], path, images)
    assert list(tmp_path.iterdir()) == []


# Bad input


@pytest.mark.parametrize(
    "name, message",
    [
        ("net.engine", r"must end in .onnx, .xml, .pt2"),
        ("nowhere/net.onnx", "there is no folder .*nowhere"),
    ],
)
def test_bad_targets(segmenters, images, tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        export(segmenters["small"], tmp_path / name, images)


def test_no_image_to_check_with(segmenters, tmp_path):
    with pytest.raises(ValueError, match="there is no image to check with"):
        export(segmenters["small"], tmp_path / "net.onnx", {})


def test_an_image_to_check_with_that_is_none(tmp_path, capsys):
    image, target = tmp_path / "image.png", tmp_path / "net.pt2"
    image.write_text("text")
    assert main(["export", str(target), "--images", str(image)]) == 1
    assert "image.png is not an image" in capsys.readouterr().err


def test_standard_nms_has_no_graph(segmenters, images, tmp_path):
    segmenter = Segmenter(device="cpu", backend="torch", nms_method="standard")
    with pytest.raises(ValueError, match=r"nms_method='standard'.* is not allowed in a graph"):
        export(segmenter, tmp_path / "net.onnx", images, detection=True)


@pytest.mark.parametrize("ending", [".onnx", ".xml", ".pt2"])
@pytest.mark.parametrize("harm", ["truncated", "text", "empty", "gone"])
def test_damaged_files_are_named(exported, tmp_path, ending, harm):
    whole = exported("small", ending, False)
    path = tmp_path / f"net{ending}"
    if harm != "gone":
        content = whole.read_bytes()
        path.write_bytes(
            {"truncated": content[: len(content) // 2], "text": b"text"}.get(harm, b"")
        )
    if ending == ".xml":
        shutil.copy(whole.with_suffix(".bin"), path.with_suffix(".bin"))
    with pytest.raises(ValueError, match=rf"net{ending}"):
        Segmenter(weights=path)


def test_openvino_needs_both_files(exported, tmp_path):
    whole = exported("small", ".xml", False)
    path = tmp_path / "net.xml"
    shutil.copy(whole, path)
    with pytest.raises(ValueError, match=r"there is no exported network .*net.bin"):
        Segmenter(weights=path)
    content = whole.with_suffix(".bin").read_bytes()
    path.with_suffix(".bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"net.xml is not a whole OpenVINO model"):
        Segmenter(weights=path)
    # Of the same network with other weights, as when only one of two files was copied.
    path.with_suffix(".bin").write_bytes(content[:-4] + bytes(4))
    with pytest.raises(WeightsError, match=r"net.bin is of another export than .*net.xml"):
        Segmenter(weights=path)


def test_foreign_files_are_refused(tmp_path, exported):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(exported("small", ".onnx", False)))
    del model.metadata_props[:]
    path = tmp_path / "foreign.onnx"
    onnx.save(model, str(path))
    with pytest.raises(ValueError, match=r"foreign.onnx was not made by `yolact export`"):
        Segmenter(weights=path)


@pytest.mark.parametrize(
    "options",
    [
        {"model": "yolact_base"},
        {"backend": "torch"},
        {"backbone": "resnet101"},
        {"device": "cuda"},
        {"precision": "float16"},
    ],
    ids=str,
)
def test_what_an_export_has_decided_cannot_be_chosen(exported, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}=.* is not allowed"):
        Segmenter(weights=exported("small", ".onnx", False), **options)


@pytest.mark.parametrize(
    ("differs", "told"),
    [
        ({}, None),
        ({"score_difference": 0.006}, "a score differs"),
        ({"box_difference": 1.1}, "an edge of a box"),
        ({"mean_mask_iou": 0.98}, "mean IoU"),
        ({"instances": 0, "matched": 0}, "nothing was compared"),
    ],
)
def test_each_difference_fails_the_check(differs, told):
    same = {"instances": 10, "matched": 10, "score_difference": 0.0, "box_difference": 0.0}
    same |= {"mask_iou": 1.0, "mean_mask_iou": 1.0}
    compared = ImageCheck("a", Agreement(**same | differs), None)
    problems = ExportCheck((compared,), FLOAT).problems
    assert len(problems) == bool(told) and (told or "") in "".join(problems)
