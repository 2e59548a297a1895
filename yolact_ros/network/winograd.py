"""3x3 convolutions with a quarter of the multiplications, for inference in float32 on a CPU.

F(4x4, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), with
their matrices. A tile of 6x6 inputs is transformed to 36 numbers; each goes through its own matrix
product over the channels, and the results are transformed to a tile of 4x4 outputs, which takes 144
products directly. The transforms lose some digits: errors are about five times those of float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from yolact_ros import kernels
from yolact_ros.network.replacing import SameConv2d, is_plain_3x3, replace_convolutions

_MIN_WIDTH = 96
"""Harmonic mean of input and output channels: with fewer, the transforms cost all that is saved."""
_MIN_TILES = 48
_MIN_NUMBERS = 20_000
"""Tiles times input plus output channels: below either minimum, operator overhead dominates."""
_STRIP = 170_000
"""Tiles times input plus output channels that are computed at once, so that they stay in cache."""

_WEIGHT = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


class Scratch:
    """Scratch memory shared by the convolutions of a network, since allocation takes time.

    Such a network is therefore not thread-safe.
    """

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] = {}

    def take(self, part: str, *shape: int) -> Tensor:
        """Return an uninitialised float32 tensor, valid until this part is taken again."""
        count = math.prod(shape)
        if part not in self._parts or len(self._parts[part]) < count:
            with torch.inference_mode(False):  # inference tensors cannot be written to outside it
                self._parts[part] = torch.empty(count, dtype=torch.float32, device="cpu")
        return self._parts[part][:count].view(shape)


class WinogradConv2d(SameConv2d):
    """A 3x3 convolution, stride 1, padding 1, whose weights must not change after the first call.

    It takes only batches [B, C, H, W]. For inputs too small to benefit, and while gradients or a
    graph are recorded, it is an ordinary convolution.
    """

    def __init__(self, conv: nn.Conv2d, scratch: Scratch) -> None:
        super().__init__(conv)
        self._scratch = scratch
        self._transformed: Tensor | None = None  # four times the weight's size, so made on demand

    def forward(self, x: Tensor) -> Tensor:
        if kernels.is_recording() or not self._gains(*x.shape[2:]):
            return super().forward(x)
        if self._transformed is None:
            self._transformed = transform_weight(self.weight)
        return convolve(x, self._transformed, self.bias, self._scratch)

    def _gains(self, height: int, width: int) -> bool:
        tiles = math.ceil(height / 4) * math.ceil(width / 4)
        return tiles >= _MIN_TILES and tiles * sum(_channels(self)) >= _MIN_NUMBERS


def use_winograd(net: nn.Module) -> None:
    """Replace the convolutions of `net` that become faster; parameters keep their names."""
    scratch = Scratch()

    def replacement(conv: nn.Conv2d) -> nn.Conv2d | None:
        if not is_plain_3x3(conv):
            return None
        width = 2 * math.prod(_channels(conv)) / sum(_channels(conv))
        return WinogradConv2d(conv, scratch) if width >= _MIN_WIDTH else None

    replace_convolutions(net, replacement)


def _channels(conv: nn.Conv2d) -> tuple[int, int]:
    return conv.in_channels, conv.out_channels


def transform_weight(weight: Tensor) -> Tensor:
    """Transform a weight [K, C, 3, 3] to [36, C, K], rounded once."""
    matrix = torch.tensor(_WEIGHT, dtype=torch.float64, device=weight.device)
    tiles = torch.einsum("ik,jl,ockl->ijco", matrix, matrix, weight.double())
    return tiles.flatten(0, 1).to(weight.dtype).contiguous()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, scratch: Scratch) -> Tensor:
    """Compute a 3x3 convolution with padding 1: [B, C, H, W] to [B, K, H, W], channels-last.

    `weight` [36, C, K] comes from `transform_weight`.
    """
    batch, channels, height, width = x.shape
    rows, columns = math.ceil(height / 4), math.ceil(width / 4)  # of tiles
    padded = x.new_zeros(batch, 4 * rows + 2, 4 * columns + 2, channels)
    padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
    out = x.new_empty(batch, rows, 4, columns, 4, weight.shape[2])
    strips = math.ceil(rows * columns * (channels + weight.shape[2]) / _STRIP)
    most = math.ceil(rows / strips)
    for image, image_out in zip(padded, out, strict=True):
        for first in range(0, rows, most):
            strip = image_out[first : first + most]
            inputs = image[4 * first : 4 * (first + len(strip)) + 2]
            _convolve_strip(inputs, weight, bias, strip, scratch)
    out = out.view(batch, 4 * rows, 4 * columns, -1)[:, :height, :width]
    return out.permute(0, 3, 1, 2)


def _convolve_strip(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, scratch: Scratch
) -> None:
    """Convolve some rows of tiles: x [4n + 2, 4m + 2, C] to out [n, 4, m, 4, K]."""
    rows, _, columns, _, outputs = out.shape
    height, channels, tiles = len(x), x.shape[2], rows * columns
    # A buffer that is no longer needed is reused two steps later.
    across = scratch.take("odd", 6, height, columns, channels)
    _transform_input(_every_fourth(x), across, scratch.take("sum", height, columns, channels))
    inputs = scratch.take("even", 6, 6, rows, columns, channels)
    _transform_input(_every_fourth(across), inputs, scratch.take("sum", 6, rows, columns, channels))
    products = scratch.take("odd", 36, tiles, outputs)
    torch.bmm(inputs.view(36, tiles, channels), weight, out=products)
    if bias is not None:
        products[7].add_(bias)  # index (1, 1), which enters each of the 16 outputs with weight 1
    down = scratch.take("even", 4, 6, tiles, outputs)
    _transform_output(products.view(6, 6, tiles, outputs), down)
    _transform_output(
        down.view(4, 6, rows, columns, outputs).transpose(0, 1), out.permute(3, 1, 0, 2, 4)
    )


def _every_fourth(x: Tensor) -> list[Tensor]:
    """Return the six inputs of all tiles along axis 1 of x [., 4n + 2, ...], each [., n, ...]."""
    return [x[:, i : i + x.shape[1] - 2 : 4] for i in range(6)]


def _transform_input(d: Sequence[Tensor], v: Tensor, t: Tensor) -> None:
    """v = B^T d: transform six inputs d of tiles, each [...], to v [6, ...]; t [...] is scratch.

    Written out, since shared sums reduce it to twelve operators. `v[2] -= t` would also copy the
    result onto itself.
    """
    torch.sub(d[4], d[2], alpha=4, out=v[2])
    torch.sub(d[3], d[1], alpha=4, out=t)
    torch.add(v[2], t, out=v[1])  # -4 d1 - 4 d2 + d3 + d4
    v[2].sub_(t)  # 4 d1 - 4 d2 - d3 + d4
    torch.sub(d[4], d[2], out=v[4])
    torch.sub(d[3], d[1], out=t)
    torch.sub(d[0], d[2], out=v[0])
    torch.add(v[4], v[0], alpha=4, out=v[0])  # 4 d0 - 5 d2 + d4
    torch.add(v[4], t, alpha=2, out=v[3])  # -2 d1 - d2 + 2 d3 + d4
    v[4].sub_(t, alpha=2)  # 2 d1 - d2 - 2 d3 + d4
    torch.sub(d[5], d[3], out=v[5])
    v[5].sub_(t, alpha=4)  # 4 d1 - 5 d3 + d5


def _transform_output(m: Tensor, y: Tensor) -> None:
    """y = A^T m: transform m [6, ...] of tiles, which is overwritten, to outputs y [4, ...]."""
    torch.sub(m[1], m[2], out=y[1])
    m[1].add_(m[2])
    torch.sub(m[3], m[4], out=m[2])
    m[3].add_(m[4])
    m[0].add_(m[1])
    torch.add(m[0], m[3], out=y[0])  # m0 + m1 + m2 + m3 + m4
    m[5].add_(y[1])
    torch.add(m[5], m[2], alpha=8, out=y[3])  # m1 - m2 + 8 m3 - 8 m4 + m5
    torch.add(m[1], m[3], alpha=4, out=y[2])  # m1 + m2 + 4 m3 + 4 m4
    y[1].add_(m[2], alpha=2)  # m1 - m2 + 2 m3 - 2 m4
