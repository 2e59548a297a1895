"""Finds errors in a data set before a training run does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image
from tqdm import tqdm

from yolact_ros.data.annotations import AnnotationCheck
from yolact_ros.data.coco import Dataset, DataSource
from yolact_ros.data.entries import (
    FIELDS,
    CocoFile,
    FieldCheck,
    ImageEntry,
    load,
)
from yolact_ros.data.images import fits_as_stored, image_path, is_there, read_annotated_image
from yolact_ros.data.problems import DataError, Problem, refuse, sift
from yolact_ros.image_files import is_cut_short


@dataclass(frozen=True)
class Report:
    """What `check` found."""

    problems: tuple[Problem, ...]
    dataset: Dataset
    """The data set without the bad entries."""

    def raise_if_bad(self) -> None:
        """Raise DataError with the first problems, if there are any."""
        refuse(self.problems)


def check(
    source: DataSource,
    purpose: Literal["learning", "measuring"] = "learning",
    *,
    masks: bool = True,
    decode: bool = False,
    progress: bool = False,
) -> Report:
    """Check every entry and every image of a data set.

    Args:
        source: The annotation file and its images.
        purpose: For measuring accuracy, annotations need only be countable, as in
            `read_countable`, even if nothing can be learned from them.
        masks: Require a mask for each object; otherwise a box is enough.
        decode: Decode every image. Otherwise only headers are read, and the ends of JPEG and PNG
            files show whether they are complete.
        progress: Show progress bars.

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
    folder = Dataset(source, cast(CocoFile, good)).folder
    with ThreadPoolExecutor() as pool:
        find = partial(_wrong_image, folder, decode)
        keep("images", pool.map(find, good["images"]), "image files")
    for kind in ("categories", "images"):
        if not good[kind]:
            refuse(problems)
            raise DataError(f"{file} has no {kind}")
    rules = AnnotationCheck(cast(CocoFile, good), masks)
    why = rules.why_unlearnable if purpose == "learning" else rules.why_uncountable
    keep("annotations", map(why, good["annotations"]), "boxes and masks")
    return Report(tuple(problems), Dataset(source, cast(CocoFile, content | good)))


def read_countable(source: DataSource, masks: bool) -> Dataset:
    """Read a data set that accuracy can be measured on, counted as COCO does.

    Raises DataError for missing images, and for annotations without an image or a category in
    the file or, if `masks` are evaluated, without a mask. Empty boxes and masks are useless for
    training but can be counted: COCO's own files have some.
    """
    dataset = source.read()
    folder, content = dataset.folder, dataset.content

    def why_missing(entry: ImageEntry) -> str | None:
        path = image_path(folder, entry["file_name"])
        return None if is_there(path) else f"{path} is missing"

    file, images, annotations = source.annotations, content["images"], content["annotations"]
    why = AnnotationCheck(content, masks).why_uncountable
    refuse(sift(file, "images", images, map(why_missing, images))[1])
    refuse(sift(file, "annotations", annotations, map(why, annotations))[1])
    return dataset


def _wrong_image(folder: Path, decode: bool, entry: ImageEntry) -> str | None:
    path = image_path(folder, entry["file_name"])
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
