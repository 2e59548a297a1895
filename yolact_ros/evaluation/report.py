"""Tables, files, plots and overlays of an evaluation."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from yolact_ros.data import Dataset, ImageRecord, decode_mask
from yolact_ros.engine import Segmenter, draw_overlay
from yolact_ros.evaluation.coco import AveragePrecision, Evaluation, Scores
from yolact_ros.evaluation.confusion import Matches, confusion_matrix, match, plot_confusion
from yolact_ros.evaluation.findings import Findings, Result
from yolact_ros.image_files import write_image

_COLUMNS = ("ap", "ap50", "ap70", "ap75", "small", "medium", "large")
_CURVES = 12


def table(evaluation: Evaluation, classes: bool = False) -> str:
    """Format average precisions in percent; with `classes`, also a line for each class."""
    lines = [f"{'':24}" + "".join(f"{name:>8}" for name in _COLUMNS)]
    for kind, scores in (("mask", evaluation.masks), ("box", evaluation.boxes)):
        if scores is None:
            continue
        lines.append(_line(kind, scores.overall))
        if classes:
            lines += [_line(f"  {name}", value) for name, value in scores.of_class.items()]
    times = dataclasses.asdict(evaluation.milliseconds)
    lines.append("ms, median: " + ", ".join(f"{name} {ms:.1f}" for name, ms in times.items()))
    return "\n".join(lines)


def _line(name: str, values: AveragePrecision) -> str:
    numbers = (getattr(values, column) * 100 for column in _COLUMNS)
    return f"{name:24}" + "".join("       -" if math.isnan(n) else f"{n:8.2f}" for n in numbers)


def write_results(findings: Findings, folder: Path) -> None:
    """Write masks.json and boxes.json in the COCO server's format."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "boxes.json", findings.boxes)
    if findings.has_masks:
        _write_json(folder / "masks.json", findings.masks)


def write_summary(evaluation: Evaluation, images: int, path: Path) -> None:
    """Write all accuracies, the number of images and the times."""
    summary: dict[str, Any] = {
        "images": images,
        "milliseconds": dataclasses.asdict(evaluation.milliseconds),
    }
    for kind, scores in (("masks", evaluation.masks), ("boxes", evaluation.boxes)):
        if scores is not None:
            summary[kind] = without_nan(vars(scores.overall))
            by_class = {name: without_nan(vars(v)) for name, v in scores.of_class.items()}
            summary[f"{kind} by class"] = by_class
    _write_json(path, summary, indent=2)


def without_nan(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Replace nan, which JSON does not have, with None."""
    return {name: None if math.isnan(n) else n for name, n in numbers.items()}


def _write_json(path: Path, content: Any, indent: int | None = None) -> None:
    path.write_text(json.dumps(content, indent=indent) + "\n")


def plot_precision_recall(scores: Scores, path: Path) -> None:
    """Write a PNG with precision over recall at IoU 0.5 for the 12 best classes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title("IoU 0.5")
    recall = np.linspace(0, 1, 101)
    ranked = sorted(scores.of_class.items(), key=lambda item: np.nan_to_num(-item[1].ap50, nan=1))
    for name, values in ranked[:_CURVES]:
        if not np.isnan(values.ap50):
            axes.plot(recall, scores.precision_at_50[name], label=f"{name} {values.ap50:.2f}")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=120)


def found_above(findings: Findings, score: float) -> dict[int, list[Result]]:
    """Return the results above a score by image id: masks, or boxes if there are no masks."""
    found: dict[int, list[Result]] = {image: [] for image in findings.image_ids}
    for result in findings.results:
        if result["score"] > score:
            found[result["image_id"]].append(result)
    return found


def draw_mistakes(
    segmenter: Segmenter,
    dataset: Dataset,
    found: Mapping[int, Sequence[Result]],
    folder: Path,
    worst: int,
    score: float,
) -> None:
    """Write confusion.png (the confusion matrix at IoU 0.5) and the `worst` images.

    `found` are the results above `score` by image id.
    """
    names = segmenter.class_names
    labels = {id_: names.index(n) for n, id_ in dataset.category_ids(names).items()}
    records = dataset.records(names, segmenter.config.mask_branch != "none")
    images = [match(record, found[record.id]) for record in records]
    counts = confusion_matrix(images, labels, len(names))
    plot_confusion(counts, names, folder / "confusion.png")
    draw_worst(segmenter, images, tuple(labels.values()), folder / "worst", worst, score)


def draw_worst(
    segmenter: Segmenter,
    images: Sequence[Matches],
    counted: Sequence[int],
    folder: Path,
    count: int,
    score: float,
) -> None:
    """Write a PNG (result, ground truth) for each of the `count` images with the most mistakes.

    A mistake is an object that was not found or a detection that matches no object; the file name
    has the number of each. Instances of the classes `counted` that score above `score` are shown.
    Files of an earlier evaluation are deleted.
    """
    for old in folder.glob("[0-9]*-missed*-wrong*.png"):
        old.unlink()
    bad = [each for each in images if each.missed or each.wrong]
    bad.sort(key=lambda each: -len(each.missed + each.wrong))
    for rank, each in enumerate(bad[:count], start=1):
        image = each.record.read()
        instances = segmenter(image)
        # The score that mask results have, which boxes without masks have too.
        shown = instances.mask_scores > score
        shown &= torch.isin(instances.class_ids, torch.tensor(counted))  # the others are not wrong
        overlay = draw_overlay(image, instances[shown])
        page = np.concatenate([overlay, _draw_truth(image, each.record)], axis=1)
        mistakes = f"missed{len(each.missed)}-wrong{len(each.wrong)}"
        write_image(folder / f"{rank:02d}-{mistakes}-{each.record.path.stem}.png", page)


def _draw_truth(image: np.ndarray, record: ImageRecord) -> np.ndarray:
    result = image.copy()
    for annotation in record.annotations:
        mask = decode_mask(annotation.segmentation, record.height, record.width)
        colour = (160, 160, 160) if annotation.is_crowd else (255, 255, 255)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(result, outlines, -1, colour, 2)
    return result
