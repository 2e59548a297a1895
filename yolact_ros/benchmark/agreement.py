"""Whether two implementations find the same instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yolact_ros.benchmark.contender import Found
from yolact_ros.detection.boxes import iou

_SAME_BOX = 0.5


@dataclass(frozen=True)
class Agreement:
    """How well the instances of two implementations agree."""

    instances: int
    """Number of instances of the implementation that found more."""
    matched: int
    """Number of pairs of the same class whose boxes have an IoU of at least one half."""
    score_difference: float
    """Largest score difference of a pair."""
    mask_iou: float
    """Smallest mask IoU of a pair; two empty masks have an IoU of 1."""
    mean_mask_iou: float
    box_difference: float
    """Largest difference of a box edge of a pair, in pixels."""

    @classmethod
    def over(cls, images: Sequence[Agreement]) -> Agreement:
        """Return the agreement over all of several images; of none, no instances."""
        matched = sum(each.matched for each in images)
        total_iou = sum(each.mean_mask_iou * each.matched for each in images)
        return cls(
            instances=sum(each.instances for each in images),
            matched=matched,
            score_difference=max((each.score_difference for each in images), default=0.0),
            mask_iou=min((each.mask_iou for each in images), default=1.0),
            mean_mask_iou=total_iou / matched if matched else 1.0,
            box_difference=max((each.box_difference for each in images), default=0.0),
        )


def compare(a: Found, b: Found, least: float = 0.0) -> Agreement:
    """Pair each instance of `a`, by descending score, with the instance of `b` that overlaps most.

    Only instances whose own or partner's score is at least `least` count. Pass lower-scoring ones
    too, so that an instance just below `least` can still be a partner.
    """
    overlaps = iou(_ordered(a.boxes.float()), _ordered(b.boxes.float()))
    overlaps[a.class_ids.unsqueeze(1) != b.class_ids.unsqueeze(0)] = 0
    pairs = []
    for i in a.scores.argsort(descending=True).tolist():
        if overlaps.shape[1] and overlaps[i].max() >= _SAME_BOX:
            j = int(overlaps[i].argmax())
            overlaps[:, j] = 0
            pairs.append((i, j))
    lone = max(_lone(a, {i for i, _ in pairs}, least), _lone(b, {j for _, j in pairs}, least))
    pairs = [(i, j) for i, j in pairs if max(float(a.scores[i]), float(b.scores[j])) >= least]
    ious = [_mask_iou(a, i, b, j) for i, j in pairs] or [1.0]
    return Agreement(
        instances=len(pairs) + lone,
        matched=len(pairs),
        score_difference=max((abs(float(a.scores[i] - b.scores[j])) for i, j in pairs), default=0),
        mask_iou=min(ious),
        mean_mask_iou=sum(ious) / len(ious),
        box_difference=max((_edge_difference(a, i, b, j) for i, j in pairs), default=0),
    )


def _ordered(boxes: Tensor) -> Tensor:
    """Swap the corners of boxes [n, 4] that lie outside the image: clipped, as published, they end
    before they begin, and would not even overlap themselves."""
    first, last = boxes[:, :2], boxes[:, 2:]
    return torch.cat((torch.minimum(first, last), torch.maximum(first, last)), dim=1)


def _lone(found: Found, paired: set[int], least: float) -> int:
    return sum(score >= least and i not in paired for i, score in enumerate(found.scores.tolist()))


def _mask_iou(a: Found, i: int, b: Found, j: int) -> float:
    ours, theirs = a.masks[i] > 0.5, b.masks[j] > 0.5
    union = int((ours | theirs).sum())
    return int((ours & theirs).sum()) / union if union else 1.0


def _edge_difference(a: Found, i: int, b: Found, j: int) -> float:
    return float((a.boxes[i].float() - b.boxes[j].float()).abs().max())
