"""Others beside ours: who is compared with whom, and what the report says of it."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import cv2
import pytest
import torch

from yolact_ros.benchmark import side_by_side as module
from yolact_ros.benchmark.contender import Contender, Found
from yolact_ros.benchmark.models import prepare
from yolact_ros.benchmark.plot import plot
from yolact_ros.benchmark.report import Machine, Report, to_markdown, write_json
from yolact_ros.benchmark.settings import Settings
from yolact_ros.benchmark.side_by_side import references_of, side_by_side
from yolact_ros.benchmark.weights import random_network
from yolact_ros.engine import Segmenter, preprocess
from yolact_ros.network import EMBEDDED, save_weights

TINY = EMBEDDED.replace(name="tiny", image_size=128, fpn_channels=16, mask_rescoring=False)
PAUSE = 0.3


@pytest.fixture(scope="module")
def weights(image, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_weights(random_network(TINY, preprocess([torch.from_numpy(image)], TINY)), path)
    return path


@pytest.fixture
def settings(weights, image):
    return Settings((str(weights),), image, backends=("torch",), rounds=3, seconds=30)


def slow(name, weights):
    """The same network, by whoever takes his time."""
    segmenter = Segmenter(weights=weights, device="cpu", backend="torch", score_threshold=0)

    def segment(image):
        time.sleep(PAUSE)
        found = segmenter(image)
        return Found.of(found)._replace(boxes=found.integer_boxes())

    return Contender(name, segment)


def test_ours_is_compared_with_the_one_of_the_same_weights(settings, weights, image, tmp_path):
    models = prepare(settings, tmp_path)
    name = models[0].name
    reference, other = slow("published", weights), slow("another", weights)
    found = side_by_side(models, {name: reference}, [other], settings)
    assert [each.name for each in found] == [f"ours {name}", "published", "another"]
    ours, theirs, alone = found
    assert theirs.speed_up is None and alone.agreement is None
    assert ours.speed_up == theirs.timing.median / ours.timing.median
    assert theirs.timing.median > ours.timing.median and ours.instances == theirs.instances > 0
    assert ours.agreement.matched == ours.instances and ours.agreement.mask_iou > 0.99
    machine = Machine("a processor", 2, "the CPU", "PyTorch", {})
    report = Report("bench", machine, image.shape[:2], 0.0, (), found)
    table = to_markdown(report)
    assert f"ours {name}: {ours.speed_up:.2f} times as fast as the published" in table
    assert f"{ours.instances} of {ours.instances} instances are the same" in table
    write_json(report, tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())["side_by_side"]
    assert [each["timing"]["median"] for each in written] == [each.timing.median for each in found]
    plot(report, tmp_path / "report.png")
    assert cv2.imread(str(tmp_path / "report.png")).std() > 0


def test_ours_alone_are_no_comparison(settings, tmp_path):
    assert side_by_side(prepare(settings, tmp_path), {}, [], settings) == ()


def test_each_published_model_has_one_reference_of_its_weights(monkeypatch):
    """Exported ones, whose weights cannot be read, that of the first of their configuration."""
    made = []

    def published(checkout, net, device, score):
        made.append(net)
        return Contender("published a", lambda image: None)

    monkeypatch.setattr(module, "published", published)
    monkeypatch.setattr(module, "is_published", lambda config: config.name == "a")
    monkeypatch.setattr(module, "_network_of", lambda model: model.weights)

    def model(name, config, weights, is_exported=False):
        segmenter = SimpleNamespace(device=torch.device("cpu"))
        config = SimpleNamespace(name=config)
        return SimpleNamespace(
            name=name, config=config, weights=weights, is_exported=is_exported, segmenter=segmenter
        )

    models = [
        model("exported", "a", "a.onnx", is_exported=True),
        model("torch", "a", "one"),
        model("openvino", "a", "one"),
        model("trained", "a", "two"),
        model("own", "b", "three"),
    ]
    settings = SimpleNamespace(reference="checkout", score_threshold=0.0)
    found = references_of(models, settings)
    assert made == ["one", "two"] and set(found) == {"exported", "torch", "openvino", "trained"}
    assert found["exported"] is found["torch"] is found["openvino"]
    assert found["trained"].name == "published a, two on cpu"
    settings.reference = None
    assert references_of(models, settings) == {}
