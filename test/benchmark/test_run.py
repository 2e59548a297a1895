"""A whole benchmark of small networks: what fails is named, and each has the ceilings for it."""

import dataclasses
import importlib.util
import json
import shutil
import time

import pytest
import torch

from yolact_ros.benchmark.models import prepare
from yolact_ros.benchmark.node import node_can_run
from yolact_ros.benchmark.plot import plot
from yolact_ros.benchmark.report import to_markdown, write_json
from yolact_ros.benchmark.run import describe_machine, run
from yolact_ros.benchmark.settings import Settings
from yolact_ros.benchmark.weights import random_network
from yolact_ros.benchmark.work import measure_ceilings
from yolact_ros.engine import Segmenter, preprocess
from yolact_ros.export import export
from yolact_ros.network import EMBEDDED, WeightsError, save_weights

TINY = EMBEDDED.replace(
    name="tiny",
    class_names=("cat", "dog", "person"),
    image_size=128,
    fpn_channels=16,
    mask_rescoring=False,
)
QUICK = {"rounds": 1, "seconds": 0.1, "memory": False, "node": False}


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """Data types whose ceilings were measured, with small products: these take seconds."""
    found = []

    def measure(device, dtype, clock=time.perf_counter):
        found.append(dtype)
        return measure_ceilings(device, dtype, size=128, clock=clock)

    monkeypatch.setattr("yolact_ros.benchmark.run.measure_ceilings", measure)
    return found


@pytest.fixture(scope="module")
def tiny_weights(image, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_weights(random_network(TINY, preprocess([torch.from_numpy(image)], TINY)), path)
    return path


def test_a_part_that_fails_leaves_the_rest(tiny_weights, image, tmp_path):
    weights = tmp_path / "net.safetensors"
    shutil.copy(tiny_weights, weights)
    told = []

    def say(text):
        told.append(text)
        if text == "ceilings":  # all models are loaded; the processes to come find no file
            weights.unlink()

    settings = Settings((str(weights),), image, backends=("torch",), rounds=1, seconds=0.1)
    (tmp_path / "yolact.py").touch()  # of a checkout, which is not looked into
    report = run(dataclasses.replace(settings, reference=tmp_path), "bench", say)
    assert any("nothing published with its weights to compare with" in text for text in told)
    (model,) = report.models
    assert model.single.total.median > 0 and model.single.limit > 0
    assert "net.safetensors" in model.memory and "\n" not in model.memory
    assert any("Traceback" in text for text in told), "all that the process wrote is shown"
    write_json(report, tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["models"][0]["memory"] == model.memory
    table = to_markdown(report)
    assert f"Memory of {model.name}: not measured: {model.memory}" in table
    single = dataclasses.replace(model.single, flops=10**9, bytes=10**6, limit=model.single.network)
    four = dataclasses.replace(single, images=4, flops=4 * 10**9, limit=single.network / 2)
    model = dataclasses.replace(model, single=single, best=four, memory=None)
    lines = to_markdown(dataclasses.replace(report, models=(model,))).splitlines()
    rows = [[cell.strip() for cell in row.split("|")] for row in lines if f"| {model.name}" in row]
    assert [row[1] for row in rows] == [model.name, f"{model.name}, batch 4"]
    assert [(row[2], row[3], row[6]) for row in rows] == [
        ("1.0", "1", "1.00"),
        ("1.0", "0", "2.00"),
    ]
    reason = written["models"][0]["node"]
    assert f"The node with tiny, torch, float32: not measured: {reason}" in table
    assert "\n" not in reason
    if node_can_run():
        assert "net.safetensors" in reason


def test_models_of_one_configuration_are_told_apart(tiny_weights, image, tmp_path):
    other = tmp_path / tiny_weights.name  # as those of two trainings are called the same
    shutil.copy(tiny_weights, other)
    settings = Settings((str(tiny_weights), str(other)), image, backends=("torch",), **QUICK)
    models = prepare(settings, tmp_path)
    assert [model.name for model in models] == [
        f"tiny, torch, float32, {tiny_weights}",
        f"tiny, torch, float32, {other}",
    ]
    twice = dataclasses.replace(settings, models=(str(other), str(other)))
    assert len(prepare(twice, tmp_path)) == 1


def test_a_path_may_have_an_equals_sign(tiny_weights, image, tmp_path):
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    path = str(shutil.copy(tiny_weights, folder))
    settings = Settings((path,), image, backends=("torch",), **QUICK)
    (model,) = prepare(settings, tmp_path)
    assert model.weights == path
    for spec, message in (
        (str(folder / "gone.safetensors"), r"no weight file .*lr=0\.1/gone\.safetensors"),
        (f"{EMBEDDED.name}={path}", f"does not fit the model {EMBEDDED.name}"),
    ):
        with pytest.raises(WeightsError, match=message):
            prepare(dataclasses.replace(settings, models=(spec,)), tmp_path)


def test_ceilings_are_of_what_each_network_computes_in(tiny_weights, asked):
    precisions = ("float32", "bfloat16", "float32")
    segmenters = [
        Segmenter(weights=tiny_weights, device="cpu", backend="torch", precision=precision)
        for precision in precisions
    ]
    ceilings = describe_machine([each.runtime for each in segmenters]).ceilings
    assert list(ceilings) == ["float32 on cpu", "bfloat16 on cpu"], "each kind once"
    assert asked == [torch.float32, torch.bfloat16]


def test_networks_in_8_bits_have_no_ceiling(tiny_weights, image, repository, tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    path = tmp_path / "int8.xml"
    photos = sorted((repository / "yolact_ros/demo/photos").glob("*.jpg"))[:1]
    original = Segmenter(weights=tiny_weights, device="cpu", backend="torch")
    export(original, path, {"a": image}, precision="int8", calibration=photos, keep_anyway=True)
    report = run(Settings((str(path),), image, **QUICK), "bench", lambda _: None)
    (model,) = report.models
    single = model.single
    assert report.machine.ceilings == {} and single.limit is None and single.bytes is None
    assert single.flops > 0 and single.network > 0
    table = to_markdown(report)
    assert "matrix product and copy: not measured" in table and "| not measured |" in table
    plot(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra openvino")
def test_what_the_node_lacks_is_said(tiny_weights, image, monkeypatch):
    monkeypatch.setattr("yolact_ros.benchmark.run.node_can_run", lambda: False)
    settings = Settings((str(tiny_weights),), image, **(QUICK | {"node": True}))
    table = to_markdown(run(settings, "bench", lambda _: None))
    assert "not measured: that needs ROS 2 and the built package" in table


@pytest.mark.skipif(not node_can_run(), reason="needs ROS 2 and the messages of this package")
def test_the_node_is_measured_with_each_model(tiny_weights, image, tmp_path, monkeypatch):
    monkeypatch.setattr("yolact_ros.benchmark.node.FRAMES", 3)
    monkeypatch.setattr("yolact_ros.benchmark.node.RATE", 60)
    path = tmp_path / "detection.xml"
    original = Segmenter(weights=tiny_weights, device="cpu", backend="torch")
    export(original, path, {"a": image}, detection=True, keep_anyway=True)
    both = (str(tiny_weights), str(path))
    report = run(Settings(both, image, **(QUICK | {"node": True})), "b", lambda _: None)
    for model in report.models:
        assert isinstance(model.node, dict), model.node
        own = model.node["own work"].median
        assert 0 < model.node["publish"].median < own
        assert f"{own:.2f}" in to_markdown(report) or f"{own:.1f}" in to_markdown(report)
    assert to_markdown(report).count("| node: publish") == len(report.models) == 2
