"""Convolutions of a finished network replaced by others that compute the same in another way."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


class SameConv2d(nn.Conv2d):
    """A convolution with the parameters of another: the same tensors by the same names."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)


def is_plain_3x3(conv: nn.Conv2d) -> bool:
    """Whether its window is 3x3 with stride 1 and zeros around, and sees all channels."""
    window = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return window == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and conv.padding_mode == "zeros"


def replace_convolutions(
    net: nn.Module, replacement: Callable[[nn.Conv2d], nn.Conv2d | None]
) -> None:
    """Put what `replacement` gives in the place of each plain convolution; None leaves it."""
    for parent in list(net.modules()):
        for name, conv in list(parent.named_children()):
            if type(conv) is nn.Conv2d and (other := replacement(conv)) is not None:
                setattr(parent, name, other)
