"""A network with folded batch norm does what the whole network does."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from yolact_ros.network import NetworkConfig, WeightsError, build, fold_batch_norm, load_weights
from yolact_ros.network.deformable import DeformableConv2d

SMALL = NetworkConfig(
    name="small", class_names=("cat", "dog"), backbone="resnet50", image_size=96, fpn_channels=16
)


def as_trained(config: NetworkConfig) -> nn.Module:
    """A network with batch norms and offsets as training leaves them: none is trivial."""
    torch.manual_seed(3)
    net = build(config)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.4, 1.2)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 3.0)
        elif isinstance(module, DeformableConv2d):
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.offsets.weight, std=0.01)
            nn.init.normal_(module.offsets.bias)
    return net


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"backbone": "resnet101"},
        {"backbone": "darknet53"},
        {"backbone": "efficientnet_lite0"},
        {"dcn_variant": "all", "dcn_version": 1},
        {"dcn_variant": "interval3", "dcn_version": 2},
    ],
    ids=str,
)
def test_outputs_stay(changes):
    # In float32, how far roundings carry depends on the processor.
    net = as_trained(SMALL.replace(**changes)).double()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    folded = fold_batch_norm(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert folded.config == net.config and not folded.training
    with torch.no_grad():
        expected, found = net(images), folded(images)
    for field in dataclasses.fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if b is not None:
            assert b.std() > 0
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * float(b.abs().max()))
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_training_mode_is_refused():
    net = build(SMALL)
    net.backbone.layers[1].train()
    with pytest.raises(ValueError, match=r"evaluation mode only: call net.eval\(\)"):
        fold_batch_norm(net)


def test_weights_come_before():
    net = build(SMALL)
    with pytest.raises(WeightsError, match=r"unexpected: backbone\.bn1\.weight"):
        load_weights(fold_batch_norm(net), net.state_dict())
