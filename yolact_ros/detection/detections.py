"""Detections: boxes, scores, classes and coefficients after NMS, in tensors of fixed shape."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact_ros.detection import boxes as box_ops
from yolact_ros.detection.nms import cross_class_fast_nms, fast_nms, standard_nms
from yolact_ros.detection.settings import DetectionSettings
from yolact_ros.network.predictions import Predictions

_PARTS = 16
"""That a long row of scores is cut into, for top-k."""

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

    def trimmed(self) -> Detections:
        """Without the columns that are valid in no image; reads a number from the device."""
        count = int(self.valid.sum(dim=1).max())
        coefficients = self.coefficients
        return Detections(
            boxes=self.boxes[:, :count],
            scores=self.scores[:, :count],
            class_ids=self.class_ids[:, :count],
            coefficients=None if coefficients is None else coefficients[:, :count],
            valid=self.valid[:, :count],
        )


class Thresholds(NamedTuple):
    """What scores must exceed: numbers, or tensors [], which a graph reads each time anew."""

    detection: float | Tensor
    """To be reported."""
    anchor: float | Tensor
    """Of the best class, for an anchor to be considered at all."""

    @classmethod
    def of(cls, settings: DetectionSettings) -> Thresholds:
        least = settings.score_threshold
        return cls(least, max(least, settings.confidence_threshold))


def detect(
    predictions: Predictions,
    anchors: Tensor,
    settings: DetectionSettings,
    *,
    fixed_shapes: bool = False,
    thresholds: Thresholds | None = None,
) -> Detections:
    """Softmax, thresholds, box decoding, NMS and top-k on a batch of predictions.

    `anchors` [P, 4] are those of the network. With `fixed_shapes` no shape depends on the values,
    as graphs need it; without, less is computed where there is little to find; the result is the
    same. Then `thresholds` may replace those of the settings. Raises ValueError for fixed shapes
    with standard NMS, whose result has no fixed length.
    """
    if fixed_shapes and settings.nms_method == "standard":
        raise ValueError("nms_method='standard' has no fixed shapes: use 'fast' or 'cross_class'")
    scores, best = class_scores(predictions.class_logits)
    offsets, coefficients = predictions.box_offsets, predictions.coefficients
    least, threshold = thresholds or Thresholds.of(settings)
    if fixed_shapes:
        index = None
        boxes = box_ops.decode(offsets.float(), anchors)  # [B, N, 4], N = P
    else:
        limit = max(1, int((best > threshold).sum(dim=1).max()))
        best, index = best.topk(limit)  # [B, N]: the candidates of all images, padded
        scores = _take(scores, index)
        boxes = box_ops.decode(_take(offsets.float(), index), anchors[index])
    # Padding, and overflows of half precision, count as nothing.
    nothing = (best <= threshold) | ~boxes.isfinite().all(dim=-1)  # [B, N]
    boxes = boxes.masked_fill(nothing.unsqueeze(2), 0)
    scores = scores.mT.masked_fill(nothing.unsqueeze(1), -1)  # [B, C, N]
    if not fixed_shapes:
        settings = _with_shorter_lists(settings, scores)

    method = _METHODS[settings.nms_method]
    kept, candidate, class_ids = method(boxes, scores, settings)  # [B, M] each
    if settings.class_ids:
        wanted = [class_ids == i for i in settings.class_ids]  # no copy to the device, unlike isin
        kept = kept.masked_fill(~functools.reduce(torch.logical_or, wanted), -1)
    kept, order = top_scores(kept, min(settings.top_k, kept.shape[1]))  # [B, K]
    candidate, class_ids = candidate.gather(1, order), class_ids.gather(1, order)
    anchor = candidate if index is None else index.gather(1, candidate)
    return Detections(
        boxes=_take(boxes, candidate),
        scores=kept,
        class_ids=class_ids,
        coefficients=None if coefficients is None else _take(coefficients, anchor),
        valid=kept > least,
    )


def class_scores(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the classes, float32 [..., C], of logits [..., C + 1], and the best of them [...].

    The best is -1 where half precision gave no number.
    """
    scores = logits.softmax(dim=-1, dtype=torch.float32)[..., 1:]
    return scores, scores.amax(dim=-1).nan_to_num(-1)


def top_scores(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`topk` of scores [B, M]. One multiprocessor of a GPU does a row: there, long ones are cut."""
    if scores.is_cuda and scores.shape[1] >= 4 * _PARTS * count:
        return top_of_parts(scores, count)
    return scores.topk(count)


def top_of_parts(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`topk` of scores [B, M], at first of parts that have `count` or more."""
    scores = F.pad(scores, (0, -scores.shape[1] % _PARTS), value=-torch.inf)
    best, index = scores.unflatten(1, (_PARTS, -1)).topk(count, sorted=False)
    starts = torch.arange(0, scores.shape[1], scores.shape[1] // _PARTS, device=scores.device)
    best, order = best.flatten(1).topk(count)
    return best, (index + starts.unsqueeze(1)).flatten(1).gather(1, order)


def _with_shorter_lists(settings: DetectionSettings, scores: Tensor) -> DetectionSettings:
    """Fast NMS need not compare more candidates than those that can be reported.

    Those that score less come after them and suppress none of them. `scores` [B, C, N].
    """
    if settings.nms_method == "standard" or settings.score_threshold == 0:
        return settings
    if settings.nms_method == "cross_class":
        scores = scores.amax(dim=1, keepdim=True)
    count = max(1, int((scores > settings.score_threshold).sum(dim=2).max()))
    return replace(settings, nms_top_k=min(settings.nms_top_k, count))


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, N] of values [B, P, d], as [B, N, d]."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
