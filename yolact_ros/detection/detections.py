"""Detections: boxes, scores, classes and coefficients after NMS, in tensors of fixed shape."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact_ros import kernels
from yolact_ros.detection.boxes import CENTRE_VARIANCE, SIZE_VARIANCE
from yolact_ros.detection.candidates import find_candidates, take
from yolact_ros.detection.nms import cross_class_fast_nms, fast_nms, standard_nms
from yolact_ros.detection.settings import DetectionSettings
from yolact_ros.network.predictions import Predictions

_PARTS = 16
"""Number of parts that a long row of scores is split into for top-k."""

_METHODS = {"fast": fast_nms, "cross_class": cross_class_fast_nms, "standard": standard_nms}


@dataclass(frozen=True)
class Detections:
    """At most K detections in each of B images, by descending score; valid ones come first."""

    boxes: Tensor
    """[B, K, 4] as (x1, y1, x2, y2) relative to the image; may reach beyond 0..1."""
    scores: Tensor
    """[B, K] in 0..1."""
    class_ids: Tensor
    """[B, K] int64, from 0, not counting background."""
    coefficients: Tensor | None
    """[B, K, k], or None for boxes only."""
    valid: Tensor
    """[B, K] bool; the other fields are meaningless where it is False."""
    complete: Tensor | None = None
    """[B] bool: whether considering all anchors would give the same result; None: it would."""

    def trimmed(self) -> Detections:
        """Drop the columns that are valid in no image; synchronises with the device."""
        count = int(self.valid.sum(dim=1).max())
        coefficients = self.coefficients
        return Detections(
            boxes=self.boxes[:, :count],
            scores=self.scores[:, :count],
            class_ids=self.class_ids[:, :count],
            coefficients=None if coefficients is None else coefficients[:, :count],
            valid=self.valid[:, :count],
            complete=self.complete,
        )


class Thresholds(NamedTuple):
    """Score thresholds: numbers, or tensors [], which a graph reads on each replay."""

    detection: float | Tensor
    """Score that a detection must exceed to be reported."""
    anchor: float | Tensor
    """Score that an anchor's best class must exceed for the anchor to be considered."""

    @classmethod
    def of(cls, settings: DetectionSettings) -> Thresholds:
        return cls(settings.score_threshold, settings.anchor_threshold)


def detect(
    predictions: Predictions,
    anchors: Tensor,
    settings: DetectionSettings,
    *,
    candidates: int | None = None,
    thresholds: Thresholds | None = None,
) -> Detections:
    """Softmax, thresholds, box decoding, NMS and top-k on a batch of predictions.

    Args:
        predictions: The network's output.
        anchors: [P, 4], the network's anchors.
        settings: The detection settings.
        candidates: Number of anchors to consider in each image; shapes do not depend on values, as
            graphs require. None: all anchors that pass the threshold, with dynamic shapes. The
            result is the same where `complete`.
        thresholds: Replace those of the settings, with `candidates`.

    Raises:
        ValueError: For `candidates` with standard NMS, whose result has no fixed length.
    """
    if candidates is not None:
        if settings.nms_method == "standard":
            raise ValueError("nms_method='standard' has no fixed shapes: use fast or cross_class")
        candidates = min(candidates, len(anchors))
        logits = predictions.class_logits
        if settings.nms_method == "fast" and kernels.usable(logits, "fast_nms"):
            with kernels.attempt(logits, "fast_nms"):
                return _detect_by_kernels(predictions, anchors, settings, candidates, thresholds)
    return detect_plain(predictions, anchors, settings, candidates, thresholds)


