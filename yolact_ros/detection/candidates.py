"""Candidates: the anchors that detection looks at, and their boxes and scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yolact_ros.detection import boxes as box_ops
from yolact_ros.network.predictions import Predictions


@dataclass(frozen=True)
class Candidates:
    """N anchors of each of B images, in any order."""

    anchors: Tensor | None
    """[B, N] int64, which ones; None: all, in their order."""
    boxes: Tensor
    """[B, N, 4] as (x1, y1, x2, y2) relative to the image; 0 for padding."""
    scores: Tensor
    """[B, C, N] of all classes but background; -1 for padding."""
    rest: Tensor | None
    """[B]: the highest score among the anchors that were left out; None where these score too
    little to matter."""


def find_candidates(
    predictions: Predictions, anchors: Tensor, threshold: float | Tensor, count: int | None
) -> Candidates:
    """The anchors of each image that detection looks at.

    Args:
        predictions: Of the network, for B images and P anchors.
        anchors: [P, 4] as (cx, cy, w, h) relative to the image.
        threshold: An anchor whose best class scores no more becomes padding; a number or [].
        count: The number of anchors, those whose best classes score highest; None: as many as pass
            the threshold in the image where most do.
    """
    best = best_scores(predictions.class_logits)  # [B, P]
    has_all = count is None
    if count is None:
        count = max(1, int((best > threshold).sum(dim=1).max()))
    index = rest = None
    if count < best.shape[1]:
        best, index = best.topk(count, sorted=False)  # [B, N]
        rest = None if has_all else best.amin(dim=1)
    boxes, scores = decode(predictions, anchors, index, best > threshold)
    return Candidates(index, boxes, scores, rest)


def best_scores(logits: Tensor) -> Tensor:
    """Score [B, P] float32 of each anchor's best class but background, of logits [B, P, C + 1].

    It is -1 where half precision gave no number.
    """
    return _class_scores(logits).amax(dim=-1).nan_to_num(-1)


def decode(
    predictions: Predictions, anchors: Tensor, index: Tensor | None, known: Tensor
) -> tuple[Tensor, Tensor]:
    """Boxes [B, N, 4] and scores [B, C, N], float32, of some anchors.

    What is not `known` [B, N], or has no finite box, is padding: it has a box of 0 and scores of
    -1. `index` [B, N] says which anchors; None: all.
    """
    logits, offsets = predictions.class_logits, predictions.box_offsets
    if index is not None:
        logits, offsets, anchors = take(logits, index), take(offsets, index), anchors[index]
    boxes = box_ops.decode(offsets.float(), anchors)
    padding = ~(known & boxes.isfinite().all(dim=-1)).unsqueeze(-1)  # [B, N, 1]
    scores = _class_scores(logits).masked_fill(padding, -1).mT
    return boxes.masked_fill(padding, 0), scores


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, N] of values [B, P, d], as [B, N, d]."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _class_scores(logits: Tensor) -> Tensor:
    """Scores of the classes but background, float32 [..., C], of logits [..., C + 1]."""
    return logits.softmax(dim=-1, dtype=torch.float32)[..., 1:]
