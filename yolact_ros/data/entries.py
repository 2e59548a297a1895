"""The entries of COCO-format files: their fields, and what each may hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, TypedDict, cast

from yolact_ros.data.exports import as_in_coco
from yolact_ros.data.problems import DataError, refuse, sift
from yolact_ros.text import is_valid_unicode

if TYPE_CHECKING:
    from typing_extensions import NotRequired

# Larger numbers in a file cannot be pixels or ids.
_LARGEST = 2**53


class CategoryEntry(TypedDict):
    """A class."""

    id: int
    name: str


class ImageEntry(TypedDict):
    """An image; `file_name` is relative to the folder of the images, the size is in pixels."""

    id: int
    file_name: str
    height: int
    width: int


class Rle(TypedDict):
    """A mask as run lengths, column by column: compressed to text, or as they are."""

    size: list[int]
    """Height and width."""
    counts: str | list[int]


Segmentation = list[list[float]] | Rle
"""A mask: polygons x1 y1 x2 y2 ... in pixels, or an RLE."""


class AnnotationEntry(TypedDict):
    """An object or a crowd region in an image."""

    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    """x, y, width, height in pixels."""
    segmentation: NotRequired[Segmentation | None]
    area: NotRequired[float]
    """Of the mask, in pixels."""
    iscrowd: NotRequired[int]


class CocoFile(TypedDict):
    """The content of a COCO-format file, as far as it is used; other fields are kept."""

    categories: list[CategoryEntry]
    images: list[ImageEntry]
    annotations: list[AnnotationEntry]


@dataclass(frozen=True)
class Field:
    """What one field of an entry may hold."""

    is_right: Callable[[Any], bool]
    allowed: str
    unique: bool = False
    """No two entries of the file have the same."""
    optional: bool = False


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, not a bool."""
    return type(value) is int and abs(value) <= _LARGEST


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, not a bool."""
    return type(value) in (int, float) and abs(value) <= _LARGEST


_INTEGER = "an integer from -2^53 to 2^53"
_ID = Field(is_integer, _INTEGER, unique=True)
# The evaluation library accepts no others.
_IMAGE_ID = Field(lambda v: is_integer(v) and v >= 0, "an integer from 0 to 2^53", unique=True)
_REFERENCE = Field(is_integer, _INTEGER)
_FILE_NAME = Field(lambda v: isinstance(v, str) and bool(v.strip()), "a name", unique=True)
_CLASS_NAME = Field(lambda v: _FILE_NAME.is_right(v) and is_valid_unicode(v), "a name", unique=True)
_SIZE = Field(lambda v: is_integer(v) and v > 0, "a positive integer")
FIELDS = {
    "categories": {"id": _ID, "name": _CLASS_NAME},
    "images": {"id": _IMAGE_ID, "file_name": _FILE_NAME, "height": _SIZE, "width": _SIZE},
    "annotations": {
        "id": _ID,
        "image_id": _REFERENCE,
        "category_id": _REFERENCE,
        "bbox": Field(
            lambda v: isinstance(v, list) and len(v) == 4 and all(map(is_number, v)),
            "four finite numbers",
        ),
        "segmentation": Field(
            lambda v: v is None or isinstance(v, list | dict), "polygons or an RLE", optional=True
        ),
        "area": Field(lambda v: is_number(v) and v >= 0, "a number from 0 on", optional=True),
        "iscrowd": Field(lambda v: isinstance(v, int) and v in (0, 1), "0 or 1", optional=True),
    },
}
"""The lists of a COCO-format file, and the fields of their entries."""


class FieldCheck:
    """Says what is wrong with an entry's fields; remembers earlier entries, to find duplicates."""

    def __init__(self, kind: str) -> None:
        self.fields = FIELDS[kind]
        self.seen: dict[str, set[Any]] = {n: set() for n, f in self.fields.items() if f.unique}

    def __call__(self, entry: Any) -> str | None:
        if not isinstance(entry, dict):
            return f"{short(entry)} is not an object with fields"
        missing = [n for n, field in self.fields.items() if n not in entry and not field.optional]
        if missing:
            return f"it has no {', '.join(missing)}"
        for name, field in self.fields.items():
            if name in entry and not field.is_right(entry[name]):
                # Messages name the id: without it, the problems of many entries are one.
                value = "" if name == "id" else f" {short(entry[name])}"
                return f"{name}{value} is not {field.allowed}"
        for name, values in self.seen.items():
            if entry[name] in values:
                return f"an earlier entry has the same {name} {entry[name]!r}"
        for name, values in self.seen.items():
            values.add(entry[name])
        return None


def load(path: Path) -> dict[str, Any]:
    """Load a COCO-format file without checking its entries, converted to what COCO writes where
    tools differ (see `exports`).

    If there is no list of annotations, as in COCO's test-dev, whose annotations are secret, it is
    empty. Raises DataError if another list is missing.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    lists = content if isinstance(content, dict) else {}
    if "images" in lists and "categories" in lists:
        lists.setdefault("annotations", [])
    missing = [kind for kind in FIELDS if not isinstance(lists.get(kind), list)]
    if missing:
        raise DataError(f"{path} is not a COCO-format file: it has no list {', '.join(missing)}")
    return as_in_coco(lists)


def read_json(path: Path) -> CocoFile:
    """Load the content of a COCO-format file and check all fields.

    Raises DataError for bad fields. Boxes, masks and images are checked by `check`.
    """
    content = load(path)
    for kind in FIELDS:
        refuse(sift(path, kind, content[kind], map(FieldCheck(kind), content[kind]))[1])
    return cast(CocoFile, content)