def detect_plain(
    predictions: Predictions,
    anchors: Tensor,
    settings: DetectionSettings,
    candidates: int | None = None,
    thresholds: Thresholds | None = None,
) -> Detections:
    """`detect` in plain PyTorch, for every device."""
    limits = thresholds or Thresholds.of(settings)
    found = find_candidates(predictions, anchors, limits.anchor, candidates)
    if candidates is None:
        settings = _with_shorter_lists(settings, found.scores)
    method = _METHODS[settings.nms_method]
    kept, candidate, class_ids = method(found.boxes, found.scores, settings)  # [B, M] each
    if settings.class_ids:
        wanted = [class_ids == i for i in settings.class_ids]  # isin would copy to the device
        kept = kept.masked_fill(~functools.reduce(torch.logical_or, wanted), -1)
    kept, order = top_scores(kept, min(settings.top_k, kept.shape[1]))  # [B, K]
    candidate, class_ids = candidate.gather(1, order), class_ids.gather(1, order)
    anchor = candidate if found.anchors is None else found.anchors.gather(1, candidate)
    coefficients = predictions.coefficients
    complete = None
    if found.rest is not None:
        # Anchors that were left out rank below all with a better score, and cannot suppress them.
        complete = found.rest <= limits.anchor
        if kept.shape[1] == settings.top_k:
            complete |= kept[:, -1] >= found.rest
    return Detections(
        boxes=take(found.boxes, candidate),
        scores=kept,
        class_ids=class_ids,
        coefficients=None if coefficients is None else take(coefficients, anchor),
        valid=kept > limits.detection,
        complete=complete,
    )


def _detect_by_kernels(
    predictions: Predictions,
    anchors: Tensor,
    settings: DetectionSettings,
    candidates: int,
    thresholds: Thresholds | None,
) -> Detections:
    from yolact_ros.kernels import nms

    logits, coefficients = predictions.class_logits, predictions.coefficients
    # Filled on the device: a host-to-device copy could not be captured.
    detection_threshold, anchor_threshold = (
        each
        if isinstance(each, Tensor)
        else torch.full((), each, dtype=torch.float32, device=logits.device)
        for each in thresholds or Thresholds.of(settings)
    )
    classes = logits.shape[-1] - 1
    found = nms.fast_nms(
        logits,
        predictions.box_offsets,
        anchors,
        variances=(CENTRE_VARIANCE, SIZE_VARIANCE),
        anchor_threshold=anchor_threshold,
        detection_threshold=detection_threshold,
        iou_threshold=settings.nms_iou_threshold,
        class_ids=settings.class_ids,
        capacity=candidates,
        class_top_k=settings.nms_top_k,
        top_k=min(settings.top_k, classes * min(settings.nms_top_k, candidates)),
    )
    return Detections(
        boxes=found.boxes,
        scores=found.scores,
        class_ids=found.class_ids.long(),
        coefficients=None if coefficients is None else take(coefficients, found.anchors.long()),
        valid=found.scores > detection_threshold,
        complete=found.candidates <= candidates,
    )


def top_scores(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` highest of scores [B, M], descending, and their indices: [B, count] each.

    On a GPU, where one multiprocessor handles a row, long rows are split.
    """
    if scores.is_cuda and scores.shape[1] >= 4 * _PARTS * count:
        return top_of_parts(scores, count)
    return scores.topk(count)


def top_of_parts(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`top_scores` by way of the top scores of 16 parts, each of at least `count` scores."""
    scores = F.pad(scores, (0, -scores.shape[1] % _PARTS), value=-torch.inf)
    best, index = scores.unflatten(1, (_PARTS, -1)).topk(count, sorted=False)
    starts = torch.arange(0, scores.shape[1], scores.shape[1] // _PARTS, device=scores.device)
    best, order = best.flatten(1).topk(count)
    return best, (index + starts.unsqueeze(1)).flatten(1).gather(1, order)


def _with_shorter_lists(settings: DetectionSettings, scores: Tensor) -> DetectionSettings:
    """Limit `nms_top_k` to the candidates that can be reported; `scores` [B, C, N].

    Candidates that score less rank below these and cannot suppress them.
    """
    if settings.nms_method == "standard" or settings.score_threshold == 0:
        return settings
    if settings.nms_method == "cross_class":
        scores = scores.amax(dim=1, keepdim=True)
    count = max(1, int((scores > settings.score_threshold).sum(dim=2).max()))
    return replace(settings, nms_top_k=min(settings.nms_top_k, count))
