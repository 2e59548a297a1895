"""Whatever segments an image, ours or another's."""

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

    def cpu(self) -> Found:
        """The same in the memory of the host."""
        return Found(*(each.cpu() for each in self))


def masks_of(instances: Instances) -> Tensor:
    """Masks as `Found` has them; of instances that are boxes alone empty ones, [n, 1, 1]."""
    if not instances.has_masks:
        return torch.zeros(len(instances), 1, 1)
    return instances.masks


@dataclass(frozen=True)
class Contender:
    """Something to measure, from an image in memory to masks of its size."""

    name: str
    segment: Callable[[Image], Found]
    """Takes a BGR image [H, W, 3], gives what is found in the memory of the host."""
    note: str = ""
