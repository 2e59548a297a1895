"""Ground truth of one image, as the losses take it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """Ground truth of one network input of S x S pixels.

    Crowd regions (COCO's `iscrowd`) are boxes alone, which keep the anchors inside them from being
    taught that there is background. The semantic loss takes their pixels for background.
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
        """The same ground truth on another device; called by Lightning."""
        return Target(**{name: t.to(device, non_blocking=True) for name, t in vars(self).items()})

    def pin_memory(self) -> Target:
        """The same ground truth in page-locked memory; called by the data loader."""
        return Target(**{name: t.pin_memory() for name, t in vars(self).items()})
