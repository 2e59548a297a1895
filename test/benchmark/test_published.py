"""The published implementation beside ours, where there is a checkout of it."""

import os
import sys
from pathlib import Path

import pytest
import torch

from yolact_ros.benchmark.agreement import compare
from yolact_ros.benchmark.contender import Found
from yolact_ros.benchmark.published import load, published
from yolact_ros.benchmark.side_by_side import is_published
from yolact_ros.benchmark.weights import random_network
from yolact_ros.engine import Segmenter, preprocess
from yolact_ros.network import PUBLISHED, build, save_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkout():
    folder = os.environ.get("YOLACT_PUBLISHED")
    if not folder:
        pytest.skip("needs a checkout of github.com/dbolya/yolact (YOLACT_PUBLISHED)")
    return Path(folder)


@pytest.mark.parametrize("model", ["yolact_resnet50", "yolact_plus_resnet50"])
@torch.no_grad()
def test_the_same_weights_find_the_same(model, checkout, image, tmp_path):
    config = PUBLISHED[model]
    net = random_network(config, preprocess([torch.from_numpy(image)], config))
    save_weights(net, tmp_path / "net.safetensors")
    segmenter = Segmenter(weights=tmp_path / "net.safetensors", backend="torch", score_threshold=0)
    ours = segmenter(image)
    theirs = published(checkout, net, CPU, 0.0).segment(image)
    result = compare(Found.of(ours)._replace(boxes=ours.integer_boxes()), theirs)
    assert result.instances == 100
    assert result.matched >= 98
    assert result.score_difference < 0.01
    assert not {"yolact", "data", "layers", "utils", "backbone"} & set(sys.modules)


def test_no_tensor_stays_behind_on_the_cpu(checkout, image):
    # On the meta device any device but the CPU is tried without having it: whatever is made on the
    # wrong one raises. The first step that cannot be done there comes after the network.
    net = build("yolact_plus_resnet50")
    with pytest.raises(NotImplementedError, match="nonzero"):
        load(checkout, net, torch.device("meta"), 0.0)(image)


def test_nothing_found_and_pycocotools_not_installed(checkout, image, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    net = build("yolact_plus_resnet50")
    found = published(checkout, net, CPU, 1.0).segment(image)
    assert found.boxes.shape == (0, 4) and found.masks.shape == (0, *image.shape[:2])


@pytest.mark.parametrize(
    "changes, is_one",
    [
        ({}, True),
        ({"class_names": tuple(map(str, range(80)))}, True),
        ({"image_size": 160}, False),
        ({"class_names": ("cat", "dog")}, False),
        ({"name": "own"}, False),
    ],
    ids=str,
)
def test_what_was_trained_from_a_published_model_is_not_held_to_it(changes, is_one):
    """It keeps the name."""
    assert is_published(PUBLISHED["yolact_resnet50"].replace(**changes)) == is_one


def test_a_folder_that_is_no_checkout(tmp_path):
    net = build("yolact_resnet50")
    with pytest.raises(FileNotFoundError, match=r"no yolact\.py"):
        published(tmp_path, net, CPU, 0.0)


def test_a_model_that_it_lacks(small_net, tmp_path):
    with pytest.raises(ValueError, match="'small'"):
        published(tmp_path, small_net, CPU, 0.0)
