"""Finds errors in a data set before a training run does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from PIL import Image
from tqdm import tqdm

from yolact_ros.data.coco import (
    DataSource,
    as_rle,
    as_rles,
    fits_as_stored,
    is_there,
    read_annotated_image,
)
from yolact_ros.data.entries import (
    FIELDS,
    DataError,
    FieldCheck,
    Problem,
    is_integer,
    is_number,
    load,
    read_json,
    refuse,
    sift,
)
from yolact_ros.image_files import is_cut_short

# Boxes may exceed the image by rounding, in pixels.
_TOLERANCE = 1.0
_NO_MASK = "it has no mask; only a network without masks (mask_branch none) learns without"
# A box fits its mask if their IoU is at least this, or no side is farther off, in pixels.
_MIN_IOU, _NEAR = 0.5, 3.0
_FARTHEST_LEARNED, _FARTHEST_COUNTED = 1, 100
"""How far outside the image polygon points may lie, in widths or heights of it: drawing and
counting take time and memory for every pixel in between."""


@dataclass(frozen=True)
class Report:
    """What `check` found."""

    problems: tuple[Problem, ...]
    content: dict[str, Any]
    """The file's content without the bad entries."""

    def raise_if_bad(self) -> None:
        """Raise DataError with the first problems, if there are any."""
        refuse(self.problems)


def check(
    source: DataSource,
    decode: bool = False,
    progress: bool = False,
    masks: bool = True,
    measure: bool = False,
) -> Report:
    """Check every entry and every image of a data set.

    Args:
        source: The annotation file and its images.
        decode: Decode every image. Otherwise only headers are read, and the ends of JPEG and PNG
            files show whether they are complete.
        progress: Show progress bars.
        masks: Require a mask for each object; otherwise a box is enough.
        measure: The data are for measuring accuracy: annotations need only be countable, as in
            `read_countable`, even if nothing can be learned from them.

    Raises:
        DataError: If no image or no category in the file is valid.
    """
    file, content = source.annotations, load(source.annotations)
    good: dict[str, list[Any]] = {}
    problems: list[Problem] = []

    def keep(kind: str, reasons: Iterator[str | None], what: str) -> None:
        entries = good.get(kind, content[kind])
        bar = tqdm(reasons, what, len(entries), disable=None if progress else True)
        good[kind], wrong = sift(file, kind, entries, bar)
        problems.extend(wrong)

    for kind in FIELDS:
        keep(kind, map(FieldCheck(kind), content[kind]), kind)
    folder = source.folder(good)
    with ThreadPoolExecutor() as pool:
        find = partial(_wrong_image, folder, decode)
        keep("images", pool.map(find, good["images"]), "image files")
    for kind in ("categories", "images"):
        if not good[kind]:
            refuse(problems)
            raise DataError(f"{file} has no {kind}")
    wrong_annotation = _uncountable if measure else _wrong_annotation
    find = partial(wrong_annotation, masks, _Known.of(good))
    keep("annotations", map(find, good["annotations"]), "boxes and masks")
    return Report(tuple(problems), content | good)


def read_countable(source: DataSource, masks: bool) -> dict[str, Any]:
    """Read a file that accuracy can be measured on, counted as COCO does.

    Raises DataError for missing images, and for annotations without an image or a category in
    the file or, if `masks` are evaluated, without a mask. Empty boxes and masks are useless for
    training but can be counted: COCO's own files have some.
    """
    file, content = source.annotations, read_json(source.annotations)
    reason = partial(_uncountable, masks, _Known.of(content))
    folder = source.folder(content)

    def missing(entry: dict[str, Any]) -> str | None:
        path = folder / entry["file_name"]
        return None if is_there(path) else f"{path} is missing"

    for kind, find in (("images", missing), ("annotations", reason)):
        refuse(sift(file, kind, content[kind], map(find, content[kind]))[1])
    return content


def crowd_remark(content: dict[str, Any]) -> str:
    """Return a remark if crowd regions are at least a tenth of a file's annotations, else ""."""
    total = len(content["annotations"])
    crowds = sum(bool(a.get("iscrowd")) for a in content["annotations"])
    if crowds * 10 < max(total, 1):
        return ""
    return (
        f"{crowds} of {total} annotations are crowd regions (iscrowd 1, as CVAT writes what was "
        "drawn with a brush): of these nothing is learned or measured"
    )


@dataclass(frozen=True)
class _Known:
    """Images and categories that annotations may refer to."""

    sizes: dict[int, tuple[int, int]]
    """(height, width) in pixels of each image, by its id."""
    categories: set[int]

    @classmethod
    def of(cls, content: dict[str, Any]) -> _Known:
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        return cls(sizes, {category["id"] for category in content["categories"]})


def _wrong_image(folder: Path, decode: bool, entry: dict[str, Any]) -> str | None:
    path = folder / entry["file_name"]
    size = entry["height"], entry["width"]
    try:
        if not is_there(path):
            return f"{path} is missing"
        with Image.open(path) as image:
            fits_as_stored(image, path, size)
            is_tried = decode or image.format not in ("JPEG", "PNG")
            if is_tried:
                image.load()  # finds damage that OpenCV conceals
        if _is_cut_short(path):
            return f"{path} cannot be read: it is cut short"
        if is_tried:
            read_annotated_image(path, size)
    except DataError as error:
        return str(error)
    except Exception as error:  # damaged files raise many kinds of errors
        return f"{path} cannot be read: {error}"
    return None


