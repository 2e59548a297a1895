"""COCO-format data sets: JSON files and folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from yolact_ros.data.entries import DataError, read_json
from yolact_ros.image_files import ImageFileError, read_image

_EXIF_ORIENTATION = 0x0112
_ON_ITS_SIDE = range(5, 9)


@dataclass(frozen=True)
class DataSource:
    """One COCO-format annotation file and the folder of its images."""

    annotations: Path
    images: Path | None = None
    """None if the images are in one of the usual places, see `folder`."""

    @classmethod
    def parse(cls, text: str) -> DataSource:
        """Parse `FILE.json` or `FILE.json:FOLDER`."""
        file, end, folder = text.partition(".json:")  # a folder's name may contain colons
        return cls(Path(file + end.removesuffix(":")), Path(folder) if folder else None)

    def folder(self, content: dict[str, Any]) -> Path:
        """Return the image folder of the file, which has this content.

        If none is given, it is the first that has an image of the file: `images` next to the file;
        the file's own folder, as in Roboflow exports; for `instances_NAME.json`, NAME one level up,
        as in COCO; `images` one level up, or NAME in it, as in CVAT exports. Raises DataError if no
        image is found.
        """
        names = [image["file_name"] for image in content["images"]]
        folders = self._usual_folders() if self.images is None else [self.images]
        for folder in folders:
            if any(is_there(folder / name) for name in names):
                return folder
        if not names:
            return folders[0]
        raise DataError(
            f"{self.annotations}: none of its {len(names)} images, such as {names[0]}, is in "
            f"{' or '.join(map(str, folders))}; name their folder as {self.annotations}:FOLDER"
        )

    def _usual_folders(self) -> list[Path]:
        beside = self.annotations.parent
        above = beside.resolve().parent  # of `.`, too
        name = self.annotations.stem.rpartition("_")[2]
        folders = beside / "images", beside, above / name, above / "images", above / "images" / name
        return list(dict.fromkeys(folders))


def is_there(path: Path) -> bool:
    """Whether a file exists; False if its name is too long for one."""
    try:
        return path.is_file()
    except OSError:
        return False


@dataclass(frozen=True)
class Annotation:
    """One object or crowd region of one image."""

    id: int
    label: int
    """Class id from 0."""
    box: tuple[float, float, float, float]
    """x, y, width, height in pixels, as in the file."""
    segmentation: Any
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


def class_names(content: dict[str, Any]) -> tuple[str, ...]:
    """Return the category names in a file's content, in the order of their ids."""
    return tuple(c["name"] for c in sorted(content["categories"], key=lambda c: c["id"]))


def category_ids(
    source: DataSource, classes: Sequence[str], content: dict[str, Any] | None = None
) -> dict[str, int]:
    """Return the category id of each class that the data set has. Raises DataError if none.

    `content` replaces the file's content.
    """
    categories = (content or read_json(source.annotations))["categories"]
    found = {c["name"]: c["id"] for c in categories if c["name"] in classes}
    if not found:
        have = ", ".join(c["name"] for c in categories)
        raise DataError(
            f"{source.annotations} has none of the classes {', '.join(classes)}; it has {have}"
        )
    return found


def read_records(
    source: DataSource,
    classes: Sequence[str],
    content: dict[str, Any] | None = None,
    masks: bool = True,
) -> list[ImageRecord]:
    """Return all images of a data set with the annotations of the classes `classes`.

    Categories are matched by name; those not in `classes` are left out. Raises DataError if none
    is in `classes`. `content` replaces the file's content. Without `masks`, which are then
    unchecked, that of an object is the outline of its box.
    """
    content = content or read_json(source.annotations)
    ids = category_ids(source, classes, content)
    label_of = {id_: classes.index(name) for name, id_ in ids.items()}
    by_image: dict[int, list[Annotation]] = {}
    for a in content["annotations"]:
        if a["category_id"] in label_of:
            by_image.setdefault(a["image_id"], []).append(
                Annotation(
                    id=a["id"],
                    label=label_of[a["category_id"]],
                    box=tuple(a["bbox"]),
                    segmentation=_mask_of(a) if masks else _outline(*a["bbox"]),
                    is_crowd=bool(a.get("iscrowd", 0)),
                )
            )
    folder = source.folder(content)
    return [
        ImageRecord(
            path=folder / image["file_name"],
            id=image["id"],
            height=image["height"],
            width=image["width"],
            annotations=tuple(by_image.get(image["id"], ())),
        )
        for image in content["images"]
    ]


def _mask_of(annotation: dict[str, Any]) -> Any:
    """Return an annotation's segmentation, or its box's outline if it is missing, [] or [[]]."""
    segmentation = annotation.get("segmentation")
    return segmentation if any(segmentation or ()) else _outline(*annotation["bbox"])


def _outline(x: float, y: float, width: float, height: float) -> list[list[float]]:
    """Return a box as a polygon."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def decode_mask(segmentation: Any, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Decode polygons or either form of RLE to a mask uint8 [height, width] of 0 and 1."""
    return np.asarray(coco_mask.decode(as_rle(segmentation, height, width)), np.uint8)


def encode_mask(mask: npt.NDArray[Any]) -> dict[str, Any]:
    """Encode a mask [height, width] of 0 and 1, or bool, as JSON-compatible compressed RLE."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def as_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Convert polygons or either form of RLE to one compressed RLE."""
    rle: dict[str, Any] = coco_mask.merge(as_rles(segmentation, height, width))
    return rle


def as_rles(segmentation: Any, height: int, width: int) -> list[dict[str, Any]]:
    """Convert polygons or either form of RLE to compressed RLEs, whose union is the mask."""
    if isinstance(segmentation, list):
        rles: list[dict[str, Any]] = coco_mask.frPyObjects(segmentation, height, width)
        return rles
    if isinstance(segmentation["counts"], list):
        return [coco_mask.frPyObjects(segmentation, height, width)]
    return [segmentation]


def read_annotated_image(path: Path, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """Read an image as BGR uint8 [H, W, 3].

    With the `size` (height, width) of its annotations, the image is read in the orientation that
    fits them, see `fits_as_stored`; otherwise as displayed. Raises DataError for a missing or
    unreadable image, or one of another size.
    """
    try:
        if size is None:
            return read_image(path)
        with Image.open(path) as header:
            as_stored = fits_as_stored(header, path, size)
        image = read_image(path, as_stored)
    except ImageFileError as error:
        raise DataError(str(error)) from error
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if image.shape[:2] != size:  # Pillow and OpenCV may disagree on the orientation
        height, width = image.shape[:2]
        raise DataError(
            f"{path} is read as {width} x {height} pixels, its entry says {size[1]} x {size[0]}: "
            "store it as it is displayed, without an EXIF orientation"
        )
    return image


def fits_as_stored(header: Image.Image, path: Path, size: tuple[int, int]) -> bool:
    """Whether an image has the `size` (height, width) as stored; otherwise it has it as displayed.

    Cameras may store images rotated and record that in the EXIF orientation. Annotations may
    refer to either; their size tells which. Raises DataError if neither has that size.
    """
    stored = header.height, header.width
    if stored == size:
        return True
    if stored == size[::-1] and header.getexif().get(_EXIF_ORIENTATION) in _ON_ITS_SIDE:
        return False
    raise DataError(
        f"{path} has {header.width} x {header.height} pixels, its entry says {size[1]} x {size[0]}"
    )
