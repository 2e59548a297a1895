"""COCO-format data sets: JSON files and folders of images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from yolact_ros.data.entries import AnnotationEntry, CocoFile, Segmentation, read_json
from yolact_ros.data.images import image_path, is_there, read_annotated_image
from yolact_ros.data.problems import DataError


@dataclass(frozen=True)
class DataSource:
    """One COCO-format annotation file and the folder of its images."""

    annotations: Path
    images: Path | None = None
    """None if the images are in one of the usual places, see `Dataset.folder`."""

    @classmethod
    def parse(cls, text: str) -> DataSource:
        """Parse `FILE.json` or `FILE.json:FOLDER`."""
        file, end, folder = text.partition(".json:")  # a folder's name may contain colons
        return cls(Path(file + end.removesuffix(":")), Path(folder) if folder else None)

    def read(self) -> Dataset:
        """Read the file. Raises DataError for bad fields, as `read_json` does."""
        return Dataset(self, read_json(self.annotations))


@dataclass(frozen=True)
class Annotation:
    """One object or crowd region of one image."""

    id: int
    label: int
    """Class id from 0."""
    box: tuple[float, float, float, float]
    """x, y, width, height in pixels, as in the file."""
    segmentation: Segmentation
    """Polygons, or RLE, compressed or not; the outline of the box where the file has none."""
    is_crowd: bool


@dataclass(frozen=True)
class ImageRecord:
    """One image and its annotations."""

    path: Path
    id: int
    height: int
    width: int
    annotations: tuple[Annotation, ...]

    def read(self) -> npt.NDArray[np.uint8]:
        """Read the image, BGR uint8 [height, width, 3]. Raises DataError."""
        return read_annotated_image(self.path, (self.height, self.width))


@dataclass(frozen=True)
class Dataset:
    """A data set whose file has been read."""

    source: DataSource
    content: CocoFile
    """The content of the file, or a part of it."""

    @cached_property
    def folder(self) -> Path:
        """The folder of the images.

        If none is given, it is the first that has an image of the file: `images` next to the file;
        the file's own folder, as in Roboflow exports; for `instances_NAME.json`, NAME one level up,
        as in COCO; `images` one level up, or NAME in it, as in CVAT exports. NAME is what follows
        the last underscore or the first, also without -train or -val. Raises DataError if no
        image is found.
        """
        source, names = self.source, [image["file_name"] for image in self.content["images"]]
        folders = self._usual_folders() if source.images is None else [source.images]
        for folder in folders:
            if any(is_there(image_path(folder, name)) for name in names):
                return folder
        if not names:
            return folders[0]
        raise DataError(
            f"{source.annotations}: none of its {len(names)} images, such as {names[0]}, is in "
            f"{' or '.join(map(str, folders))}; name their folder as {source.annotations}:FOLDER"
        )

    def _usual_folders(self) -> list[Path]:
        file = self.source.annotations
        beside = file.parent
        above = beside.resolve().parent  # of `.`, too
        folders = [beside / "images", beside]
        for stem in _wholes(file.stem):
            names = [stem.rpartition("_")[2], stem.partition("_")[2] or stem]
            folders += [*(above / name for name in names), above / "images"]
            folders += [above / "images" / name for name in names]
        return list(dict.fromkeys(folders))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the categories, in the order of their ids."""
        return tuple(c["name"] for c in sorted(self.content["categories"], key=lambda c: c["id"]))

    def category_ids(self, classes: Sequence[str]) -> dict[str, int]:
        """Return the category id of each class that the data set has. Raises DataError if none."""
        categories = self.content["categories"]
        found = {c["name"]: c["id"] for c in categories if c["name"] in classes}
        if not found:
            have = ", ".join(c["name"] for c in categories)
            raise DataError(
                f"{self.source.annotations} has none of the classes {', '.join(classes)}; "
                f"it has {have}"
            )
        return found

    def records(self, classes: Sequence[str], masks: bool = True) -> list[ImageRecord]:
        """Return all images with the annotations of the classes `classes`.

        Categories are matched by name; those not in `classes` are left out. Raises DataError if
        none is in `classes`. Without `masks`, which are then unchecked, that of an object is the
        outline of its box.
        """
        label_of = {id_: classes.index(name) for name, id_ in self.category_ids(classes).items()}
        by_image: dict[int, list[Annotation]] = {}
        for entry in self.content["annotations"]:
            if entry["category_id"] in label_of:
                x, y, width, height = entry["bbox"]
                annotation = Annotation(
                    id=entry["id"],
                    label=label_of[entry["category_id"]],
                    box=(x, y, width, height),
                    segmentation=_mask_of(entry) if masks else _outline(*entry["bbox"]),
                    is_crowd=bool(entry.get("iscrowd", 0)),
                )
                by_image.setdefault(entry["image_id"], []).append(annotation)
        return [
            ImageRecord(
                path=image_path(self.folder, image["file_name"]),
                id=image["id"],
                height=image["height"],
                width=image["width"],
                annotations=tuple(by_image.get(image["id"], ())),
            )
            for image in self.content["images"]
        ]


def _wholes(stem: str) -> list[str]:
    """Return a file's name and those of the files that `yolact data split` made it from."""
    stems = [stem]
    while (whole := re.sub("-(train|val)$", "", stems[-1])) != stems[-1]:
        stems.append(whole)
    return stems


def _mask_of(annotation: AnnotationEntry) -> Segmentation:
    """Return an annotation's segmentation, or its box's outline if it is missing, [] or [[]]."""
    segmentation = annotation.get("segmentation")
    if segmentation and any(segmentation):
        return segmentation
    return _outline(*annotation["bbox"])


def _outline(x: float, y: float, width: float, height: float) -> list[list[float]]:
    """Return a box as a polygon."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]
