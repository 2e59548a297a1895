"""Tables, files and plots of an evaluation."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolact_ros.evaluation.coco import AveragePrecision, Evaluation, Scores
from yolact_ros.evaluation.findings import Findings

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
