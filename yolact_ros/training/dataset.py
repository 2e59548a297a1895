"""Augmented training batches, in a reproducible and resumable order."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors

from yolact_ros.data import ImageRecord, decode_mask
from yolact_ros.training.augmentation import AugmentationSettings, Sample, augment
from yolact_ros.training.targets import Target


def load_sample(record: ImageRecord, largest: int | None = None) -> Sample:
    """Load a record's image and annotations for augmentation. Raises DataError as `read` does.

    They are downscaled, if necessary, until the shorter side has `largest` pixels.
    """
    image = record.read()
    height, width = image.shape[:2]
    scale = min(1.0, (largest or math.inf) / min(height, width))
    size = round(width * scale), round(height * scale)
    objects = record.annotations
    masks = np.zeros((len(objects), size[1], size[0]), np.uint8)
    for mask, annotation in zip(masks, objects, strict=True):
        if not annotation.is_crowd:  # only the box of a crowd region is used
            mask[:] = _shrink(decode_mask(annotation.segmentation, height, width), size)
    boxes = torch.tensor([a.box for a in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes *= torch.tensor([size[0] / width, size[1] / height]).repeat(2)
    image = _shrink(image, size)
    return Sample(
        image=tv_tensors.Image(torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)),
        boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=masks.shape[1:]),
        masks=tv_tensors.Mask(torch.from_numpy(masks)),
        labels=torch.tensor([a.label for a in objects], dtype=torch.int64),
        crowd=torch.tensor([a.is_crowd for a in objects], dtype=torch.bool),
    )


def _shrink(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Resize an image, or a mask of 0 and 1, to `size` (width, height) if it differs."""
    if pixels.shape[1::-1] == size:
        return pixels
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


class Draw(NamedTuple):
    """One image of a batch and how it is augmented."""

    image: int
    """Index of the record."""
    seed: int
    """Seed of all random numbers."""
    plain: bool = False
    """Without `expand` and `copy_paste`."""


Item = tuple[Tensor, Target, Path]
Batch = tuple[Tensor, list[Target], list[Path]]


class PackedRecords:
    """Records in one block of memory, which data loader workers share.

    Python objects would be copied into each worker: reading one changes its reference count, which
    triggers copy-on-write of its page. COCO's annotations are gigabytes of objects.
    """

    def __init__(self, records: Iterable[ImageRecord]) -> None:
        packed = [pickle.dumps(record, pickle.HIGHEST_PROTOCOL) for record in records]
        self._starts = np.cumsum([0, *map(len, packed)])
        self._bytes = np.frombuffer(b"".join(packed), np.uint8)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> ImageRecord:
        first, end = self._starts[index], self._starts[index + 1]
        record: ImageRecord = pickle.loads(self._bytes[first:end].data)
        return record

    def __iter__(self) -> Iterator[ImageRecord]:
        return map(self.__getitem__, range(len(self)))


class InstanceDataset(Dataset[Item]):
    """Augmented images, uint8 BGR [S, S, 3], with their ground truth and files.

    It is indexed with a `Draw`, which fully determines the augmentation, so that a run can be
    repeated and resumed exactly, with any number of workers.
    """

    def __init__(
        self, records: Sequence[ImageRecord], image_size: int, settings: AugmentationSettings
    ) -> None:
        self.records = PackedRecords(records)
        self.donors = np.array([i for i, each in enumerate(records) if each.annotations], np.int64)
        self.image_size = image_size
        self.settings = settings

    def __len__(self) -> int:
        return len(self.records)

    def __deepcopy__(self, _: object) -> InstanceDataset:
        return self  # weight averaging deep-copies the module, which holds this

    def __getitem__(self, draw: Draw) -> Item:
        settings = self.settings
        if draw.plain:
            settings = dataclasses.replace(settings, expand=1, copy_paste=0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw.seed)
            donor = None
            if torch.rand(()) < settings.copy_paste:
                chosen = self.donors[int(torch.randint(len(self.donors), ()))]
                donor = self._load(self.records[int(chosen)])
            record = self.records[draw.image]
            sample = augment(self._load(record), self.image_size, settings, donor)
        image = sample.image.as_subclass(Tensor).flip(0).permute(1, 2, 0).contiguous()
        return image, sample.target(), record.path

    def _load(self, record: ImageRecord) -> Sample:
        # Twice the size needed is sharp enough for crops; full resolution, with a mask for each
        # object, could take gigabytes.
        return load_sample(record, largest=2 * self.image_size)


def collate(items: Sequence[Item]) -> Batch:
    """Stack images to one tensor, uint8 [B, S, S, 3]; ground truth and files become lists."""
    images, targets, paths = zip(*items, strict=True)
    return torch.stack(images), list(targets), list(paths)


@dataclass(frozen=True, eq=False)
class TrainingOrder(Sampler[list[Draw]]):
    """Batches for iterations `start` to `steps`; plain ones from iteration `plain_from` on.

    Images are shuffled each epoch. The order depends only on `seed`; the process `rank`, of
    `world_size`, gets its share of every global batch.
    """

    num_images: int
    batch_size: int
    steps: int
    seed: int = 0
    start: int = 0
    plain_from: float = math.inf
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size={self.batch_size} is not allowed: it must be a multiple of the "
                f"{self.world_size} processes"
            )

    def __len__(self) -> int:
        """Return the iterations of the whole run, not only from `start`, as Lightning expects."""
        return self.steps

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.start, self.steps):
            batch = []
            for i in range(self.rank, self.batch_size, self.world_size):
                position = step * self.batch_size + i
                if position // self.num_images != epoch:
                    epoch = position // self.num_images
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.num_images)
                seed = np.random.SeedSequence((self.seed, position)).generate_state(1)[0]
                image = int(order[position % self.num_images])
                batch.append(Draw(image, int(seed), plain=step >= self.plain_from))
            yield batch
