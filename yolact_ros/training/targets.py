"""Ground truth of one image, in the form that the losses take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """Ground truth of one network input of S x S pixels.

    Crowd regions (COCO's `iscrowd`) are only boxes, which keep anchors inside them from being
    assigned to background. The semantic loss treats their pixels as background.
    """

    boxes: Tensor
    """float [n, 4]: x1 y1 x2 y2 relative to the image, 0 to 1, with x1 < x2 and y1 < y2."""
    labels: Tensor
    """int64 [n]: class ids from 0."""
    masks: Tensor
    """uint8 [n, S, S]: 0 or 1."""
    crowd_boxes: Tensor
    """float [m, 4]: like `boxes`."""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Target:
        """Copy the ground truth to another device; called by Lightning."""
        return Target(**{name: t.to(device, non_blocking=True) for name, t in vars(self).items()})

    def pin_memory(self) -> Target:
        """Copy the ground truth to pinned memory; called by the data loader."""
        return Target(**{name: t.pin_memory() for name, t in vars(self).items()})
