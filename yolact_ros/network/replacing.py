"""Replaces convolutions of a built network by equivalent implementations."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


class SameConv2d(nn.Conv2d):
    """A convolution that shares the parameters of another, by the same names."""

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
    """Whether it is 3x3 with stride 1, zero padding 1 and no groups or dilation."""
    window = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return window == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and conv.padding_mode == "zeros"


def replace_convolutions(
    net: nn.Module, replacement: Callable[[nn.Conv2d], nn.Conv2d | None]
) -> None:
    """Replace each `nn.Conv2d` by what `replacement` returns; None keeps it."""
    for parent in list(net.modules()):
        for name, conv in list(parent.named_children()):
            if type(conv) is nn.Conv2d and (other := replacement(conv)) is not None:
                setattr(parent, name, other)
