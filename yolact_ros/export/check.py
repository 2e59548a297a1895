"""Does an exported network find on real pictures what PyTorch finds?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from yolact_ros.benchmark.agreement import Agreement, compare
from yolact_ros.benchmark.contender import Found
from yolact_ros.detection import Instances
from yolact_ros.engine import Segmenter, preprocess
from yolact_ros.network import Predictions

Image = npt.NDArray[np.uint8]

SCORE_THRESHOLD = 0.1
"""Of the instances that are compared. Far below what is used, so that more is compared."""
# Rounding moves a score in its sixth digit; an instance at a threshold may come or go.
MATCHED, SCORE, BOX, MASK_IOU, OUTPUT = 0.98, 0.005, 1.0, 0.99, 1e-3


@dataclass(frozen=True)
class PictureCheck:
    """What was compared on one picture."""

    name: str
    agreement: Agreement
    output_difference: float | None
    """The largest between raw outputs, relative to the largest output; None where the detection
    stage is inside."""

    @property
    def problems(self) -> list[str]:
        """What is beyond rounding, in words."""
        a = self.agreement
        wrong = {
            f"{a.instances - a.matched} of {a.instances} instances have no partner": (
                a.matched < MATCHED * a.instances
            ),
            f"a score differs by {a.score_difference:.4f}": a.score_difference > SCORE,
            f"an edge of a box differs by {a.box_difference:.1f} pixels": a.box_difference > BOX,
            f"the masks' mean IoU is {a.mean_mask_iou:.3f}": a.mean_mask_iou < MASK_IOU,
            f"an output differs by {self.output_difference}": (
                self.output_difference is not None and not self.output_difference <= OUTPUT
            ),
        }
        return [f"{self.name}: {text}" for text, is_wrong in wrong.items() if is_wrong]


@dataclass(frozen=True)
class Checked:
    """What was compared on all pictures."""

    pictures: tuple[PictureCheck, ...]

    @property
    def problems(self) -> list[str]:
        """Why the two are not the same; empty when they are."""
        found = [problem for each in self.pictures for problem in each.problems]
        compared = sum(each.agreement.instances for each in self.pictures)
        if not compared and any(each.output_difference is None for each in self.pictures):
            found.append(f"nothing scores more than {SCORE_THRESHOLD}, so nothing was compared")
        return found

    def table(self) -> str:
        """One line for each picture."""
        width = max(len(each.name) for each in self.pictures)
        titles = "instances  matched  score diff.  box diff.  mask IoU  output diff."
        lines = [f"{'picture':{width}}  {titles}"]
        for each in self.pictures:
            a, output = each.agreement, each.output_difference
            lines.append(
                f"{each.name:{width}}  {a.instances:9}  {a.matched:7}  {a.score_difference:11.1e}  "
                f"{a.box_difference:6.3f} px  {a.mean_mask_iou:8.4f}  "
                + ("           -" if output is None else f"{output:12.1e}")
            )
        return "\n".join(lines)


def check(exported: Segmenter, reference: Segmenter, pictures: Mapping[str, Image]) -> Checked:
    """Compare an exported network with its original on BGR pictures [H, W, 3], by name.

    Both find with the reference's settings, but a low threshold. All pictures are given in one
    batch, too, so that batches are known to work.
    """
    settings = replace(reference.settings, score_threshold=SCORE_THRESHOLD)
    before = exported.settings, reference.settings
    exported.settings = reference.settings = settings
    try:
        images = list(pictures.values())
        ours, theirs = exported(images), [reference(image) for image in images]
        results = [
            PictureCheck(
                name, compare(_found(a), _found(b)), _difference(exported, reference, image)
            )
            for (name, image), a, b in zip(pictures.items(), ours, theirs, strict=True)
        ]
    finally:
        exported.settings, reference.settings = before
    return Checked(tuple(results))


def _found(instances: Instances) -> Found:
    masks = torch.zeros(len(instances), 1, 1)
    if instances.small_masks is not None:
        masks = instances.masks
    # Of two that re-score, this compares the scores after it.
    return Found(instances.boxes, instances.mask_scores, instances.class_ids, masks)


@torch.no_grad()
def _difference(exported: Segmenter, reference: Segmenter, image: Image) -> float | None:
    batch = preprocess([torch.from_numpy(image)], reference.config)
    ours, theirs = exported.runtime(batch.to(exported.runtime.dtype)), reference.runtime(batch)
    if not isinstance(ours, Predictions) or not isinstance(theirs, Predictions):
        return None
    differences = [0.0]
    for name in ("class_logits", "box_offsets", "coefficients", "prototypes"):
        a, b = getattr(ours, name), getattr(theirs, name)
        if b is not None:
            differences.append(float((a - b).abs().max() / b.abs().max().clamp(min=1)))
    return float(np.max(differences))  # nan stays nan
