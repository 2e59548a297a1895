"""How much a network computes, and the least time for it at a machine's rates.

The limit is the roofline (Williams et al., 2009), per layer: a layer takes at least as long as its
arithmetic at the rate of a matrix product, and as its memory traffic at the rate of a copy.
Measured rates are PyTorch's; other kernels may be faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision.ops  # noqa: F401  (registers the deformable convolution)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from yolact_ros.benchmark.timing import measure
from yolact_ros.network import NetworkConfig, build


@dataclass(frozen=True)
class Layer:
    """A convolution or a matrix product."""

    flops: int
    """Floating-point operations: a multiply-add counts as two."""
    values: int
    """Values read and written: input, weights and output, each once. Operators between layers count
    as fused."""


@dataclass(frozen=True)
class Work:
    """The work of a network for a batch of images."""

    layers: tuple[Layer, ...]
    bytes_per_value: int

    @property
    def flops(self) -> int:
        return sum(layer.flops for layer in self.layers)

    @property
    def bytes(self) -> int:
        return sum(layer.values for layer in self.layers) * self.bytes_per_value

    def limit(self, ceilings: Ceilings) -> float:
        """Return the minimum milliseconds of the layers on a machine with these ceilings."""
        return 1000 * sum(
            max(
                layer.flops / ceilings.flops,
                layer.values * self.bytes_per_value / ceilings.bytes,
            )
            for layer in self.layers
        )


@dataclass(frozen=True)
class Ceilings:
    """The maximum rates of a device; with PyTorch, if measured."""

    flops: float
    """Floating-point operations per second, in a product of large square matrices."""
    bytes: float
    """Bytes read and written per second, in a copy of an array larger than the caches."""


def count_work(config: NetworkConfig, batch: int = 1, dtype: torch.dtype = torch.float32) -> Work:
    """Count the layers of a network, without mask re-scoring, for `batch` images."""
    with torch.device("meta"):
        net = build(config)
        images = torch.empty(batch, 3, config.image_size, config.image_size)
    return Work(tuple(layers_of(net, images)), dtype.itemsize)


def layers_of(net: nn.Module, *inputs: Tensor) -> list[Layer]:
    """Return the layers that run when `net` is called on `inputs`, which may be meta tensors."""
    deformable = torch.ops.torchvision.deform_conv2d
    counter = FlopCounterMode(display=False, custom_mapping={deformable: _deformable_flops})
    # With gradients PyTorch uses the plain operators, which are counted better than CPU-specific
    # variants.
    with torch.enable_grad(), counter, _LayerMode(counter) as mode:
        net(*inputs)
    return mode.layers


class _LayerMode(TorchDispatchMode):
    """Records every operator for which the counter counts arithmetic."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter
        self.layers: list[Layer] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        before = self.counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        flops = self.counter.get_total_flops() - before
        if flops:
            tensors = [each for each in (*args, result) if isinstance(each, Tensor)]
            self.layers.append(Layer(flops, sum(tensor.numel() for tensor in tensors)))
        return result


def _deformable_flops(
    input_shape: torch.Size, weight_shape: torch.Size, *_: Any, out_shape: torch.Size, **__: Any
) -> int:
    """Count the arithmetic of the convolution, without the interpolation of its samples."""
    return 2 * out_shape.numel() * weight_shape[1:].numel()


def measure_ceilings(
    device: torch.device,
    dtype: torch.dtype,
    size: int = 0,
    rounds: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> Ceilings:
    """Measure a product of matrices [size, size] and a copy of 8 * size**2 values.

    The fastest round counts. `size` 0 means 2048 on a CPU and 8192 on a GPU.
    """
    size = size or (8192 if device.type == "cuda" else 2048)
    a = torch.randn(size, size, device=device, dtype=dtype)
    product = torch.empty_like(a)
    source = torch.randn(8 * size * size, device=device, dtype=dtype)
    target = torch.empty_like(source)
    timings = measure(
        {
            "product": lambda: torch.mm(a, a, out=product),
            "copy": lambda: target.copy_(source),
        },
        rounds=rounds,
        device=device,
        clock=clock,
    )
    seconds = {name: min(timing.milliseconds) / 1000 for name, timing in timings.items()}
    return Ceilings(
        flops=2 * size**3 / seconds["product"],
        bytes=2 * source.numel() * source.element_size() / seconds["copy"],
    )