def _is_cut_short(path: Path) -> bool:
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return is_cut_short(data)  # reads only the first and last page of a complete file


def _uncountable(masks: bool, known: _Known, entry: dict[str, Any]) -> str | None:
    wrong = _wrong_reference(known, entry)
    if wrong or not masks:
        return wrong
    segmentation, size = entry.get("segmentation"), known.sizes[entry["image_id"]]
    if not segmentation:
        return _NO_MASK
    if isinstance(segmentation, list):
        # The library treats a first polygon of two points as a box; later ones are empty.
        first, others = segmentation[:1], segmentation[1:]
        return (
            _wrong_numbers(first, least=6)
            or _wrong_numbers(others, least=4)
            or _far_outside(segmentation, *size, _FARTHEST_COUNTED)
        )
    return _wrong_rle(segmentation, *size)


def _wrong_annotation(masks: bool, known: _Known, entry: dict[str, Any]) -> str | None:
    if wrong := _wrong_reference(known, entry):
        return wrong
    segmentation, size = entry.get("segmentation"), known.sizes[entry["image_id"]]
    if wrong := _wrong_box(entry["bbox"], *size):
        return wrong
    if not masks and not any(segmentation or ()):  # [[]] is none either
        return None
    if not segmentation:
        return _NO_MASK
    wrong_mask = _wrong_polygons if isinstance(segmentation, list) else _wrong_rle
    if wrong := wrong_mask(segmentation, *size):
        return wrong
    if not any(coco_mask.area(as_rles(segmentation, *size))):
        return f"segmentation covers no pixel of its image of {size[1]} x {size[0]}"
    if entry.get("iscrowd"):  # only its box is used
        return None
    return _wrong_place(entry["bbox"], segmentation, *size)


def _wrong_reference(known: _Known, entry: dict[str, Any]) -> str | None:
    image, category = entry["image_id"], entry["category_id"]
    if image not in known.sizes:
        return f"image_id {image} is no image of this file, or one that is wrong itself"
    if category not in known.categories:
        return f"category_id {category} is no category of this file, or one that is wrong itself"
    return None


def _wrong_box(box: list[float], height: int, width: int) -> str | None:
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return f"bbox {box} has no area"
    if min(x, y) < -_TOLERANCE or x + w > width + _TOLERANCE or y + h > height + _TOLERANCE:
        return f"bbox {box} is outside its image of {width} x {height} pixels"
    return None


def _wrong_place(
    box: list[float], segmentation: list[Any] | dict[str, Any], height: int, width: int
) -> str | None:
    """Describe a box that does not fit its mask, for example because its units are wrong."""
    x, y, w, h = around = coco_mask.toBbox(as_rle(segmentation, height, width)).tolist()
    offsets = np.subtract(box, around)
    offsets[2:] += offsets[:2]  # of the right and the lower side
    if coco_mask.iou([box], [around], [0]) >= _MIN_IOU or np.abs(offsets).max() <= _NEAR:
        return None
    return f"bbox {box} is not around its mask, which is within [{x:g}, {y:g}, {w:g}, {h:g}]"


def _wrong_numbers(polygons: list[Any], least: int) -> str | None:
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < least or len(polygon) % 2:
            return f"segmentation has {short(polygon)}: a polygon is three or more x and y"
        for value in polygon:
            if not is_number(value):
                return f"segmentation has {short(value)}, which is not a finite number"
    return None


def _wrong_polygons(polygons: list[Any], height: int, width: int) -> str | None:
    return _wrong_numbers(polygons, least=6) or _far_outside(
        polygons, height, width, _FARTHEST_LEARNED
    )


def _far_outside(polygons: list[Any], height: int, width: int, farthest: int) -> str | None:
    for polygon in polygons:
        for value, side in zip(polygon, (width, height) * (len(polygon) // 2), strict=True):
            if not -farthest * side <= value <= (1 + farthest) * side:
                return f"segmentation has {value}, far outside an image of {width} x {height}"
    return None


def _wrong_rle(rle: dict[str, Any], height: int, width: int) -> str | None:
    if not {"size", "counts"} <= set(rle):
        return "segmentation is neither a list of polygons nor an RLE with size and counts"
    size, counts = rle["size"], rle["counts"]
    if size != [height, width] or not all(map(is_integer, size)):
        return f"segmentation has the size {short(size)}, its image {[height, width]}"
    try:
        runs = counts if isinstance(counts, list) else _runs(counts)
    except (TypeError, ValueError) as error:
        return f"segmentation is a broken RLE: {error}"
    if not all(is_integer(run) and run >= 0 for run in runs) or sum(runs) != height * width:
        return f"segmentation is an RLE that does not fill {height} x {width} pixels"
    return None


def _runs(counts: str) -> list[int]:
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
