"""Candidates: scores of many anchors, and boxes of those that are looked at."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 16


def best_scores(logits: Tensor) -> Tensor:
    """Score [B, P] float32 of each anchor's best class but background, of logits [B, P, C + 1].

    It is -1 where one of the logits is no finite number.
    """
    logits = logits.contiguous()
    batch, anchors, classes = logits.shape
    best = torch.empty((batch, anchors), dtype=torch.float32, device=logits.device)
    _best_scores[(triton.cdiv(batch * anchors, _BLOCK),)](
        logits,
        best,
        batch * anchors,
        classes,
        BLOCK=_BLOCK,
        BLOCK_CLASSES=triton.next_power_of_2(classes),
        enable_fp_fusion=True,
    )
    return best


def decode(
    logits: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    index: Tensor | None,
    known: Tensor,
    variances: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Boxes [B, N, 4] (x1, y1, x2, y2) and scores [B, C, N], float32, of some anchors.

    Args:
        logits: [B, P, C + 1]; the first is background.
        offsets: [B, P, 4].
        anchors: float32 [P, 4] (cx, cy, w, h).
        index: int64 [B, N], which anchors; None: all.
        known: bool [B, N]. Of others, and where a box is not finite, boxes are 0 and scores -1.
        variances: Of the offsets of centres and of sizes.
    """
    batch, total, classes = logits.shape
    if index is None:
        index = torch.arange(total, device=logits.device).expand(batch, -1)
    count = index.shape[1]
    boxes = torch.empty((batch, count, 4), dtype=torch.float32, device=logits.device)
    scores = torch.empty((batch, classes - 1, count), dtype=torch.float32, device=logits.device)
    _decode[(triton.cdiv(count, _BLOCK), batch)](
        logits.contiguous(),
        offsets.contiguous(),
        anchors.contiguous(),
        index.contiguous(),
        known.contiguous(),
        boxes,
        scores,
        total,
        count,
        classes,
        *variances,
        BLOCK=_BLOCK,
        BLOCK_CLASSES=triton.next_power_of_2(classes),
        enable_fp_fusion=True,
    )
    return boxes, scores


@triton.jit
def _softmax(logits, row, there, classes, BLOCK_CLASSES: tl.constexpr):
    # Scores [N, classes] of some anchors; all of an anchor are no numbers where one logit is none.
    label = tl.arange(0, BLOCK_CLASSES)[None, :]
    values = tl.load(
        logits + row[:, None] * classes + label,
        mask=there[:, None] & (label < classes),
        other=0.0,
    ).to(tl.float32)
    values = tl.where(label < classes, values, float("-inf"))
    powers = tl.exp(values - tl.max(values, axis=1)[:, None])
    return powers / tl.sum(powers, axis=1)[:, None]


@triton.jit
def _best_scores(
    logits,  # [rows, classes]
    best,  # [rows]
    rows,
    classes,
    BLOCK: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    # One program: BLOCK anchors.
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [N]
    there = row < rows
    score = _softmax(logits, row, there, classes, BLOCK_CLASSES)  # [N, classes]
    label = tl.arange(0, BLOCK_CLASSES)[None, :]
    score = tl.where((label > 0) & (score == score), score, -1.0)
    tl.store(best + row, tl.max(score, axis=1), mask=there)


@triton.jit
def _decode(
    logits,  # [B, total, classes]
    offsets,  # [B, total, 4]
    anchors,  # [total, 4]
    index,  # [B, count]
    known,  # bool [B, count]
    boxes,  # [B, count, 4]
    scores,  # [B, classes - 1, count]
    total,
    count,
    classes,
    centre_variance,
    size_variance,
    BLOCK: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    # One program: BLOCK candidates of one image.
    image = tl.program_id(1).to(tl.int64)
    candidate = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [N]
    there = candidate < count
    anchor = tl.load(index + image * count + candidate, mask=there, other=0)
    row = image * total + anchor

    offset, prior = offsets + row * 4, anchors + anchor * 4
    prior_width = tl.load(prior + 2, mask=there, other=0.0)
    prior_height = tl.load(prior + 3, mask=there, other=0.0)
    dx = tl.load(offset, mask=there, other=0.0).to(tl.float32)
    dy = tl.load(offset + 1, mask=there, other=0.0).to(tl.float32)
    dw = tl.load(offset + 2, mask=there, other=0.0).to(tl.float32)
    dh = tl.load(offset + 3, mask=there, other=0.0).to(tl.float32)
    width = prior_width * tl.exp(dw * size_variance)
    height = prior_height * tl.exp(dh * size_variance)
    x1 = tl.load(prior, mask=there, other=0.0) + dx * centre_variance * prior_width - width / 2
    y1 = tl.load(prior + 1, mask=there, other=0.0) + dy * centre_variance * prior_height
    y1 -= height / 2
    x2, y2 = x1 + width, y1 + height
    is_box = tl.load(known + image * count + candidate, mask=there, other=0) != 0
    is_box &= (tl.abs(x1) < float("inf")) & (tl.abs(y1) < float("inf"))
    is_box &= (tl.abs(x2) < float("inf")) & (tl.abs(y2) < float("inf"))
    box = boxes + (image * count + candidate) * 4
    tl.store(box, tl.where(is_box, x1, 0.0), mask=there)
    tl.store(box + 1, tl.where(is_box, y1, 0.0), mask=there)
    tl.store(box + 2, tl.where(is_box, x2, 0.0), mask=there)
    tl.store(box + 3, tl.where(is_box, y2, 0.0), mask=there)

    score = _softmax(logits, row, there, classes, BLOCK_CLASSES)  # [N, classes]
    label = tl.arange(0, BLOCK_CLASSES)[None, :]
    tl.store(
        scores + (image * (classes - 1) + label - 1) * count + candidate[:, None],
        tl.where(is_box[:, None], score, -1.0),
        mask=there[:, None] & (label > 0) & (label < classes),
    )
