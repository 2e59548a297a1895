"""Fast NMS (YOLACT, section 5) without sorting: from logits and offsets to detections.

Few anchors pass the threshold, and few of their classes. These are collected in lists, in no
particular order; the rank of an entry is the number of better ones, so the result does not depend
on the order of the lists.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Small blocks where rows are reduced by one warp: several warps would wait for each other.
_ANCHORS, _DECODED = 8, 4
_CANDIDATES = 32
_PROGRAMS = 16  # at most, for each class: most have nothing to do
_PAIRS, _OTHER_PAIRS = 32, 512


class Found(NamedTuple):
    """At most K detections in each of B images, by descending score; the rest is 0."""

    boxes: Tensor
    """float32 [B, K, 4] (x1, y1, x2, y2)."""
    scores: Tensor
    """float32 [B, K]."""
    class_ids: Tensor
    """int32 [B, K]."""
    anchors: Tensor
    """int32 [B, K]."""
    candidates: Tensor
    """int32 [B]: number of anchors above the threshold; those beyond `capacity` were ignored."""


def fast_nms(
    logits: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    *,
    variances: tuple[float, float],
    anchor_threshold: Tensor,
    detection_threshold: Tensor,
    iou_threshold: float,
    class_ids: tuple[int, ...],
    capacity: int,
    class_top_k: int,
    top_k: int,
) -> Found:
    """Detect instances in B images.

    Args:
        logits: [B, P, C + 1]; column 0 is background.
        offsets: [B, P, 4].
        anchors: float32 [P, 4] (cx, cy, w, h).
        variances: Scale factors of the centre and size offsets.
        anchor_threshold: float32 []: an anchor's best class must score more than this.
        detection_threshold: float32 []: a reported class must score more than this; not negative.
        iou_threshold: A box that overlaps a better one of its class by more is suppressed.
        class_ids: The classes to report; empty: all.
        capacity: Maximum number of candidate anchors per image.
        class_top_k: Number of best candidates considered in each class.
        top_k: K, the maximum number of detections per image.
    """
    batch, total, classes = logits.shape[0], logits.shape[1], logits.shape[2] - 1
    logits, device = logits.contiguous(), logits.device
    counts = torch.zeros((2, batch), dtype=torch.int32, device=device)
    index = torch.empty((batch, capacity), dtype=torch.int32, device=device)
    block_classes = triton.next_power_of_2(classes + 1)
    _list_candidates[(triton.cdiv(total, _ANCHORS), batch)](
        logits,
        anchor_threshold,
        counts[0],
        index,
        total,
        classes,
        capacity,
        BLOCK=_ANCHORS,
        BLOCK_CLASSES=block_classes,
        num_warps=1,
        enable_fp_fusion=True,
    )
    boxes = torch.empty((batch, capacity, 4), dtype=torch.float32, device=device)
    scores = torch.empty((batch, classes, capacity), dtype=torch.float32, device=device)
    _decode[(triton.cdiv(capacity, _DECODED), batch)](
        logits,
        offsets.contiguous(),
        anchors.contiguous(),
        counts[0],
        index,
        boxes,
        scores,
        total,
        classes,
        capacity,
        *variances,
        BLOCK=_DECODED,
        BLOCK_CLASSES=block_classes,
        num_warps=1,
        enable_fp_fusion=True,
    )
    room = classes * min(class_top_k, capacity)
    keys = torch.empty((batch, room), dtype=torch.int64, device=device)
    members = torch.empty((batch, room), dtype=torch.int32, device=device)
    programs = min(triton.cdiv(capacity, _CANDIDATES), _PROGRAMS)
    _suppress[(programs, classes, batch)](
        boxes,
        scores,
        index,
        counts[0],
        counts[1],
        _wanted(class_ids, classes, device),
        detection_threshold,
        keys,
        members,
        total,
        classes,
        capacity,
        room,
        class_top_k,
        float(iou_threshold),
        BLOCK=_CANDIDATES,
        enable_fp_fusion=False,  # as PyTorch rounds
    )
    table = torch.zeros((batch, top_k, 7), dtype=torch.int32, device=device)
    _rank[(triton.cdiv(room, _PAIRS), batch)](
        boxes,
        counts[1],
        keys,
        members,
        table,
        total,
        capacity,
        room,
        top_k,
        BLOCK=_PAIRS,
        OTHERS=_OTHER_PAIRS,
        num_warps=8,
        enable_fp_fusion=True,
    )
    numbers = table[..., :5].view(torch.float32)
    return Found(numbers[..., :4], numbers[..., 4], table[..., 5], table[..., 6], counts[0])


def _wanted(class_ids: tuple[int, ...], classes: int, device: torch.device) -> Tensor:
    """Return the wanted classes as bool [C], without a host-to-device copy."""
    if not class_ids:
        return torch.ones(classes, dtype=torch.bool, device=device)
    numbers = torch.arange(classes, device=device)
    return torch.stack([numbers == i for i in class_ids]).any(dim=0)


@triton.jit
def _exponentials(logits, row, there, labels, BLOCK_CLASSES: tl.constexpr):
    # Unnormalised softmax [N, labels] of some anchors and its sum [N], which is NaN if a logit is.
    label = tl.arange(0, BLOCK_CLASSES)[None, :]
    values = tl.load(
        logits + row[:, None] * labels + label,
        mask=there[:, None] & (label < labels),
        other=0.0,
    ).to(tl.float32)
    values = tl.where(label < labels, values, float("-inf"))
    exponentials = tl.exp(values - tl.max(values, axis=1)[:, None])
    return exponentials, tl.sum(exponentials, axis=1)


@triton.jit
def _before(number, BLOCK: tl.constexpr):
    # Exclusive prefix sum.
    place = tl.arange(0, BLOCK)
    return tl.sum(tl.where(place[None, :] < place[:, None], number[None, :], 0), axis=1)


@triton.jit
def _list_candidates(
    logits,  # [B, total, classes + 1]
    anchor_threshold,  # []
    counts,  # [B]
    index,  # [B, capacity]
    total,
    classes,
    capacity,
    BLOCK: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    # One program: BLOCK anchors of one image.
    image = tl.program_id(1).to(tl.int64)
    anchor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [N]
    there = anchor < total
    exponentials, whole = _exponentials(
        logits, image * total + anchor, there, classes + 1, BLOCK_CLASSES
    )
    label = tl.arange(0, BLOCK_CLASSES)[None, :]
    best = tl.max(tl.where(label > 0, exponentials, 0.0), axis=1) / whole
    passes = (there & (best > tl.load(anchor_threshold))).to(tl.int32)
    if tl.sum(passes) > 0:
        first = tl.atomic_add(counts + image, tl.sum(passes), sem="relaxed")
        place = first + _before(passes, BLOCK)
        tl.store(index + image * capacity + place, anchor, mask=(passes > 0) & (place < capacity))


@triton.jit
def _decode(
    logits,  # [B, total, classes + 1]
    offsets,  # [B, total, 4]
    anchors,  # [total, 4]
    counts,  # [B]
    index,  # [B, capacity]
    boxes,  # [B, capacity, 4]
    scores,  # [B, classes, capacity]
    total,
    classes,
    capacity,
    centre_variance,
    size_variance,
    BLOCK: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    # One program: BLOCK candidates of one image. Those without a finite box score -1.
    image = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK
    count = tl.minimum(tl.load(counts + image), capacity)
    if first < count:
        candidate = first + tl.arange(0, BLOCK)  # [N]
        there = candidate < count
        anchor = tl.load(index + image * capacity + candidate, mask=there, other=0)
        row = image * total + anchor
        offset, anchor_box = offsets + row * 4, anchors + anchor * 4
        anchor_width = tl.load(anchor_box + 2, mask=there, other=0.0)
        anchor_height = tl.load(anchor_box + 3, mask=there, other=0.0)
        dx = tl.load(offset, mask=there, other=0.0).to(tl.float32)
        dy = tl.load(offset + 1, mask=there, other=0.0).to(tl.float32)
        dw = tl.load(offset + 2, mask=there, other=0.0).to(tl.float32)
        dh = tl.load(offset + 3, mask=there, other=0.0).to(tl.float32)
        width = anchor_width * tl.exp(dw * size_variance)
        height = anchor_height * tl.exp(dh * size_variance)
        x1 = tl.load(anchor_box, mask=there, other=0.0) + dx * centre_variance * anchor_width
        y1 = tl.load(anchor_box + 1, mask=there, other=0.0) + dy * centre_variance * anchor_height
        x1, y1 = x1 - width / 2, y1 - height / 2
        x2, y2 = x1 + width, y1 + height
        finite = (tl.abs(x1) < float("inf")) & (tl.abs(y1) < float("inf"))
        finite &= (tl.abs(x2) < float("inf")) & (tl.abs(y2) < float("inf"))
        box = boxes + (image * capacity + candidate) * 4
        tl.store(box, tl.where(finite, x1, 0.0), mask=there)
        tl.store(box + 1, tl.where(finite, y1, 0.0), mask=there)
        tl.store(box + 2, tl.where(finite, x2, 0.0), mask=there)
        tl.store(box + 3, tl.where(finite, y2, 0.0), mask=there)
        exponentials, whole = _exponentials(logits, row, there, classes + 1, BLOCK_CLASSES)
        label = tl.arange(0, BLOCK_CLASSES)[None, :]
        tl.store(
            scores + (image * classes + label - 1) * capacity + candidate[:, None],
            tl.where(finite[:, None], exponentials / whole[:, None], -1.0),
            mask=there[:, None] & (label > 0) & (label <= classes),
        )


@triton.jit
def _corners(boxes, index, known):
    # (x1, y1, x2, y2) of some boxes; 0 where not known.
    at = boxes + index * 4
    x1 = tl.load(at, mask=known, other=0.0)
    y1 = tl.load(at + 1, mask=known, other=0.0)
    x2 = tl.load(at + 2, mask=known, other=0.0)
    y2 = tl.load(at + 3, mask=known, other=0.0)
    return x1, y1, x2, y2


@triton.jit
def _suppress(
    boxes,  # [B, capacity, 4]
    scores,  # [B, classes, capacity]
    index,  # [B, capacity]
    counts,  # [B]: candidates
    pair_counts,  # [B]: pairs of class and candidate that stay
    wanted,  # bool [classes]
    detection_threshold,  # []
    keys,  # int64 [B, room]: the pairs' scores, then what they are; see below
    members,  # [B, room]: their candidates
    total,
    classes,
    capacity,
    room,
    class_top_k,
    iou_threshold,
    BLOCK: tl.constexpr,
):
    # One program: every n-th BLOCK of candidates of one image in one class, each compared with all
    # candidates that score more in that class.
    label = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    count = tl.minimum(tl.load(counts + image), capacity)
    least = tl.load(detection_threshold)
    boxes += image * capacity * 4
    scores += (image * classes + label) * capacity
    index += image * capacity
    if tl.load(wanted + label) != 0:
        step = tl.num_programs(0) * BLOCK
        for first in range(tl.program_id(0) * BLOCK, count, step):
            candidate = first + tl.arange(0, BLOCK)  # [N]
            there = candidate < count
            score = tl.load(scores + candidate, mask=there, other=-1.0)
            stays = score > least
            if tl.max(stays.to(tl.int32)) > 0:
                anchor = tl.load(index + candidate, mask=there, other=0)
                x1, y1, x2, y2 = _corners(boxes, candidate, there)
                area = (x2 - x1) * (y2 - y1)
                largest = tl.zeros((BLOCK,), dtype=tl.float32)
                place = tl.zeros((BLOCK,), dtype=tl.int32)
                for start in range(0, count, BLOCK):
                    other = start + tl.arange(0, BLOCK)  # [M]
                    known = other < count
                    its_score = tl.load(scores + other, mask=known, other=-1.0)[:, None]
                    its_anchor = tl.load(index + other, mask=known, other=0)[:, None]
                    better = (its_score > score[None, :]) | (
                        (its_score == score[None, :]) & (its_anchor < anchor[None, :])
                    )  # [M, N]
                    left, top, right, bottom = _corners(boxes, other, known)
                    width = tl.minimum(right[:, None], x2[None, :])
                    width -= tl.maximum(left[:, None], x1[None, :])
                    height = tl.minimum(bottom[:, None], y2[None, :])
                    height -= tl.maximum(top[:, None], y1[None, :])
                    shared = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
                    union = ((right - left) * (bottom - top))[:, None] + area[None, :] - shared
                    iou = tl.div_rn(shared, tl.maximum(union, 1.1754943508222875e-38))
                    largest = tl.maximum(largest, tl.max(tl.where(better, iou, 0.0), axis=0))
                    place += tl.sum(better.to(tl.int32), axis=0)
                stays &= (place < class_top_k) & (largest <= iou_threshold)
                number = stays.to(tl.int32)
                if tl.sum(number) > 0:
                    slot = tl.atomic_add(pair_counts + image, tl.sum(number), sem="relaxed")
                    at = image * room + slot + _before(number, BLOCK)
                    # Larger keys rank first: by score (the bits of positive floats are ordered),
                    # then by lower class and anchor.
                    key = (score.to(tl.int32, bitcast=True).to(tl.int64) + 1) << 32
                    key -= label.to(tl.int64) * total + anchor + 1
                    tl.store(keys + at, key, mask=stays)
                    tl.store(members + at, candidate, mask=stays)


@triton.jit
def _rank(
    boxes,  # [B, capacity, 4]
    pair_counts,  # [B]
    keys,  # [B, room]
    members,  # [B, room]
    table,  # [B, top_k, 7]: box and score as bits of float32, class, anchor
    total,
    capacity,
    room,
    top_k,
    BLOCK: tl.constexpr,
    OTHERS: tl.constexpr,
):
    # One program: stores BLOCK pairs of one image at the ranks of their keys.
    first = tl.program_id(0) * BLOCK
    image = tl.program_id(1).to(tl.int64)
    count = tl.load(pair_counts + image)
    keys += image * room
    members += image * room
    if first < count:
        pair = first + tl.arange(0, BLOCK)  # [N]
        key = tl.load(keys + pair, mask=pair < count, other=0)
        place = tl.zeros((BLOCK,), dtype=tl.int32)
        start = 0
        while (start < count) & (tl.min(place) < top_k):  # until none can be in the top k
            other = start + tl.arange(0, OTHERS)  # [M]
            its_key = tl.load(keys + other, mask=other < count, other=0)
            place += tl.sum((its_key[:, None] > key[None, :]).to(tl.int32), axis=0)
            start += OTHERS
        chosen = (pair < count) & (place < top_k)
        candidate = tl.load(members + pair, mask=chosen, other=0)
        x1, y1, x2, y2 = _corners(boxes + image * capacity * 4, candidate, chosen)
        bits, rest = key >> 32, 0xFFFFFFFF - (key & 0xFFFFFFFF)
        row = table + (image * top_k + place) * 7
        tl.store(row, x1.to(tl.int32, bitcast=True), mask=chosen)
        tl.store(row + 1, y1.to(tl.int32, bitcast=True), mask=chosen)
        tl.store(row + 2, x2.to(tl.int32, bitcast=True), mask=chosen)
        tl.store(row + 3, y2.to(tl.int32, bitcast=True), mask=chosen)
        tl.store(row + 4, bits.to(tl.int32), mask=chosen)
        tl.store(row + 5, (rest // total).to(tl.int32), mask=chosen)
        tl.store(row + 6, (rest % total).to(tl.int32), mask=chosen)
