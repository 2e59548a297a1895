"""Detections: boxes, scores, classes and coefficients after NMS, in tensors of fixed shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yolact_ros.detection import boxes as box_ops
from yolact_ros.detection.nms import cross_class_fast_nms, fast_nms, standard_nms
from yolact_ros.detection.settings import DetectionSettings
from yolact_ros.network.predictions import Predictions

_METHODS = {"fast": fast_nms, "cross_class": cross_class_fast_nms, "standard": standard_nms}


@dataclass(frozen=True)
class Detections:
    """At most K detections in each of B images, by falling score; the valid ones come first."""

    boxes: Tensor
    """[B, K, 4] as (x1, y1, x2, y2) relative to the image; may reach beyond 0..1."""
    scores: Tensor
    """[B, K] in 0..1."""
    class_ids: Tensor
    """[B, K] int64, from 0, without background."""
    coefficients: Tensor | None
    """[B, K, k], or None for boxes only."""
    valid: Tensor
    """[B, K] bool; the other fields say nothing where it is False."""


def detect(predictions: Predictions, anchors: Tensor, settings: DetectionSettings) -> Detections:
    """Softmax, thresholds, box decoding, NMS and top-k on a batch of predictions.

    `anchors` [P, 4] are those of the network.
    """
    scores = predictions.class_logits.float().softmax(dim=-1)[..., 1:]  # [B, P, C]
    best = scores.amax(dim=-1).nan_to_num(-1)  # [B, P]
    threshold = max(settings.confidence_threshold, settings.score_threshold)
    limit = max(1, int((best > threshold).sum(dim=1).max()))
    best, index = best.topk(limit)  # [B, N]: the candidates of all images, padded
    boxes = box_ops.decode(_take(predictions.box_offsets.float(), index), anchors[index])
    # Padding, and overflows of half precision, count as nothing.
    nothing = (best <= threshold) | ~boxes.isfinite().all(dim=-1)  # [B, N]
    boxes = boxes.masked_fill(nothing.unsqueeze(2), 0)
    scores = _take(scores, index).mT.masked_fill(nothing.unsqueeze(1), -1)  # [B, C, N]

    method = _METHODS[settings.nms_method]
    kept, candidate, class_ids = method(boxes, scores, settings)  # [B, M] each
    if settings.class_ids:
        wanted = torch.tensor(settings.class_ids, device=kept.device)
        kept = kept.masked_fill(~torch.isin(class_ids, wanted), -1)
    kept, order = kept.topk(min(settings.top_k, kept.shape[1]))  # [B, K]
    candidate, class_ids = candidate.gather(1, order), class_ids.gather(1, order)
    coefficients = predictions.coefficients
    return Detections(
        boxes=_take(boxes, candidate),
        scores=kept,
        class_ids=class_ids,
        coefficients=(
            None if coefficients is None else _take(coefficients, index.gather(1, candidate))
        ),
        valid=kept > settings.score_threshold,
    )


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, N] of values [B, P, d], as [B, N, d]."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
