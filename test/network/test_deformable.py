"""Deformable convolution against its definition, one sample at a time."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from yolact_ros.network import deformable
from yolact_ros.network.deformable import DeformableConv2d


def bilinear(image: list[list[float]], y: float, x: float) -> float:
    """The value between the pixels; zero beyond the image."""
    top, left = math.floor(y), math.floor(x)
    total = 0.0
    for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
        for column, column_weight in ((left, left + 1 - x), (left + 1, x - left)):
            if 0 <= row < len(image) and 0 <= column < len(image[0]):
                total += row_weight * column_weight * image[row][column]
    return total


def plain(conv: DeformableConv2d, x: torch.Tensor) -> torch.Tensor:
    """Dai et al., equation 2; with modulation Zhu et al., equation 1."""
    learned = conv.offsets(x)[0].tolist()
    images, weight, bias = x[0].tolist(), conv.weight.tolist(), conv.bias.tolist()
    height, width = len(learned[0]), len(learned[0][0])
    result = torch.empty(1, len(weight), height, width)
    for o in range(len(weight)):
        for i in range(height):
            for j in range(width):
                total = bias[o]
                for k in range(9):
                    y = i * conv.stride - 1 + k // 3 + learned[2 * k][i][j]
                    x_ = j * conv.stride - 1 + k % 3 + learned[2 * k + 1][i][j]
                    factor = 1.0
                    if conv.modulated:
                        factor = 1 / (1 + math.exp(-learned[18 + k][i][j]))
                    for c, image in enumerate(images):
                        total += weight[o][c][k // 3][k % 3] * factor * bilinear(image, y, x_)
                result[0, o, i, j] = total
    return result


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
def test_definition(version, stride, gradients):
    torch.manual_seed(version * 10 + stride)
    conv = DeformableConv2d(3, 2, stride=stride, version=version)
    nn.init.normal_(conv.bias)
    nn.init.normal_(conv.offsets.weight, std=0.4)  # offsets of a few pixels, some out of the image
    nn.init.normal_(conv.offsets.bias)
    x = torch.randn(1, 3, 7, 5)
    with torch.set_grad_enabled(gradients):
        found = conv(x)
    assert found.requires_grad == gradients
    torch.testing.assert_close(found.detach(), plain(conv, x), rtol=1e-4, atol=1e-5)
    assert conv.offsets.out_channels == (18 if version == 1 else 27)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_inference_and_training_agree(version, stride, layout):
    """In batches, at any distance: just inside, on the border, just and far outside."""
    torch.manual_seed(1)
    conv = DeformableConv2d(40, 24, stride=stride, version=version).to(memory_format=layout)
    nn.init.normal_(conv.bias)
    nn.init.normal_(conv.offsets.weight, std=0.3)
    conv.offsets.bias.data[:18] = torch.tensor([0, 0.5, 1, -1, 2, -2, 1e-6, -17, 60] * 2)
    x = torch.randn(3, 40, 17, 12).to(memory_format=layout)
    with torch.no_grad():
        found = conv(x)
    torch.testing.assert_close(found, conv(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_an_offset_that_overflows_spoils_no_other_pixel(value):
    torch.manual_seed(1)
    conv = DeformableConv2d(4, 3)
    nn.init.normal_(conv.offsets.weight, std=0.1)
    x = torch.randn(1, 4, 9, 9)
    with torch.no_grad():
        expected = conv(x)
        row = torch.tensor(4)
        conv.offsets.register_forward_hook(lambda *call: call[2].index_fill(2, row, value))
        found = conv(x)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(found[:, :, others], expected[:, :, others])


@pytest.mark.parametrize("version, gain", [(1, 1.0), (2, 0.5)])
def test_starts_as_a_plain_convolution(version, gain):
    conv = DeformableConv2d(4, 5, stride=2, version=version)
    x = torch.randn(2, 4, 9, 11)
    with torch.no_grad():
        expected = nn.functional.conv2d(x, conv.weight, stride=2, padding=1) * gain
        torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_gradients_reach_every_parameter(version):
    conv = DeformableConv2d(3, 4, version=version)
    nn.init.normal_(conv.offsets.bias, std=0.3)
    conv(torch.randn(1, 3, 6, 6)).square().sum().backward()
    for name, parameter in conv.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("version", [1, 2])
def test_bfloat16(version):
    torch.manual_seed(0)
    conv = DeformableConv2d(4, 3, version=version)
    nn.init.normal_(conv.offsets.bias, std=0.5)
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        expected = conv(x)
        found = conv.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("version", [1, 2])
def test_exports_keep_the_operator_that_runtimes_know(version):
    conv, x = DeformableConv2d(4, 3, version=version).eval(), (torch.randn(1, 4, 8, 8),)
    with torch.no_grad():
        exported = torch.export.export(conv, x)
        traced = torch.jit.trace(conv, x)
    operators = {str(node.target) for node in exported.graph.nodes}
    assert "torchvision.deform_conv2d.default" in operators
    assert "torchvision::deform_conv2d" in str(traced.inlined_graph)
    assert not any("embedding_bag" in name for name in (*operators, str(traced.inlined_graph)))


@pytest.mark.parametrize("release", ["0.28.1", "0.9.0a0+8eafa9c", "0.29.0"])
def test_a_cuda_graph_without_the_operator_is_refused(release, monkeypatch):
    capturing = [False]
    monkeypatch.setattr(deformable, "version", lambda _: release)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    deformable.refuse_capture(torch.zeros(1))
    with FakeTensorMode():
        x = torch.zeros(1, device="cuda")
    deformable.refuse_capture(x)
    capturing[0] = True
    if release == "0.29.0":
        deformable.refuse_capture(x)
    else:
        with pytest.raises(RuntimeError, match=rf"torchvision {re.escape(release)} runs"):
            deformable.refuse_capture(x)


def test_mixed_precision():
    conv = DeformableConv2d(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.randn(1, 4, 8, 8)).isfinite().all()
