"""Winograd's convolutions against the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from yolact_ros.network import NetworkConfig, build, fold_batch_norm
from yolact_ros.network.winograd import WinogradConv2d, use_winograd

SMALL = NetworkConfig(
    name="small", class_names=("cat", "dog"), backbone="resnet50", image_size=288, fpn_channels=128
)


@pytest.fixture(scope="module")
def conv() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(96, 112, 3, padding=1).requires_grad_(False)


def winograd(conv: nn.Conv2d) -> WinogradConv2d:
    net = nn.Sequential(copy.deepcopy(conv))
    use_winograd(net)
    assert isinstance(net[0], WinogradConv2d)
    return net[0]


@pytest.mark.parametrize("size", [(40, 40), (31, 65), (69, 37), (4, 400), (1, 500), (138, 139)])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_any_size_gives_what_the_plain_one_gives(conv, size, memory_format):
    x = torch.randn(2, 96, *size).to(memory_format=memory_format)
    other = winograd(conv)
    expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    with torch.no_grad():
        found, again = other(x), other(x)
    assert other._transformed is not None  # it was Winograd's
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5 * expected.abs().max())
    assert torch.equal(found, again)


def test_numbers_stay_where_they_belong(conv):
    """A result is not of the memory in which the next one is computed."""
    other, (a, b) = winograd(conv), torch.randn(2, 1, 96, 40, 40)
    with torch.no_grad():
        first = other(a)
        kept = first.clone()
        other(b)
        assert torch.equal(first, kept)
        # What is not finite stays near where it was: within its tile and those beside it.
        a[..., 20, 20] = torch.inf
        far = other(a).isfinite().all(dim=(0, 1))
    assert far[:16].all() and far[28:].all() and far[:, :16].all() and far[:, 28:].all()


def test_inference_mode_comes_and_goes(conv):
    other, x = winograd(conv), torch.randn(1, 96, 40, 40)
    with torch.inference_mode():
        inside = other(x)
    with torch.no_grad():
        assert torch.equal(other(x), inside)
    with torch.inference_mode():
        assert torch.equal(other(x), inside)


def test_without_bias():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(128, 128, 3, padding=1, bias=False), torch.randn(1, 128, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(winograd(conv)(x), conv(x), rtol=0, atol=1e-4)


def test_small_inputs_gradients_and_graphs_take_the_plain_way(conv):
    other = winograd(conv)
    with torch.no_grad():
        other(torch.randn(1, 96, 24, 24))
        program = torch.export.export(other, (torch.randn(1, 96, 64, 64),), strict=False)
    assert "conv2d" in str(program.graph) and "bmm" not in str(program.graph)
    x = torch.randn(1, 96, 64, 64, requires_grad=True)
    other(x).sum().backward()
    assert x.grad is not None and other._transformed is None


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, 5, padding=2),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(128, 16, 3, padding=1),
        nn.Conv2d(64, 64, 3, padding=1),
    ],
    ids=str,
)
def test_others_stay(layer):
    net = nn.Sequential(layer)
    use_winograd(net)
    assert net[0] is layer


@pytest.mark.parametrize("changes", [{}, {"dcn_variant": "interval3"}, {"backbone": "darknet53"}])
def test_a_network_finds_the_same(changes):
    torch.manual_seed(0)
    plain = fold_batch_norm(build(SMALL.replace(**changes))).requires_grad_(False)
    net, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    use_winograd(net)
    assert list(net.state_dict()) == list(plain.state_dict())
    images = torch.randn(1, 3, 288, 288)
    with torch.no_grad():
        found, usual, expected = net(images), plain(images), exact(images.double())
    candidates = [module for module in net.modules() if isinstance(module, WinogradConv2d)]
    assert sum(module._transformed is not None for module in candidates) >= 3
    for name in ("class_logits", "box_offsets", "coefficients", "prototypes"):
        right = getattr(expected, name)
        error, usual_error = ((getattr(each, name) - right).abs().max() for each in (found, usual))
        assert error < 5 * usual_error, name
