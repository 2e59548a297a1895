"""Gradients by matrix products are those of PyTorch's convolution."""

import copy

import pytest
import torch
from torch import nn

from yolact_ros.network import EMBEDDED, build
from yolact_ros.training.convolution import MatrixGradientConv2d, use_matrix_gradients


def run(conv, x, factors):
    """The outputs, and the gradients of the inputs and of the parameters."""
    x = x.clone().requires_grad_()
    conv.zero_grad()
    out = conv(x)
    (out * factors).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in conv.parameters())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("size", [(7, 5), (1, 1), (2, 9)])
def test_gradients(size, layout, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=bias).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=layout)
    factors = torch.randn(2, 4, *size, dtype=torch.float64)
    expected = run(conv, x, factors)
    torch.testing.assert_close(run(MatrixGradientConv2d(conv), x, factors), expected)


@pytest.mark.parametrize("learns", ["weight", "bias", "input"])
def test_only_what_learns_has_a_gradient(learns):
    conv = MatrixGradientConv2d(nn.Conv2d(3, 4, 3, padding=1)).requires_grad_(False)
    x = torch.randn(1, 3, 6, 6)
    parameters = dict(conv.named_parameters()) | {"input": x}
    parameters[learns].requires_grad_()
    conv(x).sum().backward()
    assert [name for name, p in parameters.items() if p.grad is not None] == [learns]


def test_a_network_learns_the_same():
    torch.manual_seed(0)
    plain = build(EMBEDDED, image_size=96, mask_rescoring=False).double().train()
    fast = copy.deepcopy(plain)
    use_matrix_gradients(fast)
    replaced = [name for name, m in fast.named_modules() if isinstance(m, MatrixGradientConv2d)]
    assert "head.shared" in replaced and not any("backbone" in name for name in replaced)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    x = torch.rand(2, 3, 96, 96).double().to(memory_format=torch.channels_last)
    copied = copy.deepcopy(fast)  # as that of averaged weights
    for net in (plain, copied):
        sum(out.pow(2).sum() for out in vars(net(x)).values() if out is not None).backward()
    assert all(p.grad is None for p in fast.parameters())
    found = dict(copied.named_parameters())
    for name, p in plain.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name].grad, p.grad, rtol=1e-6, atol=1e-6)
