"""Convolutions with fused bias, shortcut and ReLU, which saves passes over memory (cuDNN).

The network calls `convolve_relu` wherever a convolution precedes a ReLU.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from threading import Thread
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolact_ros import kernels
from yolact_ros.network.replacing import SameConv2d, replace_convolutions

Fused = Callable[[Tensor, nn.Conv2d, Tensor | None], Tensor]
"""Computes relu(conv(x) + shortcut) from x, conv and the shortcut, which may be None."""

_TOLERANCE = 0.02
"""Relative to the largest value before ReLU: unfused, bfloat16 rounds three times to 8 bits."""


def convolve_relu(
    x: Tensor, conv: nn.Module, norm: nn.Module | None = None, shortcut: Tensor | None = None
) -> Tensor:
    """relu(norm(conv(x)) + shortcut), in one cuDNN kernel if `fuse_convolutions` was applied."""
    if isinstance(conv, FusedConv2d) and not kernels.is_recording():
        return conv.convolve_relu(x, shortcut)
    x = conv(x)
    if norm is not None:
        x = norm(x)
    if shortcut is not None:
        x += shortcut
    # Graphs are functional; rewriting an in-place operator takes seconds.
    return F.relu(x, inplace=not torch.compiler.is_compiling())


class FusedConv2d(SameConv2d):
    """A convolution that can fuse shortcut and ReLU, in a network with folded batch norm.

    Called directly, it is an ordinary convolution.
    """

    def __init__(self, conv: nn.Conv2d, fused: Fused) -> None:
        super().__init__(conv)
        self._fused = fused
        self._agrees: WeakKeyDictionary[Thread, dict[torch.Size, bool]] = WeakKeyDictionary()

    def convolve_relu(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        """Compute relu(conv(x) + shortcut).

        The fused kernel is checked against the unfused operators for each new shape and thread,
        since cuDNN chooses kernels for each. If it fails or differs, it is not used, with a
        warning.
        """
        agrees = self._agrees.setdefault(threading.current_thread(), {})
        if x.shape not in agrees:
            agrees[x.shape] = x.numel() > 0 and self._try(x, shortcut)
        if agrees[x.shape]:
            return self._fused(x, self, shortcut)
        return F.relu_(self._sum(x, shortcut))

    def _sum(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        return self(x) if shortcut is None else self(x).add_(shortcut)

    def _try(self, x: Tensor, shortcut: Tensor | None) -> bool:
        """Whether both ways agree on random numbers of the same shapes and memory formats."""
        # Not the default generator: it cannot be used while another thread captures a graph, and
        # it would change the random numbers of a training in the same process.
        generator = torch.Generator(x.device).manual_seed(0)
        x = torch.empty_like(x).normal_(generator=generator)
        if shortcut is not None:
            shortcut = torch.empty_like(shortcut).normal_(generator=generator)
        expected = self._sum(x, shortcut)
        scale = torch.linalg.vector_norm(expected, torch.inf).clamp_(min=1e-6)
        expected.relu_()
        try:
            # First for cuDNN's benchmarking, which leaves other kernels' results in the output.
            self._fused(x, self, shortcut)
            torch.full_like(expected, torch.nan)  # likely fills the memory of the next output
            found = self._fused(x, self, shortcut)
            error = float(found.sub_(expected).abs_().amax() / scale)
            if error <= _TOLERANCE:
                return True
            reason = f"its results differ by {error:.2g} of the largest"
        except Exception as failure:
            if kernels.is_out_of_memory(failure):
                raise  # not the kernel's fault
            reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        warnings.warn(
            f"cuDNN's fused convolution is not used for some layers: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False


def cudnn(x: Tensor, conv: nn.Conv2d, shortcut: Tensor | None) -> Tensor:
    """cuDNN's kernel for bias, shortcut and ReLU in a convolution, for tensors on CUDA."""
    assert not isinstance(conv.padding, str)
    window = (conv.stride, conv.padding, conv.dilation, conv.groups)
    if shortcut is None:
        return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *window)
    return torch.cudnn_convolution_add_relu(x, conv.weight, shortcut, 1.0, conv.bias, *window)


def fuse_convolutions(net: nn.Module, fused: Fused = cudnn) -> None:
    """Let `fused` compute the convolutions before a ReLU, for inference; modifies `net` in place.

    Only convolutions with a bias are replaced, so fold batch norm first. Parameters are kept.
    """
    replace_convolutions(net, lambda conv: None if conv.bias is None else FusedConv2d(conv, fused))
