"""Matches anchors with objects (YOLACT, section 4; the rules are those of the published code)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_convert

from yolact_ros.detection import boxes
from yolact_ros.training.ranges import check_ranges
from yolact_ros.training.targets import Target

IGNORED, BACKGROUND = -1, 0


@dataclass(frozen=True)
class MatchSettings:
    """Thresholds on the overlap of anchors and objects, all 0 to 1."""

    positive_iou: float = 0.5
    """An anchor with at least this IoU with an object is assigned to it."""
    negative_iou: float = 0.4
    """An anchor whose IoU with every object is below this is assigned to background."""
    crowd_overlap: float = 0.7
    """Anchors with more than this fraction of their area in a crowd region are never background."""

    def __post_init__(self) -> None:
        if not 0 <= self.negative_iou <= self.positive_iou <= 1:
            raise ValueError(
                f"negative_iou={self.negative_iou} and positive_iou={self.positive_iou} are not "
                "allowed: they must be 0 <= negative_iou <= positive_iou <= 1"
            )
        check_ranges(self, crowd_overlap=(0, 1))


@dataclass(frozen=True)
class Matching:
    """The training targets of the P anchors for one image."""

    labels: Tensor
    """int64 [P]: -1 ignored, 0 background, else 1 + class id."""
    objects: Tensor
    """int64 [P]: index of the anchor's object; meaningful only where `labels` > 0."""

    @property
    def positive(self) -> Tensor:
        """bool [P]: anchors that are assigned to an object."""
        return self.labels > BACKGROUND


@torch.no_grad()
def match(anchors: Tensor, target: Target, settings: MatchSettings = MatchSettings()) -> Matching:
    """Match anchors [P, 4] (cx, cy, w, h, relative) with the objects of one image.

    An anchor is assigned to the object that it overlaps most, if the IoU is at least
    `positive_iou`. Every object gets at least one anchor, however small the IoU (see
    `_best_anchors`).
    """
    corners = box_convert(anchors, "cxcywh", "xyxy")
    labels = anchors.new_full((len(anchors),), BACKGROUND, dtype=torch.int64)
    objects = torch.zeros_like(labels)
    if len(target):
        overlaps = boxes.iou(target.boxes, corners)
        overlap, objects = overlaps.max(dim=0)
        labels = target.labels[objects] + 1
        labels[overlap < settings.positive_iou] = IGNORED
        labels[overlap < settings.negative_iou] = BACKGROUND
        chosen = _best_anchors(overlaps)
        objects[chosen] = torch.arange(len(target), device=objects.device)
        labels[chosen] = target.labels + 1
    if len(target.crowd_boxes):
        shared = boxes.intersection(corners, target.crowd_boxes).amax(dim=1)
        in_crowd = shared / boxes.area(corners) > settings.crowd_overlap
        labels[in_crowd & (labels == BACKGROUND)] = IGNORED
    return Matching(labels, objects)


def _best_anchors(overlaps: Tensor) -> Tensor:
    """Return a distinct anchor for each object, int64 [n], from the IoUs [n, P], n <= P.

    Greedy: the object with the largest IoU chooses first, and its anchor is taken.
    """
    overlaps = overlaps.clone()
    best, anchor = overlaps.max(dim=1)
    chosen = torch.empty_like(anchor)
    for _ in range(len(overlaps)):
        row = best.argmax()
        column = anchor[row]
        chosen[row] = column
        overlaps[:, column] = -1
        best[row] = -2
        # Only objects that wanted this anchor have to choose another one.
        again = (anchor == column) & (best > -2)
        if again.any():
            best[again], anchor[again] = overlaps[again].max(dim=1)
    return chosen
