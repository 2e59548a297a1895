"""What annotation tools write differently from COCO, where it is clear what is meant.

Anything else is kept, for `entries.FieldCheck` and `annotations.AnnotationCheck` to find.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_INTEGERS = ("id", "image_id", "category_id", "height", "width", "iscrowd")


def as_in_coco(lists: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a file with categories, images and annotations as COCO writes them."""
    read: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "categories": _with_integers,
        "images": _with_integers,
        "annotations": lambda annotation: _annotation(_with_integers(annotation)),
    }
    converted = {
        kind: [convert(e) if isinstance(e, dict) else e for e in lists[kind]]
        for kind, convert in read.items()
    }
    return lists | converted | {"categories": _without_headings(converted)}


def _with_integers(entry: dict[str, Any]) -> dict[str, Any]:
    """Convert whole numbers such as 3.0, which tables export, to integers."""
    values = {name: entry[name] for name in _INTEGERS if isinstance(entry.get(name), float)}
    return entry | {name: _integer(value) for name, value in values.items()} if values else entry


def _integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _annotation(annotation: dict[str, Any]) -> dict[str, Any]:
    """Convert numbers of a box in quotes (Roboflow) and a mask; leave out fields that are null."""
    changes: dict[str, Any] = {}
    box, segmentation = annotation.get("bbox"), annotation.get("segmentation")
    if isinstance(box, list) and any(isinstance(value, str) for value in box):
        changes["bbox"] = [_number(value) for value in box]
    if (mask := _mask(segmentation)) is not segmentation:
        changes["segmentation"] = mask
    null = [name for name in ("area", "iscrowd") if annotation.get(name, 0) is None]
    if not changes and not null:  # a large file has many: new objects cost seconds
        return annotation
    return {name: v for name, v in (annotation | changes).items() if name not in null}


def _mask(segmentation: Any) -> Any:
    """Leave out polygons of one or two points beside larger ones, which have no pixel: contours of
    brush masks have some. Convert whole numbers in an RLE to integers."""
    if isinstance(segmentation, list):
        larger = [part for part in segmentation if not _is_stray(part)]
        return larger if 0 < len(larger) < len(segmentation) else segmentation
    if not isinstance(segmentation, dict):
        return segmentation
    lists = {name: value for name, value in segmentation.items() if isinstance(value, list)}
    if not any(isinstance(v, float) for values in lists.values() for v in values):
        return segmentation
    return segmentation | {name: [_integer(v) for v in values] for name, values in lists.items()}


def _is_stray(part: Any) -> bool:
    return isinstance(part, list) and len(part) in (2, 4)


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _without_headings(lists: dict[str, list[Any]]) -> list[Any]:
    """Return the categories except headings: supercategories of others without objects.

    Roboflow exports one above all classes; its name may also be that of a class. In a file without
    objects they cannot be recognised, so all categories are kept.
    """
    categories, objects = (
        [entry for entry in lists[kind] if isinstance(entry, dict)]
        for kind in ("categories", "annotations")
    )

    def is_heading(category: Any) -> bool:
        if not isinstance(category, dict) or not isinstance(category.get("name"), str):
            return False
        # Not its own: COCO's person is in the supercategory person.
        below = [c for c in categories if c.get("supercategory") == category["name"]]
        is_above, id_ = any(c is not category for c in below), category.get("id")
        return is_above and all(a.get("category_id") != id_ for a in objects)

    return [c for c in lists["categories"] if not (objects and is_heading(c))]
