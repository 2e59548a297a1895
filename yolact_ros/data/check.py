"""Finding what is wrong with a data set before a training run does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from yolact_ros.data.coco import DataError, DataSource, read_image, read_json

# Boxes may stand out of the picture by rounding.
_TOLERANCE = 1.0
_SHOWN = 20


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    file: Path
    """The annotation file."""
    where: str
    """The entry, such as `annotation 17`."""
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.where}: {self.reason}"


@dataclass(frozen=True)
class Report:
    """What `check` found."""

    problems: tuple[Problem, ...]
    content: dict[str, Any]
    """The file's content without the entries that are wrong."""

    def raise_if_bad(self) -> None:
        """Raises DataError with the first problems, if there are any."""
        if self.problems:
            lines = [str(problem) for problem in self.problems[:_SHOWN]]
            if len(self.problems) > _SHOWN:
                lines.append(f"... and {len(self.problems) - _SHOWN} more")
            raise DataError("the data set is not right:\n" + "\n".join(lines))


def check(source: DataSource, decode: bool = False, progress: bool = False) -> Report:
    """Look at every entry of a data set.

    Of pictures only the header is read, unless `decode` asks for all of them. Raises DataError for
    a file that has no entries to look at.
    """
    content = read_json(source.annotations)
    problems: list[Problem] = []

    def keep(kind: str, find: Callable[[Any], str | None]) -> list[Any]:
        good = []
        entries = content[f"{kind}s" if kind != "category" else "categories"]
        for i, entry in enumerate(tqdm(entries, f"{kind} entries", disable=not progress)):
            reason = find(entry)
            if reason is None:
                good.append(entry)
            else:
                name = f"no. {i + 1}"
                if isinstance(entry, dict):
                    name = entry.get("id", name)
                problems.append(Problem(source.annotations, f"{kind} {name}", reason))
        return good

    categories = keep("category", _Unique(("id", "name"), unique=("id", "name")))
    unique = _Unique(("id", "file_name", "height", "width"), unique=("id", "file_name"))
    images = keep("image", lambda e: unique(e) or _wrong_image(e, source.images, decode))
    sizes = {e["id"]: (e["height"], e["width"]) for e in images}
    known = {e["id"] for e in categories}
    needed = _Unique(("id", "image_id", "category_id", "bbox", "segmentation"), unique=("id",))
    annotations = keep("annotation", lambda e: needed(e) or _wrong_annotation(e, sizes, known))
    if not images:
        raise DataError("\n".join(map(str, problems)) or f"{source.annotations} has no images")
    good = content | {
        "categories": categories,
        "images": images,
        "annotations": annotations,
    }
    return Report(tuple(problems), good)


class _Unique:
    """Tells what keys an entry lacks, or which value it shares with an earlier one."""

    def __init__(self, keys: tuple[str, ...], unique: tuple[str, ...]) -> None:
        self.keys, self.unique = keys, unique
        self.seen: dict[str, set[Any]] = {key: set() for key in unique}

    def __call__(self, entry: Any) -> str | None:
        if not isinstance(entry, dict):
            return f"{entry!r} is not an object with fields"
        missing = [key for key in self.keys if key not in entry]
        if missing:
            return f"it has no {', '.join(missing)}"
        for key in self.unique:
            value = entry[key]
            if not isinstance(value, int | str):
                return f"{key} {value!r} is neither a number nor a name"
            if value in self.seen[key]:
                return f"an earlier entry has the same {key} {value!r}"
        for key in self.unique:
            self.seen[key].add(entry[key])
        return None


def _wrong_image(entry: dict[str, Any], folder: Path, decode: bool) -> str | None:
    path = folder / str(entry["file_name"])
    stated = (entry["width"], entry["height"])
    if not path.is_file():
        return f"{path} is missing"
    try:
        with Image.open(path) as image:
            size = image.size
        if decode:
            read_image(path)
    except (OSError, DataError) as error:
        return f"{path} cannot be read: {error}"
    if size != stated:
        return f"{path} has {size[0]} x {size[1]} pixels, the entry says {stated[0]} x {stated[1]}"
    return None


def _wrong_annotation(
    entry: dict[str, Any], sizes: dict[int, tuple[int, int]], categories: set[int]
) -> str | None:
    image, category = entry["image_id"], entry["category_id"]
    if not isinstance(image, int | str) or image not in sizes:
        return f"image_id {image!r} is no image of this file, or one that is wrong itself"
    if not isinstance(category, int | str) or category not in categories:
        return f"category_id {category!r} is no category of this file"
    height, width = sizes[image]
    return _wrong_box(entry["bbox"], height, width) or _wrong_segmentation(
        entry["segmentation"], height, width
    )


def _wrong_box(box: Any, height: int, width: int) -> str | None:
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_finite, box)):
        return f"bbox {box!r} is not four finite numbers"
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return f"bbox {box!r} has no area"
    if min(x, y) < -_TOLERANCE or x + w > width + _TOLERANCE or y + h > height + _TOLERANCE:
        return f"bbox {box!r} is outside its image of {width} x {height} pixels"
    return None


def _wrong_segmentation(segmentation: Any, height: int, width: int) -> str | None:
    if isinstance(segmentation, list):
        if not segmentation:
            return "segmentation has no polygon"
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                return "segmentation has a polygon of fewer than three points"
            if not all(map(_is_finite, polygon)):
                return "segmentation has a number that is not finite"
        return None
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        return "segmentation is neither a list of polygons nor an RLE"
    if list(segmentation["size"]) != [height, width]:
        return f"segmentation has the size {segmentation['size']}, its image {[height, width]}"
    try:
        counts = segmentation["counts"]
        runs = counts if isinstance(counts, list) else _runs(counts)
    except (TypeError, ValueError) as error:
        return f"segmentation is a broken RLE: {error}"
    if not all(isinstance(run, int) and run >= 0 for run in runs) or sum(runs) != height * width:
        return f"segmentation is an RLE that does not fill {height} x {width} pixels"
    return "segmentation is an empty mask" if sum(runs[1::2]) == 0 else None


def _runs(counts: str) -> list[int]:
    """Run lengths of a compressed RLE: five bits a character, differences to the run before last.

    Read here and not by the C library, which trusts the text. Raises ValueError for other text.
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


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
