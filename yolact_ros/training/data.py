"""COCO-format data sets: JSON files beside folders of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors

from yolact_ros.training.augmentation import AugmentationSettings, Sample, augment
from yolact_ros.training.targets import Target


class DataError(ValueError):
    """A data set that cannot be trained on; the message names the file and the reason."""


@dataclass(frozen=True)
class DataSource:
    """One COCO-format annotation file and the folder of its pictures."""

    annotations: Path
    images: Path

    @classmethod
    def parse(cls, text: str) -> DataSource:
        """`FILE.json`, with the pictures in the folder `images` beside it, or `FILE.json:FOLDER`."""
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


def read_records(source: DataSource, classes: Sequence[str]) -> list[ImageRecord]:
    """All pictures of a data set with the annotations of the classes `classes`.

    Categories are told apart by name; those that are not in `classes` are left out. Raises
    DataError when none of them is.
    """
    content = read_json(source.annotations)
    label_of = {c["id"]: classes.index(c["name"]) for c in content["categories"] if c["name"] in classes}
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


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A mask uint8 [height, width] of 0 and 1, from polygons or either form of RLE."""
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    return coco_mask.decode(rle)


def read_image(path: Path) -> np.ndarray:
    """A picture as BGR uint8 [H, W, 3]. Raises DataError when it is missing or no picture."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path} is missing or is not a picture that can be read")
    return image


def load_sample(record: ImageRecord) -> Sample:
    """Picture and annotations of a record, for augmentation."""
    image = read_image(record.path)
    height, width = image.shape[:2]
    if (height, width) != (record.height, record.width):
        raise DataError(
            f"{record.path} is {width} x {height} pixels, "
            f"but its annotation says {record.width} x {record.height}"
        )
    objects = record.annotations
    masks = np.zeros((len(objects), height, width), np.uint8)
    for mask, annotation in zip(masks, objects, strict=True):
        if not annotation.is_crowd:  # of crowds only the box is used
            mask[:] = decode_mask(annotation.segmentation, height, width)
    boxes = torch.tensor([a.box for a in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Sample(
        image=tv_tensors.Image(torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)),
        boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),  # type: ignore[call-overload]
        masks=tv_tensors.Mask(torch.from_numpy(masks)),
        labels=torch.tensor([a.label for a in objects], dtype=torch.int64),
        crowd=torch.tensor([a.is_crowd for a in objects], dtype=torch.bool),
    )


Item = tuple[Tensor, Target, Path]
Batch = tuple[Tensor, list[Target], list[Path]]


class InstanceDataset(Dataset[Item]):
    """Augmented pictures, uint8 BGR [S, S, 3], their ground truth and their files.

    It is indexed with (picture, seed): the seed alone decides the augmentation, so that a run can
    be repeated and resumed exactly whatever the number of worker processes.
    """

    def __init__(
        self, records: Sequence[ImageRecord], image_size: int, settings: AugmentationSettings
    ) -> None:
        self.records = list(records)
        self.donors = [record for record in records if record.annotations]
        self.image_size = image_size
        self.settings = settings

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        index, seed = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            donor = None
            if torch.rand(()) < self.settings.copy_paste:
                donor = load_sample(self.donors[int(torch.randint(len(self.donors), ()))])
            sample = load_sample(self.records[index])
            sample = augment(sample, self.image_size, self.settings, donor)
        image = sample.image.as_subclass(Tensor).flip(0).permute(1, 2, 0).contiguous()
        return image, sample.target(), self.records[index].path


def collate(items: Sequence[Item]) -> Batch:
    """Pictures as one tensor uint8 [B, S, S, 3]; ground truth and files as lists."""
    images, targets, paths = zip(*items, strict=True)
    return torch.stack(images), list(targets), list(paths)


class TrainingOrder(Sampler[list[tuple[int, int]]]):
    """Batches of (picture, seed) for `steps` iterations, starting at any of them.

    The pictures come in a new random order each time all have been seen. The order depends on
    `seed` alone; each of `processes` gets its share of every global batch.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        steps: int,
        seed: int = 0,
        start: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if batch_size % processes:
            raise ValueError(
                f"batch_size={batch_size} is not allowed: it must be a multiple of the "
                f"{processes} processes"
            )
        self.num_images, self.batch_size, self.steps = num_images, batch_size, steps
        self.seed, self.start = seed, start
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        """Iterations of the whole run, those before `start` too, as Lightning counts them."""
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.start, self.steps):
            batch = []
            for i in range(self.process, self.batch_size, self.processes):
                position = step * self.batch_size + i
                if position // self.num_images != epoch:
                    epoch = position // self.num_images
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.num_images)
                seed = np.random.SeedSequence((self.seed, position)).generate_state(1)[0]
                batch.append((int(order[position % self.num_images]), int(seed)))
            yield batch
