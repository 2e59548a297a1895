"""SSD's augmentation, as YOLACT uses it, on torchvision.transforms.v2."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from yolact_ros.training.ranges import check_ranges
from yolact_ros.training.targets import Target

# Out of 255, added to all channels.
_MAX_OFFSET = 32
# Fill colour of expanded images: ImageNet's mean, RGB.
_FILL: dict[Any, Any] = {tv_tensors.Image: [124, 117, 104], "others": 0}


@dataclass(frozen=True)
class AugmentationSettings:
    """The published augmentation, except for `smallest_box`; each part can be turned off."""

    photometric: bool = True
    """Random brightness, contrast, saturation and hue."""
    expand: float = 4.0
    """Half of the images are put on a canvas up to this many times as large; 1 turns it off."""
    crop: bool = True
    """Random crops that contain at least one object's centre."""
    smallest_crop: float = 0.3
    """Minimum side of a crop relative to the image's, 0.1 to 1."""
    mirror: bool = True
    """Half of the images are flipped left to right."""
    smallest_box: float = 4.0
    """Objects whose box ends up less than this many pixels wide or high are dropped. The published
    code has this limit too, but compares pixels with a fraction of the image: it drops none."""
    copy_paste: float = 0.0
    """Fraction of images, 0 to 1, onto which objects of another image are pasted
    (Ghiasi et al., Simple Copy-Paste, 2021); not in the papers."""

    def __post_init__(self) -> None:
        check_ranges(
            self, expand=(1, 10), smallest_crop=(0.1, 1), copy_paste=(0, 1), smallest_box=(1, 1000)
        )


NO_AUGMENTATION = AugmentationSettings(photometric=False, expand=1, crop=False, mirror=False)


@dataclass(frozen=True)
class Sample:
    """An image with n annotations, both objects and crowd regions."""

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
        """Return the ground truth with relative boxes; invisible objects are left out."""
        height, width = self.image.shape[-2:]
        boxes = self.boxes.as_subclass(Tensor) / torch.tensor([width, height, width, height])
        masks = self.masks.as_subclass(Tensor)
        visible = ~self.crowd & (masks.amax(dim=(1, 2)) > 0)
        return Target(
            boxes=boxes[visible],
            labels=self.labels[visible],
            masks=masks[visible],
            crowd_boxes=boxes[self.crowd],
        )


def augment(
    sample: Sample, image_size: int, settings: AugmentationSettings, donor: Sample | None = None
) -> Sample:
    """Augment an image and resize it, with its masks, to a square of `image_size` pixels.

    Random numbers come from torch. `donor` is the image whose objects are pasted; None: none are.
    """
    if settings.photometric:
        sample, donor = _change_colours(sample), donor and _change_colours(donor)
    scene = _Scene.of(sample)
    if settings.expand > 1:
        scene = scene.apply(v2.RandomZoomOut(fill=_FILL, side_range=(1, settings.expand)))
    if settings.crop:
        scene = _crop(scene, settings.smallest_crop)
    fitted = _fit(scene, image_size, settings).sample(sample.masks)
    if donor is not None:
        given = _fit(_Scene.of(donor), image_size, settings).sample(donor.masks)
        fitted = paste(fitted, _without_small(given, settings.smallest_box))
    return _without_small(fitted, settings.smallest_box)


@dataclass(frozen=True)
class _Scene:
    """A sample going through the transforms, without its masks.

    Images may be expanded to 16 times the area, and transforming the masks of many objects with
    them would take gigabytes. Sampling the masks at the end gives the same result.
    """

    image: tv_tensors.Image
    boxes: tv_tensors.BoundingBoxes
    places: tv_tensors.Mask
    """int32 [2, H, W]: each pixel's original row and column, plus 1; 0 if it has none."""
    tags: Tensor
    """int64 [n, 3]: label, whether it is a crowd region, index of the mask."""

    @classmethod
    def of(cls, sample: Sample) -> _Scene:
        height, width = sample.image.shape[-2:]
        rows, columns = torch.arange(1, height + 1), torch.arange(1, width + 1)
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).int()
        indices = torch.arange(len(sample.labels))
        tags = torch.stack([sample.labels, sample.crowd.long(), indices], dim=1)
        return cls(sample.image, sample.boxes, tv_tensors.Mask(places), tags)

    def apply(self, transform: v2.Transform) -> _Scene:
        return _Scene(**transform(vars(self)))

    def sample(self, masks: Tensor) -> Sample:
        """Make a sample with the transformed `masks` [n, H, W] of the remaining objects."""
        labels, crowd, indices = self.tags.unbind(1)
        rows, columns = self.places.as_subclass(Tensor).long().numpy() - 1
        pixels = rows * masks.shape[-1] + columns
        moved = np.empty((len(indices), *pixels.shape), np.uint8)
        # NumPy's take is several times faster than torch indexing, and does not copy all masks.
        for mask, index in zip(moved, indices.tolist(), strict=True):
            masks[index].numpy().take(pixels, out=mask, mode="clip")
        moved *= rows >= 0
        return Sample(
            self.image, self.boxes, tv_tensors.Mask(torch.from_numpy(moved)), labels, crowd.bool()
        )


