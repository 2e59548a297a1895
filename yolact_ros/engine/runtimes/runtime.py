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
    """A network on a device, whatever computes it."""

    name: str
    """The backend, for people."""
    header: Header
    run: Callable[[Tensor], Predictions | Detected]
    """Takes preprocessed images [B, 3, S, S] of type `dtype`, in channels-last memory order. Gives
    `Detected` when the detection stage is part of the graph."""
    device: torch.device
    dtype: torch.dtype
    anchors: Tensor
    """[P, 4], float32, on the device."""
    is_quantised: bool = False
    """Whether the convolutions compute in 8 bits; images and outputs are of `dtype` anyway."""

    @property
    def precision(self) -> str:
        """What it mostly computes in, for people."""
        return "int8" if self.is_quantised else str(self.dtype).removeprefix("torch.")

    @property
    def config(self) -> NetworkConfig:
        return self.header.config

    @property
    def mask_iou(self) -> nn.Module | None:
        """The network that re-scores masks; None where there is none."""
        return self.header.mask_iou

    def __call__(self, images: Tensor) -> Predictions | Detected:
        """Run it, in one thread at a time: `Segmenter` lets threads take turns."""
        return self.run(images)


def runtime_of_graph(
    name: str,
    header: Header,
    run: Callable[[Tensor], Sequence[Tensor]],
    dtype: torch.dtype = torch.float32,
    is_quantised: bool = False,
) -> Runtime:
    """A graph that runs on the CPU and gives the outputs that its header names, in their order."""

    def read_outputs(images: Tensor) -> Predictions | Detected:
        return header.read_outputs(run(images))

    anchors = make_anchors(header.config)
    device = torch.device("cpu")
    return Runtime(name, header, read_outputs, device, dtype, anchors, is_quantised)
