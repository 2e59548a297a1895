"""Detection settings; all of them may change from image to image."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

NmsMethod = Literal["fast", "cross_class", "standard"]


@dataclass(frozen=True)
class DetectionSettings:
    """How raw predictions become detections. The defaults are the published evaluation settings.

    Raises ValueError for bad values.
    """

    score_threshold: float = 0.0
    """Detections must score more than this, 0 to 1."""
    confidence_threshold: float = 0.05
    """Anchors are considered only if their best class scores more than this, 0 to 1."""
    nms_method: NmsMethod = "fast"
    """Fast NMS (YOLACT, section 5), per class or across classes, or standard NMS per class."""
    nms_iou_threshold: float = 0.5
    """Boxes that overlap a better one by more than this IoU are suppressed, 0 to 1."""
    nms_top_k: int = 200
    """Number of best candidates that Fast NMS considers: per class or, across classes, in total."""
    top_k: int = 100
    """Maximum number of detections per image."""
    class_ids: tuple[int, ...] = ()
    """Only these classes are reported; empty: all."""

    @property
    def anchor_threshold(self) -> float:
        """Score that an anchor's best class must exceed; lower ones could not be reported."""
        return max(self.confidence_threshold, self.score_threshold)

    def __post_init__(self) -> None:
        methods = typing.get_args(NmsMethod)
        if self.nms_method not in methods:
            raise ValueError(
                f"nms_method={self.nms_method!r} is not allowed: one of {', '.join(methods)}"
            )
        for name in ("score_threshold", "confidence_threshold", "nms_iou_threshold"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value!r} is not allowed: it must be 0 to 1")
        for name, most in (("nms_top_k", 2000), ("top_k", 10_000)):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(
                    f"{name}={value!r} is not allowed: it must be a whole number, 1 to {most}"
                )
        # Settings are keys of the graph cache, so they must be hashable: a list would not be.
        object.__setattr__(self, "class_ids", tuple(self.class_ids))
        if any(not isinstance(i, int) or i < 0 for i in self.class_ids):
            raise ValueError(
                f"class_ids={self.class_ids!r} is not allowed: they must be whole numbers from 0 on"
            )
