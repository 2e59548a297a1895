"""Confusion matrix: which objects were found, as which class, and which detections are false."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as coco_mask

from yolact_ros.data import ImageRecord, as_rle
from yolact_ros.evaluation.findings import Result

Counts = npt.NDArray[np.int64]
_MATCH_IOU = 0.5


@dataclass(frozen=True)
class Matches:
    """Matched objects and detections of one image, regardless of class."""

    record: ImageRecord
    results: Sequence[Result]
    pairs: tuple[tuple[int, int], ...]
    """(annotation, detection), as indices."""
    missed: tuple[int, ...]
    """Annotations without a detection."""
    wrong: tuple[int, ...]
    """Detections that match no object."""


def match(record: ImageRecord, results: Sequence[Result]) -> Matches:
    """Match each detection, by descending score, with the free object of highest IoU, at least 0.5.

    Crowd regions are not objects, and detections in them are not wrong.
    """
    crowd = np.array([a.is_crowd for a in record.annotations], bool)
    overlaps = _overlaps(record, results, crowd)
    free = ~crowd
    pairs, wrong = [], []
    for i in np.argsort([-result["score"] for result in results], kind="stable").tolist():
        best = int(np.where(free, overlaps[i], -1).argmax()) if len(free) else -1
        if best >= 0 and free[best] and overlaps[i, best] >= _MATCH_IOU:
            free[best] = False
            pairs.append((best, i))
        elif not (overlaps[i, crowd] >= _MATCH_IOU).any():
            wrong.append(i)
    missed = np.flatnonzero(free).tolist()
    return Matches(record, results, tuple(pairs), tuple(missed), tuple(wrong))


def _overlaps(
    record: ImageRecord, results: Sequence[Result], crowd: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Return the IoU [results, annotations] of masks if the results have them, else of boxes.

    For a crowd region it is the fraction of the detection that lies in it.
    """
    if not results or not record.annotations:
        return np.zeros((len(results), len(record.annotations)))
    if "segmentation" in results[0]:
        size = record.height, record.width
        truth: list[Any] = [as_rle(a.segmentation, *size) for a in record.annotations]
        found: list[Any] = [result["segmentation"] for result in results]
    else:
        truth = [list(a.box) for a in record.annotations]
        found = [result["bbox"] for result in results]
    return np.asarray(coco_mask.iou(found, truth, crowd.astype(int).tolist()))


def confusion_matrix(images: Iterable[Matches], labels: Mapping[int, int], classes: int) -> Counts:
    """Count how often an object of class i was found as class j, [classes + 1, classes + 1].

    The last column counts objects not found, the last row detections that match no object.
    `labels` maps category ids to classes.
    """
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for image in images:
        objects = [annotation.label for annotation in image.record.annotations]
        found = [labels[result["category_id"]] for result in image.results]
        for i, j in image.pairs:
            counts[objects[i], found[j]] += 1
        for i in image.missed:
            counts[objects[i], classes] += 1
        for j in image.wrong:
            counts[classes, found[j]] += 1
    return counts


def plot_confusion(counts: Counts, names: Sequence[str], path: Path) -> None:
    """Write a PNG of a confusion matrix: counts, coloured by their fraction of the objects.

    Classes with neither objects nor detections are left out.
    """
    from matplotlib.figure import Figure

    there = (counts.sum(axis=0) + counts.sum(axis=1)) > 0
    there[-1] = True
    counts = counts[there][:, there]
    shown = [name for name, is_there in zip(names, there[:-1], strict=True) if is_there]
    size = len(shown) + 1
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares[-1] = 0  # false detections have no such fraction
    figure = Figure(figsize=(3 + 0.34 * size, 2.4 + 0.32 * size), layout="constrained")
    axes = figure.add_subplot(xlabel="found as", ylabel="object", title="IoU 0.5")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(size), [*shown, "not found"], rotation=90)
    axes.set_yticks(range(size), [*shown, "no object"])
    edges = np.arange(size - 1) + 0.5
    axes.hlines(edges, -0.5, size - 0.5, color="lightgrey", linewidth=0.4)
    axes.vlines(edges, -0.5, size - 0.5, color="lightgrey", linewidth=0.4)
    axes.axhline(size - 1.5, color="black", linewidth=0.8)
    axes.axvline(size - 1.5, color="black", linewidth=0.8)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)
    figure.savefig(path, dpi=100)
