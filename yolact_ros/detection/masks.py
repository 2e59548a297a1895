"""Masks at prototype resolution: assembly, crop (YOLACT, section 3.3), re-scoring."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yolact_ros import kernels
from yolact_ros.detection.detections import Detections
from yolact_ros.network.config import FC_MASK_SIZE


@dataclass(frozen=True)
class MaskGrids:
    """Masks of K detections in each of B images, cropped; of fixed shape like `Detections`."""

    values: Tensor
    """[B, K, h, w] in 0..1."""
    cells: Tensor
    """[B, K, 4] int64 (x1, y1, x2, y2): the cells that may be non-zero."""
    scores: Tensor
    """[B, K] scores of the detections, times the predicted IoU if masks are re-scored."""
    of_boxes: bool
    """Whether a grid covers its box (fc masks) instead of the whole image (prototypes)."""


def make_masks(
    detections: Detections, prototypes: Tensor | None, mask_iou: nn.Module | None
) -> MaskGrids | None:
    """Make the masks of all detections, valid or not; returns None for boxes only.

    `prototypes` [B, k, Hp, Wp]; None: coefficients, if any, are fc masks.
    """
    coefficients, scores = detections.coefficients, detections.scores
    if coefficients is None:
        return None
    if prototypes is None:
        values = coefficients.float().sigmoid().unflatten(-1, (FC_MASK_SIZE, FC_MASK_SIZE))
        cells = torch.zeros_like(detections.boxes, dtype=torch.int64)
        cells[..., 2:] = FC_MASK_SIZE
        return MaskGrids(values, cells, scores, of_boxes=True)
    cells = crop_rectangles(detections.boxes, *prototypes.shape[-2:])
    values = cropped_masks(coefficients.to(prototypes), prototypes, cells)
    if mask_iou is not None:
        scores = rescore(mask_iou, values, detections.class_ids, scores)
    return MaskGrids(values, cells, scores, of_boxes=False)


def cropped_masks(coefficients: Tensor, prototypes: Tensor, cells: Tensor) -> Tensor:
    """Assemble masks [B, K, Hp, Wp] from coefficients [B, K, k], zero outside cells [B, K, 4]."""
    if kernels.usable(prototypes, "assemble"):
        with kernels.attempt(prototypes, "assemble"):
            from yolact_ros.kernels import masks

            return masks.assemble(coefficients, prototypes, cells)
    return crop(assemble(coefficients, prototypes), cells)


def assemble(coefficients: Tensor, prototypes: Tensor) -> Tensor:
    """Assemble masks [..., n, Hp, Wp] in 0..1: a matrix product and a sigmoid.

    `coefficients` [..., n, k], `prototypes` [..., k, Hp, Wp].
    """
    return (coefficients @ prototypes.flatten(-2)).sigmoid().unflatten(-1, prototypes.shape[-2:])


def crop_rectangles(boxes: Tensor, height: int, width: int, padding: int = 1) -> Tensor:
    """Return the cells [..., 4] (x1, y1, x2, y2), int64, of a grid that boxes [..., 4] keep.

    Boxes are relative to the image, with corners in any order. A cell is kept if its left edge and
    its top edge lie in the padded box.
    """
    low = torch.minimum(boxes[..., :2], boxes[..., 2:])
    high = torch.maximum(boxes[..., :2], boxes[..., 2:])
    edges = (
        (low[..., 0] * width - padding).ceil().clamp(0, width),
        (low[..., 1] * height - padding).ceil().clamp(0, height),
        (high[..., 0] * width + padding).ceil().clamp(0, width),
        (high[..., 1] * height + padding).ceil().clamp(0, height),
    )
    return torch.stack(edges, dim=-1).long()


def crop(masks: Tensor, rectangles: Tensor) -> Tensor:
    """Zero masks [..., n, H, W] outside rectangles [..., n, 4] (x1, y1, x2, y2)."""
    height, width = masks.shape[-2:]
    rows = torch.arange(height, device=masks.device)
    columns = torch.arange(width, device=masks.device)
    x1, y1, x2, y2 = rectangles.unsqueeze(-1).unbind(-2)  # [..., n, 1] each
    inside_rows = (rows >= y1) & (rows < y2)
    inside_columns = (columns >= x1) & (columns < x2)
    return masks * (inside_rows.unsqueeze(-1) & inside_columns.unsqueeze(-2))


def rescore(mask_iou: nn.Module, masks: Tensor, class_ids: Tensor, scores: Tensor) -> Tensor:
    """Multiply scores [B, K] by the predicted IoU of cropped masks [B, K, Hp, Wp] (YOLACT++)."""
    predicted = mask_iou(masks.flatten(0, 1).unsqueeze(1)).float()  # [B * K, C]
    return scores * predicted.gather(1, class_ids.reshape(-1, 1)).view_as(scores)
