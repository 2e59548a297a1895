"""Weight gradients of 3x3 convolutions by matrix products, for training in float32 on a CPU.

Without AVX-512, PyTorch's (oneDNN's) weight gradient of such a convolution takes two to four times
as long as the convolution itself, the largest part of an iteration. As nine matrix products it
takes about as long as the convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from yolact_ros.network.replacing import SameConv2d, is_plain_3x3, replace_convolutions

_MIN_CHANNELS = 32
"""Input and output channels: with fewer, the matrices are too narrow for the full rate."""


class MatrixGradientConv2d(SameConv2d):
    """A 3x3 convolution, stride 1, padding 1, whose weight gradient uses matrix products."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Convolution.apply(x, self.weight, self.bias)
        return out


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            conv2d_input(x.shape, weight, gradient, padding=1) if of_x else None,
            weight_gradient(x, gradient) if of_weight else None,
            gradient.sum((0, 2, 3)) if of_bias else None,
        )


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Compute the weight gradient [K, C, 3, 3] from inputs [B, C, H, W] and the outputs' gradient
    [B, K, H, W].

    Both are flattened to rows of pixels and padded alike, so that each tap of the kernel is a shift
    by a fixed number of rows; values shifted across borders meet zeros.
    """
    (_, inputs, _, width), outputs = x.shape, gradient.shape[1]
    rows = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).reshape(-1, inputs)
    factors = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, 2, 0, 2)).reshape(-1, outputs)
    count = len(rows) - 2 * (width + 2) - 2
    factors = factors[:count].t()
    out = x.new_empty(3, 3, outputs, inputs)
    for i in range(3):
        for j in range(3):
            shift = i * (width + 2) + j
            torch.mm(factors, rows[shift : shift + count], out=out[i, j])
    return out.permute(2, 3, 0, 1)


def use_matrix_gradients(net: nn.Module) -> None:
    """Replace the convolutions of `net` that train faster this way; parameters keep their names."""

    def replacement(conv: nn.Conv2d) -> nn.Conv2d | None:
        gains = is_plain_3x3(conv) and min(conv.in_channels, conv.out_channels) >= _MIN_CHANNELS
        return MatrixGradientConv2d(conv) if gains else None

    replace_convolutions(net, replacement)
