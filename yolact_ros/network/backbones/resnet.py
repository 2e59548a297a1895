"""ResNet-50 and ResNet-101 (He et al., 2016), optionally with deformable convolutions."""

from __future__ import annotations

import re

from torch import Tensor, nn

from yolact_ros.network.config import DcnVariant
from yolact_ros.network.deformable import DeformableConv2d
from yolact_ros.network.fusing import convolve_relu

_LAST = {"last10": 10, "last13": 13}
_INTERVAL = {"all": 1, "interval3": 3, "interval4": 4}


def deformable_blocks(blocks: tuple[int, ...], variant: DcnVariant) -> set[tuple[int, int]]:
    """Return the (stage, block) pairs with a deformable 3x3 convolution (YOLACT++).

    Stage 0 is C2 and never has one. Intervals restart at the first block of each stage.
    """
    candidates = [(stage, i) for stage in range(1, len(blocks)) for i in range(blocks[stage])]
    if variant == "none":
        return set()
    if variant in _LAST:
        return set(candidates[-_LAST[variant] :])
    return {(stage, i) for stage, i in candidates if i % _INTERVAL[variant] == 0}


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the 3x3 convolution has the stride."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, dcn_version: int) -> None:
        """`dcn_version` 0 makes a plain 3x3 convolution, 1 or 2 a deformable one."""
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2: nn.Module
        if dcn_version:
            self.conv2 = DeformableConv2d(width, width, stride=stride, version=dcn_version)
        else:
            self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = convolve_relu(x, self.conv1, self.bn1)
        x = convolve_relu(x, self.conv2, self.bn2)
        return convolve_relu(x, self.conv3, self.bn3, shortcut)


class ResNet(nn.Module):
    """Feature extractor of a ResNet with bottlenecks."""

    channels = (512, 1024, 2048)

    def __init__(
        self, blocks: tuple[int, int, int, int], dcn_variant: DcnVariant, dcn_version: int
    ) -> None:
        """`blocks` are the numbers of bottlenecks in C2, C3, C4 and C5."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        deformable = deformable_blocks(blocks, dcn_variant)
        self.layers = nn.ModuleList()
        inputs = 64
        for stage, count in enumerate(blocks):
            width = 64 * 2**stage
            layer = nn.Sequential()
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                version = dcn_version if (stage, i) in deformable else 0
                layer.append(Bottleneck(inputs, width, stride, version))
                inputs = width * Bottleneck.expansion
            self.layers.append(layer)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.maxpool(convolve_relu(x, self.conv1, self.bn1))
        c2 = self.layers[0](x)
        c3 = self.layers[1](c2)
        c4 = self.layers[2](c3)
        return c3, c4, self.layers[3](c4)

    @staticmethod
    def own_name(name: str) -> str | None:
        """Map a torchvision name to ours; None for the classifier."""
        if name.startswith("fc."):
            return None
        found = re.fullmatch(r"layer(\d)(\..+)", name)
        return f"layers.{int(found[1]) - 1}{found[2]}" if found else name
