"""Fast NMS: which boxes overlap a better one too much, without a matrix of all pairs in memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 32


def suppress(boxes: Tensor, index: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Scores [B, ..., T], with -1 where a better box of the list overlaps by over `threshold`.

    Exactly what its twin gives for float32: no product is fused with a sum.

    Args:
        boxes: [B, N, 4], with finite areas.
        index: int64 [B, ..., T]: which of its image's boxes each list has.
        scores: [B, ..., T], falling.
        threshold: IoU.
    """
    batch, candidates, _ = boxes.shape
    count = scores.shape[-1]
    lists = scores.numel() // count
    scores = scores.contiguous()
    out = torch.empty_like(scores)
    _suppress[(lists, triton.cdiv(count, _BLOCK))](
        boxes.contiguous(),
        index.contiguous(),
        scores,
        out,
        candidates,
        lists // batch,
        count,
        float(threshold),
        BLOCK=_BLOCK,
        enable_fp_fusion=False,
    )
    return out


@triton.jit
def _corners(boxes, index, known):
    # (x1, y1, x2, y2) of the boxes that an index lists, 0 of those that are not known.
    at = boxes + tl.load(index, mask=known, other=0) * 4
    x1 = tl.load(at, mask=known, other=0.0).to(tl.float32)
    y1 = tl.load(at + 1, mask=known, other=0.0).to(tl.float32)
    x2 = tl.load(at + 2, mask=known, other=0.0).to(tl.float32)
    y2 = tl.load(at + 3, mask=known, other=0.0).to(tl.float32)
    return x1, y1, x2, y2


@triton.jit
def _suppress(
    boxes,  # [B, candidates, 4]
    index,  # [B * lists, T]
    scores,  # [B * lists, T]
    out,  # [B * lists, T]
    candidates,
    lists,
    count,
    threshold,
    BLOCK: tl.constexpr,
):
    # One program: BLOCK boxes of one list, against all that come before each of them.
    start = tl.program_id(0).to(tl.int64) * count
    boxes += (tl.program_id(0) // lists).to(tl.int64) * candidates * 4
    index += start
    first = tl.program_id(1) * BLOCK
    box = first + tl.arange(0, BLOCK)  # [N]
    there = box < count
    x1, y1, x2, y2 = _corners(boxes, index + box, there)
    area = (x2 - x1) * (y2 - y1)
    largest = tl.zeros((BLOCK,), dtype=tl.float32)
    for other in range(0, first + BLOCK, BLOCK):
        better = other + tl.arange(0, BLOCK)  # [M]
        known = better < count
        left, top, right, bottom = _corners(boxes, index + better, known)
        width = tl.minimum(right[:, None], x2[None, :]) - tl.maximum(left[:, None], x1[None, :])
        height = tl.minimum(bottom[:, None], y2[None, :]) - tl.maximum(top[:, None], y1[None, :])
        shared = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)  # [M, N]
        union = ((right - left) * (bottom - top))[:, None] + area[None, :] - shared
        iou = tl.div_rn(shared, tl.maximum(union, 1.1754943508222875e-38))
        iou = tl.where(better[:, None] < box[None, :], iou, 0.0)
        largest = tl.maximum(largest, tl.max(iou, axis=0))
    score = tl.load(scores + start + box, mask=there, other=-1.0)
    tl.store(out + start + box, tl.where(largest > threshold, -1.0, score), mask=there)
