"""Instances of one image, in source pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from yolact_ros.detection.detections import Detections
from yolact_ros.detection.masks import MaskGrids, make_masks
from yolact_ros.detection.regions import MaskRegions, PackedMasks, SmallMasks


@dataclass(frozen=True)
class Instances:
    """n instances in one image, by descending score."""

    boxes: Tensor
    """[n, 4] float (x1, y1, x2, y2) in source pixels. As published, x1 and y1 are clamped at 0 and
    x2 and y2 at the image size, so a box entirely outside the image has x2 < x1 or y2 < y1."""
    scores: Tensor
    """[n] class confidence in 0..1."""
    mask_scores: Tensor
    """[n] score times predicted mask IoU if the network re-scores masks, else the score."""
    class_ids: Tensor
    """[n] int64, from 0."""
    image_size: tuple[int, int]
    """(height, width) of the source in pixels."""
    class_names: tuple[str, ...] = field(repr=False)
    """Names of all classes of the model, by class id."""
    stored_masks: SmallMasks | PackedMasks | None = field(repr=False)
    """Masks at the network's resolution, or as bits; None for boxes only."""

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> Instances:
        """Select instances by an index, indices, a slice (gives a view) or a bool tensor."""
        if isinstance(index, Integral):  # NumPy integers too
            index = [range(len(self))[int(index)]]  # IndexError on every device
        elif isinstance(index, Tensor):
            index = index.reshape(-1)  # a 0-d tensor is an index
        return self._with_each(lambda values: values[index])

    def to(self, device: torch.device | str) -> Instances:
        """Copy the instances to another device."""
        return self._with_each(lambda values: values.to(device))

    def _with_each(self, change: Callable[[Any], Any]) -> Instances:
        """Apply `change` to every tensor and to the masks."""
        kinds = (Tensor, SmallMasks, PackedMasks)
        changed = {n: change(v) for n, v in vars(self).items() if isinstance(v, kinds)}
        return replace(self, **changed)

    @property
    def has_masks(self) -> bool:
        """Whether there are masks; otherwise the model gives boxes only."""
        return self.stored_masks is not None

    @property
    def names(self) -> list[str]:
        """Class name of each instance."""
        return [self.class_names[i] for i in self.class_ids.tolist()]

    @property
    def masks(self) -> Tensor:
        """Masks as bool [n, height, width], created on each access; `regions` takes less memory.

        Raises ValueError if the model gives boxes only.
        """
        regions = self.regions()
        result = regions.pixels.new_zeros(len(self), *self.image_size)
        for i, image in enumerate(result):
            regions.window(i, image).copy_(regions.mask(i))
        return result

    def regions(self) -> MaskRegions:
        """Return the masks in source pixels, within their rectangles.

        They are created on first use and cached, so do not write to them. Raises ValueError if the
        model gives boxes only.
        """
        return self._regions

    @functools.cached_property
    def _regions(self) -> MaskRegions:
        if self.stored_masks is None:
            raise ValueError("these instances have no masks: the model gives boxes only")
        return self.stored_masks.regions(*self.image_size)

    def integer_boxes(self) -> Tensor:
        """Return boxes in whole pixels, truncated as in the published code, int64 [n, 4].

        x2 and y2 are exclusive; small boxes may be empty.
        """
        return self.boxes.long()

    def label_image(self) -> Tensor:
        """Return int32 [height, width]: 0 for background, i + 1 for instance i.

        Where masks overlap, the first instance wins, which is the best unless reordered.
        """
        regions = self.regions()
        labels = regions.pixels.new_zeros(self.image_size, dtype=torch.int32)
        for i in reversed(range(len(self))):
            regions.window(i, labels).masked_fill_(regions.mask(i), i + 1)
        return labels


def make_instances(
    detections: Detections,
    prototypes: Tensor | None,
    mask_iou: nn.Module | None,
    image_sizes: list[tuple[int, int]],
    class_names: tuple[str, ...],
) -> list[Instances]:
    """Convert the detections of a batch to the instances of each of its B images.

    Args:
        detections: The detections in the batch.
        prototypes: [B, k, Hp, Wp]; None: coefficients, if any, are fc masks.
        mask_iou: The network that re-scores masks; None: they are not re-scored.
        image_sizes: (height, width) of each image in pixels.
        class_names: Names of all classes of the model, by class id.
    """
    detections = detections.trimmed()
    grids = make_masks(detections, prototypes, mask_iou)
    placed = place(detections, grids, detections.boxes.new_tensor(image_scales(image_sizes)))
    return [placed.instances(image, size, class_names) for image, size in enumerate(image_sizes)]


@dataclass(frozen=True)
class PlacedDetections:
    """At most K detections in each of B images, in source pixels; the valid ones come first."""

    boxes: Tensor
    """[B, K, 4] (x1, y1, x2, y2), clamped like those of `Instances`."""
    scores: Tensor
    """[B, K]"""
    mask_scores: Tensor
    """[B, K]"""
    class_ids: Tensor
    """[B, K] int64"""
    valid: Tensor
    """[B, K] bool"""
    grids: MaskGrids | None
    """None for boxes only."""
    extents: Tensor
    """[B, K, 4] float (x1, y1, x2, y2): the area that each grid covers."""

    def instances(
        self, image: int, image_size: tuple[int, int], class_names: tuple[str, ...]
    ) -> Instances:
        """Return the valid instances of one image; synchronises with the device."""
        count = int(self.valid[image].sum())
        small = None
        if self.grids is not None:
            values, cells = self.grids.values[image, :count], self.grids.cells[image, :count]
            small = SmallMasks(values, self.extents[image, :count], cells)
        return Instances(
            boxes=self.boxes[image, :count],
            scores=self.scores[image, :count],
            mask_scores=self.mask_scores[image, :count],
            class_ids=self.class_ids[image, :count],
            image_size=image_size,
            class_names=class_names,
            stored_masks=small,
        )


def image_scales(image_sizes: Sequence[tuple[int, int]]) -> list[list[tuple[int, int, int, int]]]:
    """Return the factors [B, 1, 4] by which `place` scales relative boxes, for B image sizes."""
    return [[(width, height, width, height)] for height, width in image_sizes]


def place(detections: Detections, grids: MaskGrids | None, scales: Tensor) -> PlacedDetections:
    """Convert detections to source pixels; `scales` [B, 1, 4] are the `image_scales`."""
    boxes = _ordered(detections.boxes * scales)
    sizes = scales[..., 2:]
    low, high = boxes[..., :2].clamp(min=0), torch.minimum(boxes[..., 2:], sizes)
    boxes = extents = torch.cat((low, high), dim=-1)
    if grids is not None and not grids.of_boxes:
        extents = torch.cat((torch.zeros_like(sizes), sizes), dim=-1).expand_as(boxes)
    return PlacedDetections(
        boxes=boxes,
        scores=detections.scores,
        mask_scores=detections.scores if grids is None else grids.scores,
        class_ids=detections.class_ids,
        valid=detections.valid,
        grids=grids,
        extents=extents,
    )


def _ordered(boxes: Tensor) -> Tensor:
    """Swap the corners of boxes [..., 4] where x2 < x1 or y2 < y1."""
    a, b = boxes[..., :2], boxes[..., 2:]
    return torch.cat((torch.minimum(a, b), torch.maximum(a, b)), dim=-1)
