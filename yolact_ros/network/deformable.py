"""Deformable convolution (Dai et al., 2017; modulated: Zhu et al., 2019), with nothing to compile.

torchvision's operator is used for training, for export and without Triton; inference on CUDA has
its own kernel. On a CPU torchvision's operator takes most of the network's time, so inference there
gathers the samples itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolact_ros import kernels


class DeformableConv2d(nn.Module):
    """A 3x3 convolution, padding 1, that samples its input at learned offsets.

    Version 2 also weights each sample by a learned factor in 0..1. Offsets are initialised to zero,
    which makes it a plain convolution (version 2: with half the gain).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, version: int = 2) -> None:
        super().__init__()
        self.stride = stride
        self.modulated = version == 2
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        # Per sample point: offsets (y, x), then, when modulated, the factors of all nine points.
        self.offsets = nn.Conv2d(inputs, 27 if self.modulated else 18, 3, stride=stride, padding=1)
        nn.init.uniform_(self.weight, -1 / math.sqrt(inputs * 9), 1 / math.sqrt(inputs * 9))
        for parameter in self.offsets.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        offsets = self.offsets(x)
        if kernels.usable(x, "deform_conv2d"):
            with kernels.attempt(x, "deform_conv2d"):
                from yolact_ros.kernels import deformable

                tensors = (each.to(x.dtype) for each in (offsets, self.weight, self.bias))
                return deformable.deform_conv2d(
                    x, *tensors, stride=self.stride, modulated=self.modulated
                )
        mask = None
        if self.modulated:
            offsets, mask = offsets[:, :18], offsets[:, 18:].sigmoid()
        if not kernels.is_recording():
            refuse_capture(x)
        # torchvision's kernels do not support bfloat16.
        dtype = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        return _operator(x)(
            x.to(dtype),
            offsets.to(dtype),
            self.weight.to(dtype),
            self.bias.to(dtype),
            stride=self.stride,
            padding=1,
            mask=None if mask is None else mask.to(dtype),
        ).to(x.dtype)


def refuse_capture(x: Tensor) -> None:
    """Raise RuntimeError if a CUDA graph is being captured that would not contain torchvision's
    operator: before 0.29 it ran on the default stream (pytorch/vision#9522)."""
    if not x.is_cuda or not torch.cuda.is_current_stream_capturing():
        return
    installed = version("torchvision")
    major, minor = installed.split(".")[:2]
    if (int(major), int(minor)) < (0, 29):
        raise RuntimeError(
            f"torchvision {installed} runs deformable convolutions outside of CUDA graphs; "
            "0.29 and newer do not"
        )


def _operator(x: Tensor) -> Callable[..., Tensor]:
    if x.device.type == "cpu" and not kernels.is_recording():
        return _gather_and_convolve
    from torchvision.ops import deform_conv2d  # slow to import, and rarely needed

    return cast(Callable[..., Tensor], deform_conv2d)


def _gather_and_convolve(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    padding: int,
    mask: Tensor | None,
) -> Tensor:
    """torchvision's `deform_conv2d` for a 3x3 convolution, for inference on a CPU.

    A sample is a weighted sum of four pixels, each a row of the channels-last input, which is what
    `embedding_bag` computes. The rest is a 1x1 convolution over nine times the channels.
    """
    batch, channels, height, width = x.shape
    offsets = offsets.permute(0, 2, 3, 1)  # [B, H', W', 18]
    top = torch.arange(offsets.shape[1]) * stride - padding
    left = torch.arange(offsets.shape[2]) * stride - padding
    point = torch.arange(9)
    y = offsets[..., 0::2] + (top.view(-1, 1, 1) + point // 3)  # [B, H', W', 9]
    x_ = offsets[..., 1::2] + (left.view(-1, 1) + point % 3)
    image = torch.arange(batch, dtype=torch.int32).view(-1, 1, 1, 1)
    rows = [((image * height + row) * width, w) for row, w in _neighbours(y, height)]
    columns = _neighbours(x_, width)
    if mask is not None:
        factors = mask.permute(0, 2, 3, 1)
        columns = [(column, w * factors) for column, w in columns]
    pixels = torch.stack([row + column for row, _ in rows for column, _ in columns], dim=-1)
    weights = torch.stack([v * w for _, v in rows for _, w in columns], dim=-1)
    samples = F.embedding_bag(
        pixels.view(-1, 4),
        x.permute(0, 2, 3, 1).reshape(-1, channels),
        per_sample_weights=weights.view(-1, 4),
        mode="sum",
    )
    return F.conv2d(
        samples.view(*y.shape[:3], 9 * channels).permute(0, 3, 1, 2),
        weight.permute(0, 2, 3, 1).reshape(len(weight), -1, 1, 1),
        bias,
    )


def _neighbours(positions: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the cells before and after each position on an axis, int32, and their weights.

    Cells outside the axis have weight 0.
    """
    positions = positions.clamp(-1, size)
    low = positions.floor()
    return [
        (cells.int().clamp_(0, size - 1), weights * ((cells >= 0) & (cells < size)))
        for cells, weights in ((low, low + 1 - positions), (low + 1, positions - low))
    ]
