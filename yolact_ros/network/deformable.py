"""Deformable convolution (Dai et al., 2017; modulated: Zhu et al., 2019) on torchvision's operator.

Nothing to compile: torchvision carries the kernels for CPU and CUDA.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformableConv2d(nn.Module):
    """A 3x3 convolution, padding 1, that samples its input at learned offsets.

    Version 2 also weights each sample with a learned factor in 0..1. Offsets start at zero, which
    makes it a plain convolution (version 2: of half the gain).
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
        mask = None
        if self.modulated:
            offsets, mask = offsets[:, :18], offsets[:, 18:].sigmoid()
        # torchvision's kernels know no bfloat16.
        dtype = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        return deform_conv2d(
            x.to(dtype),
            offsets.to(dtype),
            self.weight.to(dtype),
            self.bias.to(dtype),
            stride=self.stride,
            padding=1,
            mask=None if mask is None else mask.to(dtype),
        ).to(x.dtype)
