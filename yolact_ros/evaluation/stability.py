"""Temporal stability of masks in a video, compensated for motion."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as coco_mask

from yolact_ros.detection import Instances
from yolact_ros.engine import Image, Segmenter
from yolact_ros.evaluation.report import without_nan

Masks = npt.NDArray[np.bool_]
Frame = tuple[Image, Instances]

# Minimum IoU of two masks of the same object in consecutive frames.
_SAME = 0.3
# Minimum fraction of a mask visible in both frames for it to count as found in only one.
_SEEN = 0.5
# The longer side, in pixels, of the smallest images that OpenCV computes optical flow of.
_SMALLEST_SIDE = 12


@dataclass(frozen=True)
class Step:
    """The comparison of two consecutive frames."""

    iou: float
    """Mean IoU of masks in both frames, compensated for motion; nan if there are none."""
    kept: int
    """Instances in both frames."""
    vanished: int
    """Instances in the first frame only, though the second shows the place."""
    appeared: int
    """Instances in the second frame only, though the first shows the place."""


@dataclass(frozen=True)
class Stability:
    """A whole sequence."""

    steps: tuple[Step, ...]

    @property
    def iou(self) -> float:
        """Mean over all pairs of masks; nan if no instance is in two consecutive frames."""
        kept = sum(step.kept for step in self.steps)
        return sum(s.iou * s.kept for s in self.steps if s.kept) / kept if kept else math.nan

    @property
    def flicker(self) -> float:
        """Fraction of instances that vanish or appear, 0 to 1; nan if there are none."""
        changed = sum(step.vanished + step.appeared for step in self.steps)
        looked_at = changed + sum(2 * step.kept for step in self.steps)
        return changed / looked_at if looked_at else math.nan


def measure_stability(segmenter: Segmenter, frames: Iterable[Image]) -> Stability:
    """Segment BGR frames [H, W, 3] of one size and compare each with the previous one.

    Raises ValueError for fewer than two frames, frames of different sizes, frames too small for
    optical flow, or a model without masks.
    """
    steps = tuple(compare_frames(first, second) for first, second in _steps(segmenter, frames))
    if not steps:
        raise ValueError("stability needs two frames or more")
    return Stability(steps)


def _steps(segmenter: Segmenter, frames: Iterable[Image]) -> Iterator[tuple[Frame, Frame]]:
    previous: Frame | None = None
    for number, image in enumerate(frames):
        if previous is not None and image.shape != previous[0].shape:
            raise ValueError(
                f"frame {number} has the shape {image.shape}, the one before {previous[0].shape}: "
                "all frames need the same size"
            )
        if max(image.shape[:2]) < _SMALLEST_SIDE:
            raise ValueError(
                f"frame {number} has the shape {image.shape}: its longer side must have at least "
                f"{_SMALLEST_SIDE} pixels"
            )
        current = image, segmenter(image)
        if previous is not None:
            yield previous, current
        previous = current


def compare_frames(first: Frame, second: Frame) -> Step:
    """Warp the first frame's masks by the optical flow and compare them with the second frame's.

    Pixels visible in only one frame are ignored. Instances of a class are paired by descending IoU.
    An occluded object counts as vanished.
    """
    (image, before), (next_image, after) = first, second
    old_masks, new_masks = before.masks.numpy(), after.masks.numpy()
    source, seen = backward_flow(image, next_image)
    moved, there = warp(old_masks, source) & seen, new_masks & seen
    same_class = before.class_ids.numpy()[:, None] == after.class_ids.numpy()[None]
    pairs = _match(_ious(moved, there) * same_class)
    old_alone = _areas(moved) > _SEEN * _areas(old_masks)
    new_alone = _areas(there) > _SEEN * _areas(new_masks)
    for i, j, _ in pairs:
        old_alone[i] = new_alone[j] = False
    return Step(
        iou=float(np.mean([iou for _, _, iou in pairs])) if pairs else math.nan,
        kept=len(pairs),
        vanished=int(old_alone.sum()),
        appeared=int(new_alone.sum()),
    )


def backward_flow(first: Image, second: Image) -> tuple[npt.NDArray[np.float32], Masks]:
    """Compute where in `first` each pixel of `second` comes from (DIS optical flow).

    Returns positions (x, y) [H, W, 2] and whether they lie within the image, [H, W].
    """
    grey = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in (second, first)]
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = search.calc(*grey, None)  # type: ignore[call-overload]
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    source = (flow + np.stack((x, y), axis=2)).astype(np.float32)
    inside = (source >= 0) & (source <= (width - 1, height - 1))
    return source, inside.all(axis=2)


def warp(masks: Masks, source: npt.NDArray[np.float32]) -> Masks:
    """Sample masks [n, H, W] at the positions `source` [H, W, 2]."""
    x, y = source[..., 0], source[..., 1]
    moved = [cv2.remap(mask.astype(np.uint8) * 255, x, y, cv2.INTER_LINEAR) for mask in masks]
    return np.array(moved).reshape(masks.shape) > 127


def _areas(masks: Masks) -> npt.NDArray[np.int64]:
    return masks.sum(axis=(1, 2), dtype=np.int64)


def _ious(a: Masks, b: Masks) -> npt.NDArray[np.float64]:
    """Return the IoUs [n, m] of masks [n, H, W] and [m, H, W]."""
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    rles = [
        coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8)) for masks in (a, b)
    ]
    return np.asarray(coco_mask.iou(*rles, [False] * len(b)))


def _match(ious: npt.NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """Return pairs (row, column, IoU) by descending IoU, each row and column once."""
    pairs = []
    left = ious.copy()
    while left.size and left.max() >= _SAME:
        i, j = (int(index) for index in np.unravel_index(left.argmax(), left.shape))
        pairs.append((i, j, float(ious[i, j])))
        left[i], left[:, j] = 0, 0
    return pairs


def write_stability(stability: Stability, folder: Path) -> None:
    """Write stability.json (the totals and a list of steps) and stability.png."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"iou": stability.iou, "flicker": stability.flicker}
    content = {
        **without_nan(numbers),
        "steps": [without_nan(vars(step)) for step in stability.steps],
    }
    (folder / "stability.json").write_text(json.dumps(content, indent=2) + "\n")
    _plot(stability, folder / "stability.png")


def _plot(stability: Stability, path: Path) -> None:
    """Plot the IoU over the frames and, below it, how many instances vanished and appeared."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = stability.steps
    frames = np.arange(1, len(steps) + 1)
    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (2, 1)})
    above.plot(frames, [step.iou for step in steps], marker=".", color="tab:blue")
    above.axhline(stability.iou, linestyle="--", color="grey", label=f"mean {stability.iou:.3f}")
    above.set(ylabel="IoU with the frame before", ylim=(0, 1.02))
    above.legend(loc="lower left")
    below.bar(frames, [s.appeared for s in steps], color="tab:green", label="appeared")
    below.bar(frames, [-s.vanished for s in steps], color="tab:red", label="vanished")
    below.axhline(0, color="black", linewidth=0.8)
    most = max([1, *(max(step.appeared, step.vanished) for step in steps)])
    below.set(xlabel="frame", ylabel="instances", ylim=(-1.1 * most, 1.1 * most))
    below.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=2, frameon=False)
    below.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
    for axis in (below.xaxis, below.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
