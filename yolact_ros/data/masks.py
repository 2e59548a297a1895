"""Masks of COCO-format files: polygons and both forms of RLE."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as coco_mask

from yolact_ros.data.entries import Rle, Segmentation


def decode_mask(segmentation: Segmentation, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Decode polygons or either form of RLE to a mask uint8 [height, width] of 0 and 1."""
    return np.asarray(coco_mask.decode(as_rle(segmentation, height, width)), np.uint8)


def encode_mask(mask: npt.NDArray[Any]) -> Rle:
    """Encode a mask [height, width] of 0 and 1, or bool, as JSON-compatible compressed RLE."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def as_rle(segmentation: Segmentation, height: int, width: int) -> Rle:
    """Convert polygons or either form of RLE to one compressed RLE."""
    rle: Rle = coco_mask.merge(as_rles(segmentation, height, width))
    return rle


def as_rles(segmentation: Segmentation, height: int, width: int) -> list[Rle]:
    """Convert polygons or either form of RLE to compressed RLEs, whose union is the mask."""
    if isinstance(segmentation, list):
        rles: list[Rle] = coco_mask.frPyObjects(segmentation, height, width)
        return rles
    if isinstance(segmentation["counts"], list):
        return [coco_mask.frPyObjects(segmentation, height, width)]
    return [segmentation]


def run_lengths(counts: str) -> list[int]:
    """Decode the run lengths of a compressed RLE: five bits per character, as differences to the
    run before last.

    The C library would trust invalid text. Raises ValueError for invalid text.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"{character!r} does not belong there")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("it ends in the middle of a number")
    return runs
