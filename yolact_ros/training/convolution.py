"""Gradients of 3x3 convolutions by matrix products, for training in float32 on a CPU.

Without AVX-512, PyTorch's (oneDNN's) gradient of such a convolution's weight takes two to four
times as long as the convolution itself, the largest part of an iteration. As nine matrix products
it takes about as long.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from yolact_ros.network.replacing import SameConv2d, is_plain_3x3, replace_convolutions

_MIN_CHANNELS = 32
"""In and out: with fewer, the matrices are too narrow to be multiplied at full rate."""


class MatrixGradientConv2d(SameConv2d):
    """A 3x3 convolution, stride 1, padding 1, with this gradient of its weight."""

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
    """Gradient [K, C, 3, 3] of the weight; inputs [B, C, H, W], outputs' gradient [B, K, H, W].

    Both become rows of pixels, padded alike so that each place of the window is a shift by a
    certain number of rows; what the shift brings to the borders meets zeros.
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
    """Replace those convolutions of `net` that learn faster; parameters keep their names."""

    def replacement(conv: nn.Conv2d) -> nn.Conv2d | None:
        gains = is_plain_3x3(conv) and min(conv.in_channels, conv.out_channels) >= _MIN_CHANNELS
        return MatrixGradientConv2d(conv) if gains else None

    replace_convolutions(net, replacement)
