"""Candidates: the anchors that detection considers, with their boxes and scores."""

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
    """[B, N] int64, indices of the anchors; None: all anchors, in order."""
    boxes: Tensor
    """[B, N, 4] as (x1, y1, x2, y2) relative to the image; 0 for padding."""
    scores: Tensor
    """[B, C, N] for all classes except background; -1 for padding."""
    rest: Tensor | None
    """[B]: upper bound of the scores of anchors left out; None if those cannot matter."""


def find_candidates(
    predictions: Predictions, anchors: Tensor, threshold: float | Tensor, count: int | None
) -> Candidates:
    """Select the anchors of each image that detection considers.

    Args:
        predictions: The network's output for B images and P anchors.
        anchors: [P, 4] as (cx, cy, w, h) relative to the image.
        threshold: An anchor whose best class does not exceed it becomes padding; a number or [].
        count: How many anchors to take, in order of their best class score; None: as many as pass
            the threshold in the image with the most.
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
    """Return each anchor's best non-background score [B, P], float32, for logits [B, P, C + 1].

    NaN, which half precision may produce, becomes -1.
    """
    return _class_scores(logits).amax(dim=-1).nan_to_num(-1)


def decode(
    predictions: Predictions, anchors: Tensor, index: Tensor | None, known: Tensor
) -> tuple[Tensor, Tensor]:
    """Return boxes [B, N, 4] and scores [B, C, N], float32, of the anchors `index` [B, N].

    Anchors that are not `known` [B, N] or have no finite box become padding, with a box of 0 and
    scores of -1. `index` None: all anchors.
    """
    logits, offsets = predictions.class_logits, predictions.box_offsets
    if index is not None:
        logits, offsets, anchors = take(logits, index), take(offsets, index), anchors[index]
    boxes = box_ops.decode(offsets.float(), anchors)
    padding = ~(known & boxes.isfinite().all(dim=-1)).unsqueeze(-1)  # [B, N, 1]
    scores = _class_scores(logits).masked_fill(padding, -1).mT
    return boxes.masked_fill(padding, 0), scores


def take(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows `index` [B, N] of values [B, P, d]; returns [B, N, d]."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _class_scores(logits: Tensor) -> Tensor:
    """Return the scores of all classes except background, [..., C], for logits [..., C + 1]."""
    return logits.softmax(dim=-1, dtype=torch.float32)[..., 1:]
