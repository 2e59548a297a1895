"""The comparisons in the two papers: what varies from row to row, and the published figures.

YOLACT is arXiv:1904.02689 (October 2019), YOLACT++ arXiv:1912.06218. Times are for a Titan Xp.
YOLACT's figures were checked against its text. Those of YOLACT++'s tables 3, 6, 7 and 8 could not
be checked and are left out; notes contain figures quoted elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yolact_ros.detection.settings import NmsMethod


@dataclass(frozen=True)
class Row:
    """One row of a table: a network, how it detects, and the published figures."""

    name: str
    changes: Mapping[str, Any] | None = field(default_factory=dict)
    """Fields of `NetworkConfig` to change; None: a method that this package does not have."""
    nms: NmsMethod = "fast"
    ap: float | None = None
    """Mask AP in percent, as published."""
    milliseconds: float | None = None
    """Time per image, as published."""


@dataclass(frozen=True)
class Comparison:
    """A table of one of the papers."""

    title: str
    paper: str
    rows: tuple[Row, ...]
    base: str = "yolact_base"
    """The model that the rows change."""
    data: str = "COCO val2017"
    """Data set of the paper's AP."""
    note: str = ""


_PLAIN = {"dcn_variant": "none", "anchor_octaves": 1, "mask_rescoring": False}
_DCN = {**_PLAIN, "dcn_variant": "interval3"}
_DCN_SCALES = {**_DCN, "anchor_octaves": 3, "square_anchors": False}
_PLUS = {**_DCN_SCALES, "mask_rescoring": True}
_PROTOTYPES = {"mask_branch": "prototypes", "mask_rescoring": False}
_FC = {"mask_branch": "fc", "mask_rescoring": False}
_RATIOS = (1.0, 0.5, 2.0)


def _anchors(ratios: tuple[float, ...], octaves: int) -> dict[str, Any]:
    return {"anchor_ratios": ratios, "anchor_octaves": octaves, "square_anchors": False}


COMPARISONS: dict[str, Comparison] = {
    "2a": Comparison(
        "Fast NMS against standard NMS",
        "YOLACT",
        (
            Row("standard", nms="standard", ap=30.0, milliseconds=41.6),
            Row("fast", ap=29.9, milliseconds=29.8),
            Row("Mask R-CNN, standard", None, ap=36.1, milliseconds=116.0),
            Row("Mask R-CNN, fast", None, ap=35.8, milliseconds=101.0),
        ),
    ),
    "2b": Comparison(
        "number of prototypes k",
        "YOLACT",
        tuple(
            Row(str(k), {"num_prototypes": k}, ap=ap, milliseconds=time)
            for k, ap, time in (
                (8, 26.8, 30.4),
                (16, 27.1, 30.5),
                (32, 27.7, 30.9),
                (64, 27.8, 31.5),
                (128, 27.6, 31.8),
                (256, 27.7, 33.6),
            )
        ),
        note="The paper trained these networks half as long as the others, 400,000 iterations.",
    ),
    "2c": Comparison(
        "accelerated baselines",
        "YOLACT",
        (
            Row("FCIS, no mask voting", None, ap=27.8, milliseconds=105.3),
            Row("Mask R-CNN, 550 px", None, ap=32.2, milliseconds=73.9),
            Row("fc-mask", _FC, ap=20.7, milliseconds=38.9),
            Row("prototypes", _PROTOTYPES, ap=29.9, milliseconds=30.3),
        ),
    ),
    "3": Comparison(
        "choice of anchors",
        "YOLACT++",
        (
            Row("ratios3", _anchors(_RATIOS, 1)),
            Row("ratios5", _anchors((*_RATIOS, 1 / 3, 3.0), 1)),
            Row("scales3", _anchors(_RATIOS, 3)),
        ),
        note="The paper finds three scales a level better than five ratios, and takes them.",
    ),
    "6": Comparison(
        "additions of YOLACT++, one after the other",
        "YOLACT++",
        (
            Row("YOLACT", _PLAIN, ap=29.8, milliseconds=29.8),
            Row("+dcn", _DCN),
            Row("+scales", _DCN_SCALES),
            Row("+rescoring", _PLUS, ap=34.6, milliseconds=36.6),  # 27.3 frames a second
        ),
        data="COCO test-dev",
        note="The first and the last row are yolact_base and yolact_plus_base, whose published "
        "figures these are. As quoted elsewhere, re-scoring takes 1.2 ms.",
    ),
    "7": Comparison(
        "placements of deformable convolutions",
        "YOLACT++",
        tuple(
            Row(variant, {"dcn_variant": variant})
            for variant in ("none", "all", "last10", "last13", "interval3", "interval4")
        ),
        base="yolact_plus_base",
        note="As quoted elsewhere: none 31.7 AP, all 33.5 for 8 ms more, interval 3 33.3 for 2.8 "
        "ms, interval 4 33.0 for 2.3 ms.",
    ),
    "8": Comparison("time by stage", "YOLACT++", (), base="yolact_plus_base"),
}
"""By the table's number in its paper. Table 8 has stages instead of rows."""
