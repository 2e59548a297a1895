"""Box operations: encoding, decoding, areas and overlaps."""

from __future__ import annotations

import torch
from torch import Tensor

# Scale factors of the offsets, as in SSD.
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Decode offsets and anchors (cx, cy, w, h), both [..., 4], to boxes (x1, y1, x2, y2)."""
    centres = anchors[..., :2] + offsets[..., :2] * CENTRE_VARIANCE * anchors[..., 2:]
    sizes = anchors[..., 2:] * torch.exp(offsets[..., 2:] * SIZE_VARIANCE)
    corners = centres - sizes / 2
    return torch.cat((corners, corners + sizes), dim=-1)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Encode boxes (x1, y1, x2, y2) as offsets [..., 4] from anchors; inverse of `decode`."""
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    sizes = boxes[..., 2:] - boxes[..., :2]
    shifts = (centres - anchors[..., :2]) / (CENTRE_VARIANCE * anchors[..., 2:])
    return torch.cat((shifts, torch.log(sizes / anchors[..., 2:]) / SIZE_VARIANCE), dim=-1)


def area(boxes: Tensor) -> Tensor:
    """Return the areas [...] of boxes [..., 4] as (x1, y1, x2, y2)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection areas [..., m, n] of boxes a [..., m, 4] and b [..., n, 4]."""
    a, b = a.unsqueeze(-2), b.unsqueeze(-3)
    # In place where possible: Fast NMS compares millions of pairs and is memory-bound.
    width = torch.minimum(a[..., 2], b[..., 2]).sub_(torch.maximum(a[..., 0], b[..., 0]))
    height = torch.minimum(a[..., 3], b[..., 3]).sub_(torch.maximum(a[..., 1], b[..., 1]))
    return width.clamp_(min=0).mul_(height.clamp_(min=0))


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union [..., m, n] of boxes a [..., m, 4] and b [..., n, 4].

    Two boxes without area have an IoU of 0.
    """
    shared = intersection(a, b)
    union = (area(a).unsqueeze(-1) + area(b).unsqueeze(-2)).sub_(shared)
    return shared.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))
