"""What is wrong with annotations: their images and categories, boxes and masks."""

from __future__ import annotations

from reprlib import repr as short
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from yolact_ros.data.entries import (
    AnnotationEntry,
    CocoFile,
    Rle,
    Segmentation,
    is_integer,
    is_number,
)
from yolact_ros.data.masks import as_rle, as_rles, run_lengths

# Boxes may exceed the image by rounding, in pixels.
_TOLERANCE = 1.0
_NO_MASK = "it has no mask; only a network without masks (mask_branch none) learns without"
# A box fits its mask if their IoU is at least this, or no side is farther off, in pixels.
_MIN_IOU, _NEAR = 0.5, 3.0
_FARTHEST_LEARNED, _FARTHEST_COUNTED = 1, 100
"""How far outside the image polygon points may lie, in widths or heights of it: drawing and
counting take time and memory for every pixel in between."""


class AnnotationCheck:
    """Says what is wrong with annotations of the images and categories in a file's `content`.

    With `masks`, each needs a mask; otherwise a box is enough.
    """

    def __init__(self, content: CocoFile, masks: bool) -> None:
        self.masks = masks
        self.sizes = {each["id"]: (each["height"], each["width"]) for each in content["images"]}
        self.categories = {category["id"] for category in content["categories"]}

    def why_unlearnable(self, entry: AnnotationEntry) -> str | None:
        """Return why nothing can be learned from an annotation; None if it is good."""
        if wrong := self._wrong_reference(entry):
            return wrong
        segmentation, size = entry.get("segmentation"), self.sizes[entry["image_id"]]
        if wrong := _wrong_box(entry["bbox"], *size):
            return wrong
        if not self.masks and not any(segmentation or ()):  # [[]] is none either
            return None
        if not segmentation:
            return _NO_MASK
        if wrong := _wrong_mask(segmentation, *size, _FARTHEST_LEARNED):
            return wrong
        if not any(coco_mask.area(as_rles(segmentation, *size))):
            return f"segmentation covers no pixel of its image of {size[1]} x {size[0]}"
        if entry.get("iscrowd"):  # only its box is used
            return None
        return _wrong_place(entry["bbox"], segmentation, *size)

    def why_uncountable(self, entry: AnnotationEntry) -> str | None:
        """Return why accuracy cannot be measured with an annotation; None if it is good.

        Empty boxes and masks are useless for training but can be counted.
        """
        wrong = self._wrong_reference(entry)
        if wrong or not self.masks:
            return wrong
        segmentation, size = entry.get("segmentation"), self.sizes[entry["image_id"]]
        if not segmentation:
            return _NO_MASK
        return _wrong_mask(segmentation, *size, _FARTHEST_COUNTED)

    def _wrong_reference(self, entry: AnnotationEntry) -> str | None:
        image, category = entry["image_id"], entry["category_id"]
        if image not in self.sizes:
            return f"image_id {image} is not a valid image of this file"
        if category not in self.categories:
            return f"category_id {category} is not a valid category of this file"
        return None


def _wrong_box(box: list[float], height: int, width: int) -> str | None:
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return f"bbox {box} has no area"
    if min(x, y) < -_TOLERANCE or x + w > width + _TOLERANCE or y + h > height + _TOLERANCE:
        return f"bbox {box} is outside its image of {width} x {height} pixels"
    return None


def _wrong_place(
    box: list[float], segmentation: Segmentation, height: int, width: int
) -> str | None:
    """Describe a box that does not fit its mask, for example because its units are wrong."""
    x, y, w, h = around = coco_mask.toBbox(as_rle(segmentation, height, width)).tolist()
    offsets = np.subtract(box, around)
    offsets[2:] += offsets[:2]  # of the right and the lower side
    if coco_mask.iou([box], [around], [0]) >= _MIN_IOU or np.abs(offsets).max() <= _NEAR:
        return None
    return f"bbox {box} is not around its mask, which is within [{x:g}, {y:g}, {w:g}, {h:g}]"


def _wrong_numbers(polygons: list[Any]) -> str | None:
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return f"segmentation has {short(polygon)}: a polygon is three or more x and y"
        for value in polygon:
            if not is_number(value):
                return f"segmentation has {short(value)}, which is not a finite number"
    return None


def _wrong_mask(segmentation: Segmentation, height: int, width: int, farthest: int) -> str | None:
    if not isinstance(segmentation, list):
        return _wrong_rle(segmentation, height, width)
    return _wrong_numbers(segmentation) or _far_outside(segmentation, height, width, farthest)


def _far_outside(polygons: list[Any], height: int, width: int, farthest: int) -> str | None:
    for polygon in polygons:
        for value, side in zip(polygon, (width, height) * (len(polygon) // 2), strict=True):
            if not -farthest * side <= value <= (1 + farthest) * side:
                return f"segmentation has {value}, far outside an image of {width} x {height}"
    return None


def _wrong_rle(rle: Rle, height: int, width: int) -> str | None:
    if not {"size", "counts"} <= set(rle):
        return "segmentation is neither a list of polygons nor an RLE with size and counts"
    size, counts = rle["size"], rle["counts"]
    if size != [height, width] or not all(map(is_integer, size)):
        return f"segmentation has the size {short(size)}, its image {[height, width]}"
    try:
        runs = counts if isinstance(counts, list) else run_lengths(counts)
    except (TypeError, ValueError) as error:
        return f"segmentation is a broken RLE: {error}"
    for run in runs:
        if not is_integer(run) or run < 0:
            return f"segmentation has the run {short(run)}, which is not an integer from 0 on"
    if sum(runs) != height * width:
        return f"segmentation is an RLE that does not fill {height} x {width} pixels"
    return None