def _fit(scene: _Scene, side: int, settings: AugmentationSettings) -> _Scene:
    """Resize to a square, and perhaps flip.

    Places are sampled at pixel centres, like the image; v2.Resize samples masks at pixel corners,
    which shifts them by half a pixel.
    """
    rest = {name: value for name, value in vars(scene).items() if name != "places"}
    places = F.interpolate(
        scene.places.as_subclass(Tensor)[None].float(), (side, side), mode="nearest-exact"
    )
    scene = _Scene(
        **v2.Resize((side, side), antialias=False)(rest),
        places=tv_tensors.Mask(places[0].int()),
    )
    return scene.apply(v2.RandomHorizontalFlip()) if settings.mirror else scene


_MAX_CROPS = 50
# One image in six stays whole. SSD demands a minimum overlap of the others with an object; in the
# published code that has no effect, and when it did, "it cut the mAP in half".
_MIN_OVERLAPS = [1.0, *[0.0] * 5]


def _crop(scene: _Scene, smallest: float) -> _Scene:
    """Crop to a random part that contains an object, not only crowd regions, as published."""
    crop = v2.RandomIoUCrop(min_scale=smallest, sampler_options=_MIN_OVERLAPS)
    # Whether to crop is drawn once.
    another = v2.RandomIoUCrop(min_scale=smallest, sampler_options=[0.0])
    is_flat = min(scene.image.shape[-2:]) * smallest < 1  # crops could be empty
    # Where the whole image has no object to learn, no crop has, and it would be searched for ever.
    _, large = _cut(scene.boxes, smallest=1)
    for _ in range(0 if is_flat or scene.tags[large, 1].all() else _MAX_CROPS):
        cropped = _Scene(**crop(vars(scene)))
        boxes, inside = _cut(cropped.boxes, smallest=1)
        cropped = dataclasses.replace(
            cropped,
            boxes=tv_tensors.wrap(boxes[inside], like=cropped.boxes),
            tags=cropped.tags[inside],
        )
        if not cropped.tags[:, 1].all():
            return cropped
        crop = another
    return scene


def paste(sample: Sample, donor: Sample) -> Sample:
    """Paste a random choice of the donor's objects onto an image of the same size.

    The image's own masks and boxes are cut to what remains visible.
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


def _change_colours(sample: Sample) -> Sample:
    """Apply SSD's colour changes, each to half of the images; as published, without shuffling
    channels.

    SSD's contrast is a gain, its brightness an offset. Each step rounds to 8 bits, as in
    torchvision; the published code continues with values outside 0 to 255.
    """
    changes = (
        v2.Lambda(_offset, tv_tensors.Image),
        v2.ColorJitter(brightness=0.5),
        v2.Lambda(_saturate, tv_tensors.Image),
        v2.ColorJitter(hue=0.05),
    )
    image = v2.Compose([v2.RandomApply([change]) for change in changes])(sample.image)
    return dataclasses.replace(sample, image=image)


def _offset(image: Tensor) -> Tensor:
    offset = torch.randint(-_MAX_OFFSET, _MAX_OFFSET + 1, ())
    return tv_tensors.wrap((image.short() + offset).clamp(0, 255).byte(), like=image)


def _saturate(image: Tensor) -> Tensor:
    """Scale the HSV saturation by 0.5 to 1.5; `ColorJitter` would blend with grey instead."""
    factor = torch.empty(()).uniform_(0.5, 1.5)
    colours = image.as_subclass(Tensor).float()
    value = colours.amax(dim=0)
    depth = (value - colours.amin(dim=0)).clamp(min=1)
    factor = torch.minimum(factor, value / depth)  # the saturation is 1 at most
    changed = (value - (value - colours) * factor).round().clamp(0, 255)
    return tv_tensors.wrap(changed.byte(), like=image)


def _without_small(sample: Sample, smallest: float) -> Sample:
    """Drop objects whose box has a side of less than `smallest` pixels within the image."""
    boxes, kept = _cut(sample.boxes, smallest)
    return Sample(
        image=sample.image,
        boxes=tv_tensors.wrap(boxes[kept], like=sample.boxes),
        masks=tv_tensors.Mask(sample.masks[kept]),
        labels=sample.labels[kept],
        crowd=sample.crowd[kept],
    )


def _cut(boxes: tv_tensors.BoundingBoxes, smallest: float) -> tuple[Tensor, Tensor]:
    """Clamp boxes; return them [n, 4] and whether both sides are `smallest` or more, bool [n]."""
    cut = v2.functional.clamp_bounding_boxes(boxes).as_subclass(Tensor)
    return cut, (cut[:, 2:] - cut[:, :2] >= smallest).all(dim=1)
