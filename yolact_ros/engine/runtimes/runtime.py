"""A network that is ready to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yolact_ros.engine.runtimes.header import Detected, Header
from yolact_ros.network import NetworkConfig, Predictions
from yolact_ros.network.anchors import make_anchors


@dataclass(frozen=True)
class Runtime:
    """A network on a device, with any backend."""

    name: str
    """The backend, for display."""
    header: Header
    run: Callable[[Tensor], Predictions | Detected]
    """Takes preprocessed images [B, 3, S, S] of type `dtype`, in channels-last memory format.
    Returns `Detected` if the detection stage is part of the graph."""
    device: torch.device
    dtype: torch.dtype
    anchors: Tensor
    """[P, 4], float32, on the device."""
    is_quantised: bool = False
    """Whether the convolutions compute in 8 bits; images and outputs still have type `dtype`."""

    @property
    def precision(self) -> str:
        """The main data type of the computation, for display."""
        return "int8" if self.is_quantised else str(self.dtype).removeprefix("torch.")

    @property
    def config(self) -> NetworkConfig:
        return self.header.config

    @property
    def mask_iou(self) -> nn.Module | None:
        """The network that re-scores masks, or None."""
        return self.header.mask_iou

    def __call__(self, images: Tensor) -> Predictions | Detected:
        """Run the network; not thread-safe: `Segmenter` serialises calls."""
        return self.run(images)


def runtime_of_graph(
    name: str,
    header: Header,
    run: Callable[[Tensor], Sequence[Tensor]],
    dtype: torch.dtype = torch.float32,
    is_quantised: bool = False,
) -> Runtime:
    """Make the runtime of a graph on the CPU that returns its header's `outputs`, in order."""

    def read_outputs(images: Tensor) -> Predictions | Detected:
        return header.read_outputs(run(images))

    anchors = make_anchors(header.config)
    device = torch.device("cpu")
    return Runtime(name, header, read_outputs, device, dtype, anchors, is_quantised)
