"""The losses agree with those of the published implementation."""

import importlib.util
import json

import pytest
import torch

from yolact_ros.engine.preprocess import preprocess
from yolact_ros.network import build, official_name
from yolact_ros.training.losses import (
    LossSettings,
    class_loss_sum,
    compute_losses,
    crop_window,
    mask_loss,
)
from yolact_ros.training.matching import Matching
from yolact_ros.training.targets import Target

LETTERS = {"boxes": "B", "masks": "M", "classes": "C", "semantic": "S", "mask_iou": "I"}
STORED = ("yolact_resnet50", "yolact_plus_resnet50")


@pytest.fixture(scope="module")
def reference(shared):
    path = shared / "reference" / "reference_weights.py"
    spec = importlib.util.spec_from_file_location("reference_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference_target(reference, config, seed, crowd):
    size = config.image_size
    boxes, labels, masks = map(
        torch.from_numpy, reference.targets(size, size, seed, num_classes=config.num_classes)
    )
    last = len(labels) - crowd
    return Target(boxes[:last], labels[:last], masks[:last], boxes[last:])


@pytest.mark.parametrize("name", STORED)
def test_losses_and_gradients_are_the_published_ones(shared, reference, name):
    wanted = json.loads((shared / "reference" / f"{name}.losses.json").read_text())
    net = build(name)
    with torch.no_grad():
        for key, value in [*net.named_parameters(), *net.named_buffers()]:
            if key != "anchors":
                official = official_name(key)
                value.copy_(torch.from_numpy(reference.fill(official, tuple(value.shape))))
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    size = net.config.image_size
    images = [torch.from_numpy(reference.image(size, size, seed)) for seed in (7, 8)]
    targets = [reference_target(reference, net.config, seed, seed == 8) for seed in (7, 8)]

    losses = compute_losses(net, net(preprocess(images, net.config)), targets)
    losses.total.backward()

    ours = {LETTERS[key]: loss.item() for key, loss in losses.items().items()}
    assert ours == pytest.approx(wanted["losses"], rel=1e-3)
    gradients = {official_name(key): p.grad for key, p in net.named_parameters()}
    norms = {key: gradients[key].norm().item() for key in wanted["gradient_norms"]}
    assert norms == pytest.approx(wanted["gradient_norms"], rel=1e-3)
