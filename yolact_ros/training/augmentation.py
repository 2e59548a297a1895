"""SSD's augmentation, as YOLACT uses it, on torchvision.transforms.v2."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from yolact_ros.training.targets import Target

# What expanded pictures are filled with: ImageNet's mean colour, RGB.
_FILL: dict[Any, Any] = {tv_tensors.Image: [124, 117, 104], "others": 0}


@dataclass(frozen=True)
class AugmentationSettings:
    """The published augmentation; each part can be turned off."""

    photometric: bool = True
    """Random brightness, contrast, saturation and hue."""
    expand: float = 4.0
    """Half of the pictures are put on a canvas up to this many times as large; 1 turns it off."""
    crop: bool = True
    """Random crops that hold at least one object's centre."""
    smallest_crop: float = 0.3
    """Least side of a crop relative to the picture's, 0.1 to 1."""
    mirror: bool = True
    """Half of the pictures are flipped left to right."""
    smallest_box: float = 4.0
    """Objects whose box is narrower or lower than this many pixels afterwards are left out."""
    copy_paste: float = 0.0
    """Share of pictures, 0 to 1, onto which objects of another one are pasted
    (Ghiasi et al., Simple Copy-Paste, 2021); not in the papers."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("expand", 1, 10),
            ("smallest_crop", 0.1, 1),
            ("copy_paste", 0, 1),
            ("smallest_box", 1, 1000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}={value} is not allowed: it must be {low} to {high}")


NO_AUGMENTATION = AugmentationSettings(photometric=False, expand=1, crop=False, mirror=False)


@dataclass(frozen=True)
class Sample:
    """A picture with n annotations; objects and crowd regions together."""

    image: tv_tensors.Image
    """uint8 RGB [3, H, W]"""
    boxes: tv_tensors.BoundingBoxes
    """float [n, 4], corners in pixels"""
    masks: tv_tensors.Mask
    """uint8 [n, H, W]; all 0 for crowd regions"""
    labels: Tensor
    """int64 [n]"""
    crowd: Tensor
    """bool [n]"""

    def target(self) -> Target:
        """Ground truth with relative boxes; objects of which nothing is visible are left out."""
        height, width = self.image.shape[-2:]
        boxes = self.boxes.as_subclass(Tensor) / torch.tensor([width, height, width, height])
        masks = self.masks.as_subclass(Tensor)
        visible = ~self.crowd & masks.flatten(1).bool().any(dim=1)
        return Target(
            boxes=boxes[visible],
            labels=self.labels[visible],
            masks=masks[visible],
            crowd_boxes=boxes[self.crowd],
        )


def augment(
    sample: Sample, image_size: int, settings: AugmentationSettings, donor: Sample | None = None
) -> Sample:
    """Augment a picture and resize it to a square of `image_size` pixels.

    Random numbers are torch's. `donor` is the picture whose objects are pasted.
    """
    if settings.expand > 1:
        expand = v2.RandomZoomOut(fill=_FILL, side_range=(1, settings.expand))
        sample = _apply(expand, sample)
    if settings.crop:
        sample = _crop(sample, settings.smallest_crop)
    fit: list[v2.Transform] = [v2.Resize((image_size, image_size), antialias=False)]
    if settings.mirror:
        fit.append(v2.RandomHorizontalFlip())
    drop_small = _drop_small(settings.smallest_box)
    sample = _apply(v2.Compose([*fit, drop_small]), sample)
    if donor is not None:
        donor = _apply(v2.Compose([*fit, drop_small]), donor)
        sample = _apply(drop_small, paste(sample, donor))
    if settings.photometric:
        # On the small picture, where it costs least.
        image = _photometric()(sample.image)
        sample = dataclasses.replace(sample, image=image)
    return sample


_MOST_CROPS = 50


def _crop(sample: Sample, smallest: float) -> Sample:
    """A random part that holds an object; one that holds crowds alone does not do, as published."""
    crop = v2.Compose([v2.RandomIoUCrop(min_scale=smallest), _drop_small(1)])
    for _ in range(0 if sample.crowd.all() else _MOST_CROPS):
        cropped = _apply(crop, sample)
        if not cropped.crowd.all():
            return cropped
    return sample


def paste(sample: Sample, donor: Sample) -> Sample:
    """Put a random choice of the donor's objects on a picture of the same size.

    What they hide is cut out of the picture's own masks and boxes.
    """
    chosen = ~donor.crowd & (torch.rand(len(donor.labels)) < 0.5)
    if not chosen.any():
        return sample
    pasted = donor.masks.as_subclass(Tensor)[chosen]
    covered = pasted.bool().any(dim=0)
    image = torch.where(covered, donor.image.as_subclass(Tensor), sample.image.as_subclass(Tensor))
    masks = sample.masks.as_subclass(Tensor) * ~covered
    boxes = sample.boxes.as_subclass(Tensor).clone()
    for i in (masks.flatten(1).bool().any(dim=1) & ~sample.crowd).nonzero()[:, 0].tolist():
        rows, columns = masks[i].any(dim=1).nonzero(), masks[i].any(dim=0).nonzero()
        boxes[i] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])[:, 0]
    boxes = torch.cat([boxes, donor.boxes.as_subclass(Tensor)[chosen]])
    return Sample(
        image=tv_tensors.Image(image),
        boxes=tv_tensors.wrap(boxes, like=sample.boxes),
        masks=tv_tensors.Mask(torch.cat([masks, pasted])),
        labels=torch.cat([sample.labels, donor.labels[chosen]]),
        crowd=torch.cat([sample.crowd, donor.crowd[chosen]]),
    )


def _photometric() -> v2.Transform:
    """SSD's colour changes, each for half of the pictures. The channels are not shuffled."""
    changes = ({"brightness": 0.125}, {"contrast": 0.5}, {"saturation": 0.5}, {"hue": 0.05})
    return v2.Compose([v2.RandomApply([v2.ColorJitter(**change)]) for change in changes])


def _drop_small(smallest: float) -> v2.Transform:
    # Cut at the edges first: boxes that leave the picture, by a rounding perhaps, count as invalid.
    valid = v2.SanitizeBoundingBoxes(min_size=smallest, labels_getter=lambda values: values["tags"])
    return v2.Compose([v2.ClampBoundingBoxes(), valid])


def _apply(transform: v2.Transform, sample: Sample) -> Sample:
    values: dict[str, Any] = {
        "image": sample.image,
        "boxes": sample.boxes,
        "masks": sample.masks,
        # One tensor, since older torchvision filters no more than one beside boxes and masks.
        "tags": torch.stack([sample.labels, sample.crowd.long()], dim=1),
    }
    values = transform(values)
    tags = values.pop("tags")
    return Sample(**values, labels=tags[:, 0], crowd=tags[:, 1].bool())
