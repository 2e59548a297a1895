"""Converts Pascal SBD (Hariharan et al., 2011) from its own files to COCO's format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from yolact_ros.data.entries import AnnotationEntry, CocoFile, ImageEntry
from yolact_ros.data.images import read_annotated_image
from yolact_ros.data.masks import encode_mask
from yolact_ros.data.problems import DataError
from yolact_ros.extras import how_to_install


def find_dataset(folder: Path) -> Path:
    """Find the folder with `img` and `inst`, which is `dataset` in the release.

    Raises DataError if there is none.
    """
    for path in (folder / "dataset", folder):
        if (path / "img").is_dir() and (path / "inst").is_dir():
            return path
    raise DataError(f"{folder} is not SBD's benchmark_RELEASE: it has no folders img and inst")


def read_sbd(dataset: Path, split: str, classes: Sequence[str], progress: bool = False) -> CocoFile:
    """Make the content of a COCO-format file for the images listed in SPLIT.txt.

    `classes` are Pascal's, in order. Masks become RLEs, file names are relative to `img`. Raises
    DataError for a missing file or one that is not SBD's, and if scipy is missing.
    """
    listed = dataset / f"{split}.txt"
    try:
        names = listed.read_text().split()
    except OSError as error:
        raise DataError(f"{listed} cannot be read: {error}") from error
    images: list[ImageEntry] = []
    annotations: list[AnnotationEntry] = []
    for number, name in enumerate(tqdm(names, split, disable=not progress), start=1):
        file = dataset / "img" / f"{name}.jpg"
        height, width = read_annotated_image(file).shape[:2]
        images.append({"id": number, "file_name": file.name, "height": height, "width": width})
        path = dataset / "inst" / f"{name}.mat"
        labels, categories = _read_instances(path)
        if labels.shape != (height, width):
            raise DataError(f"{path} is of {labels.shape} pixels, {file} of {(height, width)}")
        if labels.max() > len(categories) or not all(1 <= c <= len(classes) for c in categories):
            raise DataError(
                f"{path} has instances up to {labels.max()} of the categories {categories}: "
                f"there must be one for each, 1 to {len(classes)}"
            )
        for instance, category in enumerate(categories, start=1):
            mask = labels == instance
            if mask.any():
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": category,
                        "segmentation": encode_mask(mask),
                        # It covers all pixels; the published conversion omits the last ones.
                        "bbox": list(cv2.boundingRect(mask.astype(np.uint8))),
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                    }
                )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
    }


def _read_instances(path: Path) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Return the instance of each pixel [H, W] (0: none) and each instance's category, from 1."""
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise DataError(f"scipy is missing: {how_to_install('sbd')}") from error
    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False)["GTinst"]
        labels = np.asarray(content.Segmentation, np.uint8)
        return labels, np.atleast_1d(content.Categories).astype(int).tolist()
    except Exception as error:  # damaged files raise many kinds of errors
        raise DataError(f"{path} has no instances in SBD's form: {error!r}") from error
