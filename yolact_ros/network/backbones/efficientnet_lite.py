"""EfficientNet-Lite0 (Tan and Le, 2019; the Lite variant of 2020 without squeeze-and-excitation).

All its operators run well on embedded accelerators and in 8 bits: ReLU6, no attention.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (kernel, stride, expansion, channels, repeats) of the seven stages.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
# Indices of the last blocks with strides 8, 16 and 32.
_C3, _C4, _C5 = 4, 10, 15


class _DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with a workaround for oneDNN's slow gradient.

    On a CPU the gradient takes many times as long in bfloat16 as in float32, more than the rest of
    a training step in mixed precision. Inference is not affected.
    """

    def __init__(self, channels: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__(channels, channels, kernel, stride, padding, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        learning = torch.is_grad_enabled() and self.weight.requires_grad
        if learning and x.device.type == "cpu" and x.dtype == torch.bfloat16:
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float()).to(x.dtype)
        return super().forward(x)


class _Conv(nn.Sequential):
    """Convolution, batch norm and, unless linear, ReLU6.

    Padding is TensorFlow's 'same', which the ImageNet weights were trained with: at stride 2, an
    even input gets one more pixel at the bottom and right than at the top and left.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        linear: bool = False,
    ) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(
            _DepthwiseConv2d(outputs, kernel, stride, padding)
            if depthwise
            else nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
            *([] if linear else [nn.ReLU6(inplace=True)]),
        )
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            rows, columns = (_same_padding(n, self.kernel, self.stride) for n in x.shape[-2:])
            x = F.pad(x, (*columns, *rows))
        return super().forward(x)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Expansion, depthwise and projection convolutions, with a shortcut if shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = _Conv(inputs, width) if expansion > 1 else nn.Identity()
        self.depthwise = _Conv(width, width, kernel, stride, depthwise=True)
        self.project = _Conv(width, outputs, linear=True)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        if self.shortcut:
            y += x
        return y


class EfficientNetLite(nn.Module):
    """Feature extractor of EfficientNet-Lite0, 3.4 million parameters."""

    channels = (40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Conv(3, 32, kernel=3, stride=2)
        self.blocks = nn.ModuleList()
        inputs = 32
        for kernel, stride, expansion, outputs, repeats in _STAGES:
            for i in range(repeats):
                self.blocks.append(
                    InvertedResidual(inputs, outputs, kernel, stride if i == 0 else 1, expansion)
                )
                inputs = outputs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(x)
        features = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in (_C3, _C4, _C5):
                features.append(x)
        return features[0], features[1], features[2]

    @staticmethod
    def own_name(name: str) -> str | None:
        """Map a TensorFlow name to ours; None for the classifier.

        '_blocks.3._bn1.bias' -> 'blocks.3.depthwise.1.bias', and so on.
        """
        if name.startswith(("_conv_head", "_bn1", "_fc")):
            return None
        for pattern, own in _NAMES:
            name = re.sub(pattern, own, name)
        return name


_NAMES = (
    (r"^_conv_stem\.", "stem.0."),
    (r"^_bn0\.", "stem.1."),
    (r"^_blocks\.(\d+)\._expand_conv\.", r"blocks.\1.expand.0."),
    (r"^_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.1."),
    (r"^_blocks\.(\d+)\._depthwise_conv\.", r"blocks.\1.depthwise.0."),
    (r"^_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.1."),
    (r"^_blocks\.(\d+)\._project_conv\.", r"blocks.\1.project.0."),
    (r"^_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.1."),
)
