"""COCO-format data sets: JSON files beside folders of pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as coco_mask


class DataError(ValueError):
    """A data set that cannot be trained on; the message names the file and the reason."""


@dataclass(frozen=True)
class DataSource:
    """One COCO-format annotation file and the folder of its pictures."""

    annotations: Path
    images: Path

    @classmethod
    def parse(cls, text: str) -> DataSource:
        """`FILE.json:FOLDER`; without a folder the pictures are in `images` beside the file."""
        file, _, folder = text.partition(":")
        path = Path(file)
        return cls(path, Path(folder) if folder else path.parent / "images")


@dataclass(frozen=True)
class Annotation:
    """One object or crowd region of one picture."""

    id: int
    label: int
    """Class id from 0."""
    box: tuple[float, float, float, float]
    """x, y, width, height in pixels, as in the file."""
    segmentation: Any
    """Polygons, or RLE, compressed or not."""
    is_crowd: bool


@dataclass(frozen=True)
class ImageRecord:
    """One picture and its annotations."""

    path: Path
    id: int
    height: int
    width: int
    annotations: tuple[Annotation, ...]


def read_json(path: Path) -> dict[str, Any]:
    """The content of a COCO-format file. Raises DataError when there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    missing = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if missing:
        raise DataError(f"{path} is not a COCO-format file: it has no list {', '.join(missing)}")
    return content


def class_names(source: DataSource) -> tuple[str, ...]:
    """The names of a data set's categories, in the order of their ids."""
    categories = read_json(source.annotations)["categories"]
    return tuple(c["name"] for c in sorted(categories, key=lambda c: c["id"]))


def read_records(
    source: DataSource, classes: Sequence[str], content: dict[str, Any] | None = None
) -> list[ImageRecord]:
    """All pictures of a data set with the annotations of the classes `classes`.

    Categories are told apart by name; those that are not in `classes` are left out. Raises
    DataError when none of them is. `content` takes the place of the file's content.
    """
    content = content or read_json(source.annotations)
    label_of = {
        c["id"]: classes.index(c["name"]) for c in content["categories"] if c["name"] in classes
    }
    if not label_of:
        have = ", ".join(c["name"] for c in content["categories"])
        raise DataError(
            f"{source.annotations} has none of the classes {', '.join(classes)}; it has {have}"
        )
    by_image: dict[int, list[Annotation]] = {}
    for a in content["annotations"]:
        if a["category_id"] in label_of:
            by_image.setdefault(a["image_id"], []).append(
                Annotation(
                    id=a["id"],
                    label=label_of[a["category_id"]],
                    box=tuple(a["bbox"]),
                    segmentation=a["segmentation"],
                    is_crowd=bool(a.get("iscrowd", 0)),
                )
            )
    return [
        ImageRecord(
            path=source.images / image["file_name"],
            id=image["id"],
            height=image["height"],
            width=image["width"],
            annotations=tuple(by_image.get(image["id"], ())),
        )
        for image in content["images"]
    ]


def decode_mask(segmentation: Any, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A mask uint8 [height, width] of 0 and 1, from polygons or either form of RLE."""
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    return np.asarray(coco_mask.decode(rle), np.uint8)


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """A picture as BGR uint8 [H, W, 3]. Raises DataError when it is missing or no picture."""
    # Annotations count pixels as they are stored, whatever the camera's orientation says.
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise DataError(f"{path} is missing or is not a picture that can be read")
    return np.asarray(image, np.uint8)
