"""Instances: what is in one image, in its own pixels."""

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
    """n instances in one image, by falling score."""

    boxes: Tensor
    """[n, 4] float (x1, y1, x2, y2) in source pixels. As published, x1 and y1 are cut at 0 and x2
    and y2 at the image's size, so a box wholly outside the image has x2 < x1 or y2 < y1."""
    scores: Tensor
    """[n] class confidence in 0..1."""
    mask_scores: Tensor
    """[n] score times predicted mask IoU where the network re-scores masks, else the score."""
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
        """Some of the instances, chosen by an index, indices, a slice (a view) or a bool tensor."""
        if isinstance(index, Integral):  # NumPy's, too
            index = [range(len(self))[int(index)]]  # IndexError on every device
        elif isinstance(index, Tensor):
            index = index.reshape(-1)  # one without dimensions is an index
        return self._with_each(lambda values: values[index])

    def to(self, device: torch.device | str) -> Instances:
        """The same on another device."""
        return self._with_each(lambda values: values.to(device))

    def _with_each(self, change: Callable[[Any], Any]) -> Instances:
        """With every tensor, and the masks, changed alike."""
        kinds = (Tensor, SmallMasks, PackedMasks)
        changed = {n: change(v) for n, v in vars(self).items() if isinstance(v, kinds)}
        return replace(self, **changed)

    @property
    def has_masks(self) -> bool:
        """Whether the model makes masks; else it gives boxes only."""
        return self.stored_masks is not None

    @property
    def names(self) -> list[str]:
        """Class name of each instance."""
        return [self.class_names[i] for i in self.class_ids.tolist()]

    @property
    def masks(self) -> Tensor:
        """Masks bool [n, height, width], made anew at each call; `regions` takes less memory.

        Raises ValueError where the model gives boxes only.
        """
        regions = self.regions()
        result = regions.pixels.new_zeros(len(self), *self.image_size)
        for i, image in enumerate(result):
            regions.window(i, image).copy_(regions.mask(i))
        return result

    def regions(self) -> MaskRegions:
        """Masks in source pixels, only where they are; made when first asked for, and kept: do not
        write to them.

        Raises ValueError for boxes only.
        """
        return self._regions

    @functools.cached_property
    def _regions(self) -> MaskRegions:
        if self.stored_masks is None:
            raise ValueError("these instances have no masks: the model gives boxes only")
        return self.stored_masks.regions(*self.image_size)

    def integer_boxes(self) -> Tensor:
        """Boxes in whole pixels, cut as in the published implementation, int64 [n, 4].

        x2 and y2 lie outside; small boxes may have no pixel.
        """
        return self.boxes.long()

    def label_image(self) -> Tensor:
        """int32 [height, width]: 0 for background, i + 1 for instance i. Where masks overlap the
        first wins, which is the best as long as nobody has changed the order."""
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
    """Instances of each of the B images of a batch.

    Args:
        detections: In the images.
        prototypes: [B, k, Hp, Wp]; without them coefficients are fc masks, or there are none.
        mask_iou: The network that re-scores masks; None: they are not re-scored.
        image_sizes: (height, width) of each image in pixels.
        class_names: Of all classes of the model, by class id.
    """
    detections = detections.trimmed()
    grids = make_masks(detections, prototypes, mask_iou)
    placed = place(detections, grids, detections.boxes.new_tensor(image_scales(image_sizes)))
    return [placed.instances(image, size, class_names) for image, size in enumerate(image_sizes)]


@dataclass(frozen=True)
class Placed:
    """At most K detections in each of B images, in source pixels; the valid ones come first."""

    boxes: Tensor
    """[B, K, 4] (x1, y1, x2, y2), cut as those of `Instances`."""
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
    """[B, K, 4] float (x1, y1, x2, y2): what each grid covers."""

    def instances(
        self, image: int, image_size: tuple[int, int], class_names: tuple[str, ...]
    ) -> Instances:
        """The valid ones of one image; reads their number from the device."""
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
    """What `place` multiplies relative boxes with, [B, 1, 4], of B (height, width)."""
    return [[(width, height, width, height)] for height, width in image_sizes]


def place(detections: Detections, grids: MaskGrids | None, scales: Tensor) -> Placed:
    """Detections in the pixels of their images; `scales` [B, 1, 4] are their `image_scales`."""
    boxes = _ordered(detections.boxes * scales)
    sizes = scales[..., 2:]
    low, high = boxes[..., :2].clamp(min=0), torch.minimum(boxes[..., 2:], sizes)
    boxes = extents = torch.cat((low, high), dim=-1)
    if grids is not None and not grids.of_boxes:
        extents = torch.cat((torch.zeros_like(sizes), sizes), dim=-1).expand_as(boxes)
    return Placed(
        boxes=boxes,
        scores=detections.scores,
        mask_scores=detections.scores if grids is None else grids.scores,
        class_ids=detections.class_ids,
        valid=detections.valid,
        grids=grids,
        extents=extents,
    )


def _ordered(boxes: Tensor) -> Tensor:
    """Corners [..., 4] swapped where x2 < x1 or y2 < y1."""
    a, b = boxes[..., :2], boxes[..., 2:]
    return torch.cat((torch.minimum(a, b), torch.maximum(a, b)), dim=-1)
