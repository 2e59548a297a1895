"""Convolutions with bias, shortcut and ReLU in one step against the same in several."""

from __future__ import annotations

import dataclasses
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolact_ros.network import NetworkConfig, Predictions, build, fold_batch_norm, load_weights
from yolact_ros.network.fusing import FusedConv2d, cudnn, fuse_convolutions
from yolact_ros.network.yolact import MaskIoUNet

SMALL = NetworkConfig(
    name="small",
    class_names=("cat", "dog"),
    backbone="resnet50",
    image_size=64,
    fpn_channels=16,
)


class OneStep:
    """What cuDNN does, for tensors on any device; remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[nn.Conv2d, Tensor | None]] = []

    def __call__(self, x: Tensor, conv: nn.Conv2d, shortcut: Tensor | None) -> Tensor:
        self.calls.append((conv, shortcut))
        y = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
        return F.relu(y if shortcut is None else y + shortcut)


def assert_same(found: Predictions, expected: Predictions, tolerance: float) -> None:
    for field in dataclasses.fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if b is not None:
            error = (a.float() - b.float()).abs().max() / b.float().abs().max()
            assert error < tolerance, field.name


# The stem, three layers a block but those that are deformable, then the parts after the backbone:
# three of the pyramid, five of the prototypes and five levels of the head.
AFTER = 3 + 5 + 5


@pytest.mark.parametrize(
    "changes, fused, shortcuts",
    [
        ({}, 1 + 16 * 3 + AFTER, 16),
        ({"dcn_variant": "interval3"}, 1 + 16 * 3 - 5 + AFTER, 16),
        ({"backbone": "darknet53"}, AFTER, 0),
        ({"backbone": "efficientnet_lite0"}, AFTER, 0),
    ],
    ids=str,
)
def test_the_layers_before_a_relu_are_fused_and_outputs_stay(changes, fused, shortcuts):
    torch.manual_seed(0)
    plain = fold_batch_norm(build(SMALL.replace(**changes)))
    net, one_step = fold_batch_norm(plain), OneStep()
    fuse_convolutions(net, one_step)
    assert not net.training and not any(module.training for module in net.modules())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = plain(images)
        assert_same(net(images), expected, 1e-5)  # while both ways are compared
        one_step.calls.clear()
        assert_same(net(images), expected, 1e-5)
    assert len(one_step.calls) == fused
    assert sum(shortcut is not None for _, shortcut in one_step.calls) == shortcuts
    by_weight = {id(p): name for name, p in net.named_parameters()}
    names = [by_weight[id(conv.weight)] for conv, _ in one_step.calls]
    assert names.count("head.shared.weight") == 5 and len(set(names)) == fused - 4
    assert not any("offsets" in name or "downsample" in name for name in names)


def test_rescoring_is_fused():
    net, one_step = MaskIoUNet(num_classes=2).eval(), OneStep()
    masks = torch.rand(3, 1, 138, 138)
    with torch.no_grad():
        expected = net(masks)
        fuse_convolutions(net, one_step)
        net(masks)
        one_step.calls.clear()
        torch.testing.assert_close(net(masks), expected)
    assert len(one_step.calls) == 6
    with torch.no_grad():
        assert net(masks[:0]).shape == (0, 2)  # nothing was found


def test_weights_keep_their_names():
    net = fold_batch_norm(build(SMALL))
    before = net.state_dict()
    fuse_convolutions(net, OneStep())
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(after[name] is not None and torch.equal(after[name], before[name]) for name in after)
    load_weights(net, {name: value + 1 for name, value in before.items()})
    assert torch.equal(net.semantic.bias, before["semantic.bias"])  # the same memory


def test_gradients_and_graphs_take_the_plain_way():
    net, one_step = fold_batch_norm(build(SMALL)), OneStep()
    fuse_convolutions(net, one_step)
    images = torch.randn(1, 3, 64, 64)
    net(images).class_logits.sum().backward()
    assert net.backbone.conv1.weight.grad is not None
    with torch.no_grad():
        program = torch.export.export(net.protonet, (torch.randn(1, 16, 8, 8),), strict=False)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.relu.default" in operators and "aten.relu_.default" not in operators
    assert not one_step.calls


def half_of(x: Tensor, conv: nn.Conv2d, shortcut: Tensor | None) -> Tensor:
    return OneStep()(x, conv, shortcut) / 2


@pytest.mark.parametrize(
    "fused, reason",
    # On a CPU cuDNN's refuses the device, not the arguments.
    [(cudnn, "Could not run 'aten::cudnn_convolution_"), (half_of, "differ by 0.")],
    ids=["fails", "errs"],
)
def test_what_fails_or_errs_is_not_taken_again(fused, reason):
    plain = fold_batch_norm(build(SMALL))
    net = fold_batch_norm(plain)
    fuse_convolutions(net, fused)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = plain(images)
        with pytest.warns(RuntimeWarning, match="fused convolution is not used for") as told:
            assert_same(net(images), expected, 1e-6)
        assert reason in str(told[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same(net(images), expected, 1e-6)


def test_both_ways_are_tried_wherever_cudnn_chooses_anew():
    """The fused one twice: in its first call cuDNN may search, and write results of others."""
    layer, one_step = nn.Sequential(nn.Conv2d(2, 3, 3)), OneStep()
    fuse_convolutions(layer, one_step)
    conv, x = layer[0], torch.randn(1, 2, 8, 8)
    with torch.no_grad():
        for _ in range(2):
            conv.convolve_relu(x, None)
        assert len(one_step.calls) == 2 + 2
        conv.convolve_relu(torch.randn(1, 2, 9, 8), None)
        assert len(one_step.calls) == 4 + 3
    with ThreadPoolExecutor(1) as thread:
        thread.submit(torch.no_grad()(conv.convolve_relu), x, None).result()
    assert len(one_step.calls) == 7 + 3


def test_too_little_memory_says_nothing_of_the_kernel():
    answers = iter(("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", *3 * [""]))

    def fused(x: Tensor, conv: nn.Conv2d, shortcut: Tensor | None) -> Tensor:
        if message := next(answers):
            raise RuntimeError(message)
        return OneStep()(x, conv, shortcut)

    layer = nn.Sequential(nn.Conv2d(2, 3, 3))
    fuse_convolutions(layer, fused)
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="ALLOCATION_FAILED"):
            layer[0].convolve_relu(torch.randn(1, 2, 8, 8), None)
        layer[0].convolve_relu(torch.randn(1, 2, 8, 8), None)
    assert next(answers, None) is None


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_cudnn_fuses_all_of_them(dtype):
    torch.manual_seed(0)
    plain = fold_batch_norm(build(SMALL)).to("cuda", dtype).to(memory_format=torch.channels_last)
    plain.head.bounded = False  # with fresh weights tanh would be of large numbers
    net = fold_batch_norm(plain)
    fuse_convolutions(net)
    images = torch.randn(2, 3, 64, 64, device="cuda", dtype=dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = plain(images)
        net(images)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = net(images)
        graph.replay()
        torch.cuda.synchronize()
    assert_same(found, expected, 0.1 if dtype == torch.bfloat16 else 0.02)
    used = [module for module in net.modules() if isinstance(module, FusedConv2d)]
    assert any(module._agrees for module in used)
