"""DarkNet-53 (Redmon and Farhadi, YOLOv3, 2018)."""

from __future__ import annotations

from torch import Tensor, nn


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1, inplace=True),
    )


class DarkNetBlock(nn.Module):
    """1x1 and 3x3 convolutions with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels // 2, 1)
        self.conv2 = _conv(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x)) + x


class DarkNet(nn.Module):
    """Feature extractor of DarkNet-53: five stages, each of which first halves the resolution."""

    channels = (256, 512, 1024)

    def __init__(self, blocks: tuple[int, int, int, int, int]) -> None:
        super().__init__()
        self.stem = _conv(3, 32, 3)
        self.layers = nn.ModuleList()
        for stage, count in enumerate(blocks):
            width = 64 * 2**stage
            self.layers.append(
                nn.Sequential(
                    _conv(width // 2, width, 3, stride=2),
                    *(DarkNetBlock(width) for _ in range(count)),
                )
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.layers[1](self.layers[0](self.stem(x)))
        c3 = self.layers[2](x)
        c4 = self.layers[3](c3)
        return c3, c4, self.layers[4](c4)

    @staticmethod
    def own_name(name: str) -> str | None:
        """Map a name in the published `darknet53.pth` to ours; None for the classifier."""
        if name.startswith("_preconv."):
            return name.replace("_preconv.", "stem.", 1)
        return name if name.startswith("layers.") else None
