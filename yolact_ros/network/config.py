"""Network configuration: a frozen data class, and the published configurations by name.

Every choice that the papers' tables vary is a field. Invalid combinations are rejected on creation.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any, Literal

from yolact_ros.network.classes import COCO_CLASSES, PASCAL_CLASSES
from yolact_ros.text import is_valid_unicode

Backbone = Literal["resnet50", "resnet101", "darknet53", "efficientnet_lite0"]
DcnVariant = Literal["none", "all", "last10", "last13", "interval3", "interval4"]
MaskBranch = Literal["prototypes", "fc", "none"]

# The papers state anchor scales in pixels of this input size.
BASE_IMAGE_SIZE = 550


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture of one YOLACT or YOLACT++ network.

    Creating one raises ValueError for an invalid value or combination.
    """

    name: str = "yolact"
    """Name of the configuration, for display."""
    class_names: tuple[str, ...] = COCO_CLASSES
    """Object classes in the order of the class logits, without background."""

    backbone: Backbone = "resnet101"
    """Computes the feature maps C3 to C5."""
    image_size: int = BASE_IMAGE_SIZE
    """Side of the square network input in pixels, 64 to 2048."""

    fpn_channels: int = 256
    """Channels of the feature pyramid, of the protonet and of the head."""

    anchor_scales: tuple[float, ...] = (24, 48, 96, 192, 384)
    """Anchor sides of P3 to P7, in pixels of a 550-pixel input; scaled to `image_size`."""
    anchor_ratios: tuple[float, ...] = (1.0, 0.5, 2.0)
    """Width over height, before `square_anchors`. The papers use 3 or 5 of them."""
    anchor_octaves: int = 1
    """Anchor scales per level, a fraction of an octave apart: 1 (YOLACT) or 3 (YOLACT++)."""
    square_anchors: bool = False
    """Height = width regardless of ratio: a bug of the first release that its weights need."""

    dcn_variant: DcnVariant = "none"
    """Which 3x3 convolutions of C3 to C5 are deformable (YOLACT++, table 7)."""
    dcn_version: Literal[1, 2] = 2
    """1: plain; 2: modulated, as in the released YOLACT++ weights."""

    mask_branch: MaskBranch = "prototypes"
    """`fc` is the fc-mask baseline of table 2c, `none` gives boxes only."""
    num_prototypes: int = 32
    """Prototypes k, 8 to 256."""
    mask_rescoring: bool = False
    """Predict the IoU of each mask and re-score with it (YOLACT++)."""

    def __post_init__(self) -> None:
        _check_choice("backbone", self.backbone, Backbone)
        _check_choice("dcn_variant", self.dcn_variant, DcnVariant)
        _check_choice("mask_branch", self.mask_branch, MaskBranch)
        for field in ("square_anchors", "mask_rescoring"):
            _check(isinstance(getattr(self, field), bool), field, getattr(self, field), "a bool")
        _check(isinstance(self.name, str), "name", self.name, "a string")
        _check(self.dcn_version in (1, 2), "dcn_version", self.dcn_version, "1 or 2")
        for field in ("class_names", "anchor_scales", "anchor_ratios"):
            if isinstance(getattr(self, field), list):  # as YAML and JSON have them
                object.__setattr__(self, field, tuple(getattr(self, field)))
        names, scales, ratios = self.class_names, self.anchor_scales, self.anchor_ratios
        _check(
            isinstance(names, tuple)
            and len(names) > 0
            and all(isinstance(n, str) and is_valid_unicode(n) for n in names),
            "class_names",
            names,
            "a tuple of one name or more, of valid Unicode",
        )
        _check_whole("image_size", self.image_size, 64, 2048, "pixels")
        _check_whole("fpn_channels", self.fpn_channels, 8, 1024, "channels")
        _check_whole("anchor_octaves", self.anchor_octaves, 1, 3)
        _check_whole("num_prototypes", self.num_prototypes, 8, 256)
        _check(
            _are_sizes(scales) and len(scales) == 5,
            "anchor_scales",
            scales,
            "five positive numbers, one for each of P3 to P7",
        )
        _check(
            min(scales) * self.image_size >= BASE_IMAGE_SIZE,
            "anchor_scales",
            scales,
            f"a pixel or more when scaled from {BASE_IMAGE_SIZE} to {self.image_size} pixels",
        )
        _check(_are_sizes(ratios), "anchor_ratios", ratios, "one positive number or more")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.dcn_variant != "none" and not self.backbone.startswith("resnet"):
            raise ValueError(
                f"dcn_variant={self.dcn_variant!r} needs a ResNet: the backbone "
                f"{self.backbone!r} has no deformable convolutions, so dcn_variant must be 'none'"
            )
        if self.mask_rescoring and self.mask_branch != "prototypes":
            raise ValueError(
                f"mask_rescoring scores masks made of prototypes; it does not go with "
                f"mask_branch={self.mask_branch!r}, so mask_rescoring must be false"
            )
        if self.mask_rescoring and self.image_size < MIN_RESCORING_SIZE:
            raise ValueError(
                f"mask_rescoring needs an image_size of {MIN_RESCORING_SIZE} or more, not "
                f"{self.image_size}: five halvings of the prototypes would leave nothing"
            )

    @property
    def num_classes(self) -> int:
        """Object classes, without background."""
        return len(self.class_names)

    @property
    def anchors_per_cell(self) -> int:
        return len(self.anchor_ratios) * self.anchor_octaves

    @property
    def num_coefficients(self) -> int:
        """Mask coefficients per anchor: k, or the 16 x 16 pixels of an fc mask, or 0."""
        if self.mask_branch == "prototypes":
            return self.num_prototypes
        return FC_MASK_SIZE**2 if self.mask_branch == "fc" else 0

    def replace(self, **changes: Any) -> NetworkConfig:
        """Return a copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, as stored in weight files."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkConfig:
        """Inverse of `to_dict`. Raises ValueError for an unknown field or a bad value."""
        if not isinstance(values, dict):
            raise ValueError(f"network settings are a {type(values).__name__}, not a mapping")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown network settings {unknown}; known are {sorted(known)}")
        return cls(**values)


FC_MASK_SIZE = 16
MIN_RESCORING_SIZE = 249


def _check(good: bool, field: str, value: object, allowed: str) -> None:
    if not good:
        raise ValueError(f"{field}={value!r} is not allowed: it must be {allowed}")


def _check_whole(field: str, value: object, low: int, high: int, unit: str = "") -> None:
    good = isinstance(value, int) and low <= value <= high
    _check(good, field, value, f"a whole number, {low} to {high} {unit}".rstrip())


def _are_sizes(values: object) -> bool:
    """Whether they are a tuple of positive numbers."""
    return (
        isinstance(values, tuple)
        and len(values) > 0
        and all(isinstance(v, int | float) and 0 < v < math.inf for v in values)
    )


def _check_choice(field: str, value: object, choices: Any) -> None:
    allowed = typing.get_args(choices)
    _check(value in allowed, field, value, "one of " + ", ".join(map(repr, allowed)))


_YOLACT_BASE = NetworkConfig(name="yolact_base", square_anchors=True)
_YOLACT_PLUS_BASE = NetworkConfig(
    name="yolact_plus_base",
    anchor_octaves=3,
    dcn_variant="interval3",
    mask_rescoring=True,
)

PUBLISHED: dict[str, NetworkConfig] = {
    config.name: config
    for config in (
        _YOLACT_BASE,
        _YOLACT_BASE.replace(name="yolact_resnet50", backbone="resnet50"),
        _YOLACT_BASE.replace(name="yolact_darknet53", backbone="darknet53"),
        _YOLACT_BASE.replace(name="yolact_im400", image_size=400),
        _YOLACT_BASE.replace(name="yolact_im700", image_size=700),
        NetworkConfig(
            name="yolact_resnet50_pascal",
            class_names=PASCAL_CLASSES,
            backbone="resnet50",
            anchor_scales=(32, 64, 128, 256, 512),
        ),
        _YOLACT_PLUS_BASE,
        _YOLACT_PLUS_BASE.replace(
            name="yolact_plus_resnet50", backbone="resnet50", dcn_variant="all"
        ),
    )
}

EMBEDDED = NetworkConfig(
    name="yolact_person_lite",
    class_names=("person",),
    backbone="efficientnet_lite0",
    image_size=512,
    fpn_channels=96,
    anchor_ratios=(0.3, 0.6),  # people stand
    anchor_octaves=2,
    mask_rescoring=True,
)
"""The model that ships with the package: finds people, for boards without a large GPU."""

CONFIGS: dict[str, NetworkConfig] = {**PUBLISHED, EMBEDDED.name: EMBEDDED}


def config_of(name: str) -> NetworkConfig:
    """Return the configuration `name`. Raises ValueError, listing all names, for an unknown one."""
    if name not in CONFIGS:
        raise ValueError(f"there is no model {name!r}; the models are {', '.join(CONFIGS)}")
    return CONFIGS[name]
