"""Masks at the resolution of the prototypes: assembly, crop and re-scoring (section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def assemble(coefficients: Tensor, prototypes: Tensor) -> Tensor:
    """Masks [..., n, Hp, Wp] in 0..1: one matrix product and a sigmoid.

    `coefficients` [..., n, k], `prototypes` [..., k, Hp, Wp].
    """
    return (coefficients @ prototypes.flatten(-2)).sigmoid().unflatten(-1, prototypes.shape[-2:])


def crop_rectangles(boxes: Tensor, height: int, width: int, padding: int = 1) -> Tensor:
    """Cells [..., 4] (x1, y1, x2, y2), int64, that boxes [..., 4] keep of a grid.

    Boxes are relative to the image, with corners in any order. A cell is kept when its left edge
    and its top edge lie in the padded box.
    """
    size = boxes.new_tensor((width, height))
    low = torch.minimum(boxes[..., :2], boxes[..., 2:]) * size - padding
    high = torch.maximum(boxes[..., :2], boxes[..., 2:]) * size + padding
    cells = torch.cat((low, high), dim=-1).ceil().clamp_(min=0)
    return torch.minimum(cells, size.repeat(2)).long()


def crop(masks: Tensor, rectangles: Tensor) -> Tensor:
    """Masks [..., n, H, W] with zeros outside rectangles [..., n, 4] (x1, y1, x2, y2)."""
    height, width = masks.shape[-2:]
    rows = torch.arange(height, device=masks.device)
    columns = torch.arange(width, device=masks.device)
    x1, y1, x2, y2 = rectangles.unsqueeze(-1).unbind(-2)  # [..., n, 1] each
    inside_rows = (rows >= y1) & (rows < y2)
    inside_columns = (columns >= x1) & (columns < x2)
    return masks * (inside_rows.unsqueeze(-1) & inside_columns.unsqueeze(-2))


def rescore(mask_iou: nn.Module, masks: Tensor, class_ids: Tensor, scores: Tensor) -> Tensor:
    """Scores [n] times the predicted IoU of the cropped masks [n, Hp, Wp] (YOLACT++, 7.2.1)."""
    predicted = mask_iou(masks.unsqueeze(1)).float()  # [n, C]
    return scores * predicted.gather(1, class_ids.unsqueeze(1)).squeeze(1)
