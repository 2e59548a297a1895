"""Non-maximum suppression: Fast NMS, cross-class Fast NMS, and standard NMS.

All take the N candidates of B images, boxes [B, N, 4] and scores [B, C, N] with -1 for padding,
and return M pairs of candidate and class per image: scores [B, M] with -1 for suppressed pairs,
candidate indices [B, M] and class ids [B, M].
"""

from __future__ import annotations

import torch
from torch import Tensor

from yolact_ros.detection.boxes import iou
from yolact_ros.detection.candidates import take
from yolact_ros.detection.settings import DetectionSettings

Kept = tuple[Tensor, Tensor, Tensor]


def fast_nms(boxes: Tensor, scores: Tensor, settings: DetectionSettings) -> Kept:
    """Fast NMS in each class (YOLACT, section 5): suppressed boxes may still suppress others."""
    batch, classes, candidates = scores.shape
    top, index = scores.topk(min(settings.nms_top_k, candidates))  # [B, C, T]
    top = suppress(boxes, index, top, settings.nms_iou_threshold)
    class_ids = torch.arange(classes, device=scores.device)[None, :, None].expand_as(index)
    return top.flatten(1), index.flatten(1), class_ids.reshape(batch, -1)


def cross_class_fast_nms(boxes: Tensor, scores: Tensor, settings: DetectionSettings) -> Kept:
    """Fast NMS across classes: each candidate has only its best class."""
    best, class_ids = scores.max(dim=1)  # [B, N]
    top, index = best.topk(min(settings.nms_top_k, best.shape[1]))  # [B, T]
    top = suppress(boxes, index, top, settings.nms_iou_threshold)
    return top, index, class_ids.gather(1, index)


def standard_nms(boxes: Tensor, scores: Tensor, settings: DetectionSettings) -> Kept:
    """Greedy NMS in each class (torchvision's), on class scores above the thresholds.

    The published code adds one pixel to each side length, so small boxes overlap more there.
    """
    from torchvision.ops import batched_nms  # slow to import, and rarely needed

    # torchvision separates classes by offsetting their boxes: this needs non-negative boxes to
    # avoid overlap, and double precision to avoid rounding.
    boxes = boxes.double().clamp(-100, 100) + 100
    results = []
    for image_boxes, image_scores in zip(boxes, scores, strict=True):
        class_ids, index = (image_scores > settings.anchor_threshold).nonzero(as_tuple=True)
        pair_scores = image_scores[class_ids, index]
        keep = batched_nms(
            image_boxes[index], pair_scores.double(), class_ids, settings.nms_iou_threshold
        )
        results.append((pair_scores[keep], index[keep], class_ids[keep]))
    length = max(1, *(len(kept) for kept, _, _ in results))
    padded = [
        (_pad(kept, length, -1), _pad(index, length, 0), _pad(class_ids, length, 0))
        for kept, index, class_ids in results
    ]
    kept, index, class_ids = (torch.stack(column) for column in zip(*padded, strict=True))
    return kept, index, class_ids


def suppress(boxes: Tensor, index: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return scores [B, ..., T] with -1 where a better box of the same list overlaps too much.

    Each list is sorted by descending score; `index` [B, ..., T] selects from its image's `boxes`
    [B, N, 4].
    """
    boxes = take(boxes, index.flatten(1)).unflatten(1, index.shape[1:])  # [B, ..., T, 4]
    overlaps = iou(boxes, boxes).triu_(diagonal=1)
    return scores.masked_fill(overlaps.amax(dim=-2) > threshold, -1)


def _pad(values: Tensor, length: int, value: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - len(values)), value=value)
