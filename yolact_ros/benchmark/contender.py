"""Common interface to our and other implementations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from yolact_ros.detection import Instances
from yolact_ros.engine import Image


class Found(NamedTuple):
    """n instances in one image."""

    boxes: Tensor
    """[n, 4] (x1, y1, x2, y2) in pixels of the image."""
    scores: Tensor
    """[n], 0 to 1."""
    class_ids: Tensor
    """[n]."""
    masks: Tensor
    """[n, H, W]; above one half inside."""

    @classmethod
    def of(cls, instances: Instances) -> Found:
        """Convert our instances; those of a model without masks get empty ones, [n, 1, 1]."""
        empty = torch.zeros(len(instances), 1, 1)
        masks = instances.masks if instances.has_masks else empty
        return cls(instances.boxes, instances.scores, instances.class_ids, masks)

    def cpu(self) -> Found:
        """Copy to host memory."""
        return Found(*(each.cpu() for each in self))


@dataclass(frozen=True)
class Contender:
    """Something to measure, from an image in memory to masks of its size."""

    name: str
    segment: Callable[[Image], Found]
    """Takes a BGR image [H, W, 3], returns the instances in host memory."""
    note: str = ""
