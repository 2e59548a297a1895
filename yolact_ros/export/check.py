"""Checks that an exported network finds on real images what PyTorch finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from yolact_ros.benchmark.agreement import Agreement, compare
from yolact_ros.benchmark.contender import Found
from yolact_ros.detection import Instances
from yolact_ros.engine import Image, Segmenter, preprocess
from yolact_ros.network import Predictions


@dataclass(frozen=True)
class Limits:
    """How far an exported network may deviate from PyTorch."""

    confident: float
    """Minimum score, in either network, of instances that are compared."""
    matched: float
    """Minimum fraction of instances that are matched."""
    mask_iou: float
    """Minimum mean mask IoU over all pairs."""
    score: float
    """Maximum score difference in any pair."""
    box: float | None = None
    """Maximum difference of a box edge in pixels; None: not checked, since masks cover it."""
    output: float | None = None
    """Maximum difference of a raw output, relative to the largest output; None: not checked."""


# Rounding changes a score's sixth digit. The minimum score is far below those used in practice.
FLOAT = Limits(confident=0.1, matched=0.98, mask_iou=0.99, score=0.005, box=1.0, output=1e-3)
# In half precision, rounding differs, so very close decisions may change.
HALF = Limits(confident=0.1, matched=0.95, mask_iou=0.99, score=0.05)
INT8 = Limits(confident=0.3, matched=0.9, mask_iou=0.9, score=0.2)

BATCH = 4
"""Batch size for the check. More would take more memory without checking more."""


@dataclass(frozen=True)
class ImageCheck:
    """The comparison on one image."""

    name: str
    agreement: Agreement
    output_difference: float | None
    """Largest difference of raw outputs, relative to the largest output; None if the graph includes
    the detection stage."""


@dataclass(frozen=True)
class ExportCheck:
    """The comparison on all images."""

    images: tuple[ImageCheck, ...]
    limits: Limits

    @property
    def overall(self) -> Agreement:
        """The agreement over all images."""
        return Agreement.over([each.agreement for each in self.images])

    @property
    def problems(self) -> list[str]:
        """Why the networks do not agree; empty if they do."""
        limits, overall, found = self.limits, self.overall, list[str]()
        if not overall.instances and (limits.output is None or self._without_outputs):
            found.append(f"nothing scores {limits.confident}, so nothing was compared")
        if overall.matched < limits.matched * overall.instances:
            lone = overall.instances - overall.matched
            found.append(f"{lone} of {overall.instances} instances have no partner")
        if overall.mean_mask_iou < limits.mask_iou:
            found.append(f"the masks' mean IoU is {overall.mean_mask_iou:.3f}")
        return found + [text for each in self.images for text in _problems(each, limits)]

    @property
    def _without_outputs(self) -> bool:
        return any(each.output_difference is None for each in self.images)

    def table(self) -> str:
        """Format one line for each image."""
        width = max(len(each.name) for each in self.images)
        titles = "instances  matched  score diff.   box diff.  mask IoU  output diff."
        lines = [f"{'image':{width}}  {titles}"]
        for each in self.images:
            a, output = each.agreement, each.output_difference
            lines.append(
                f"{each.name:{width}}  {a.instances:9}  {a.matched:7}  {a.score_difference:11.1e}  "
                f"{a.box_difference:7.3f} px  {a.mean_mask_iou:8.4f}  "
                + ("           -" if output is None else f"{output:12.1e}")
            )
        return "\n".join(lines)

    def summary(self) -> str:
        """Summarise all images in one line."""
        total = self.overall
        return (
            f"{total.matched} of {total.instances} instances that score {self.limits.confident} or "
            f"more are matched, mean mask IoU {total.mean_mask_iou:.4f}"
        )


def _problems(result: ImageCheck, limits: Limits) -> list[str]:
    """Describe what exceeds the limits on one image."""
    a, output, found = result.agreement, result.output_difference, []
    if a.score_difference > limits.score:
        found.append(f"a score differs by {a.score_difference:.4f}")
    if limits.box is not None and a.box_difference > limits.box:
        found.append(f"an edge of a box differs by {a.box_difference:.1f} pixels")
    if limits.output is not None and output is not None and not output <= limits.output:  # or nan
        found.append(f"an output differs by {output}")
    return [f"{result.name}: {text}" for text in found]


def check(
    exported: Segmenter,
    reference: Segmenter,
    images: Mapping[str, Image],
    limits: Limits = FLOAT,
) -> ExportCheck:
    """Compare an exported network with its original on BGR images [H, W, 3], by name.

    Both use the reference's settings, but a low threshold. The exported one gets batches of
    `BATCH` images, read as needed, and one image alone: its detection stage, if it has one,
    might be right for batches but wrong for single images, or vice versa.
    """
    # An instance at the threshold may come or go, but not one with twice that score.
    settings = replace(reference.settings, score_threshold=limits.confident / 2)
    before = exported.settings, reference.settings
    exported.settings = reference.settings = settings
    try:
        names = list(images)
        results = []
        for at in range(0, len(names), BATCH):
            batch = {name: images[name] for name in names[at : at + BATCH]}
            given = list(batch.values())
            found = exported(given if len(given) > 1 else 2 * given)
            results += _compare_all(exported, reference, batch, found, limits.confident)
        alone = {f"{names[0]}, alone": images[names[0]]}
        found = exported(list(alone.values()))
        results += _compare_all(exported, reference, alone, found, limits.confident)
    finally:
        exported.settings, reference.settings = before
    return ExportCheck(tuple(results), limits)


def _compare_all(
    exported: Segmenter,
    reference: Segmenter,
    images: Mapping[str, Image],
    ours: Sequence[Instances],
    confident: float,
) -> list[ImageCheck]:
    """Compare `ours`, found by the exported network, with what the reference finds."""
    return [
        ImageCheck(
            name,
            compare(_found(found), _found(reference(image)), confident),
            _difference(exported, reference, image),
        )
        for (name, image), found in zip(images.items(), ours, strict=False)
    ]


def _found(instances: Instances) -> Found:
    # If the networks re-score masks, the re-scored values are compared.
    return Found.of(instances)._replace(scores=instances.mask_scores)


@torch.no_grad()
def _difference(exported: Segmenter, reference: Segmenter, image: Image) -> float | None:
    batch = preprocess([torch.from_numpy(image).to(reference.device)], reference.config)
    # Without TensorFloat-32, whose rounding is not of interest here.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        ours, theirs = (s.runtime(batch.to(s.runtime.dtype)) for s in (exported, reference))
    if not isinstance(ours, Predictions) or not isinstance(theirs, Predictions):
        return None
    differences = [0.0]
    for name in ("class_logits", "box_offsets", "coefficients", "prototypes"):
        a, b = getattr(ours, name), getattr(theirs, name)
        if b is not None:
            differences.append(float((a - b).abs().max() / b.abs().max().clamp(min=1)))
    return float(np.max(differences))  # nan stays nan
