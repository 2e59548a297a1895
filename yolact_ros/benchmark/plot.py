"""The plot of a benchmark."""

from __future__ import annotations

from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from yolact_ros.benchmark.report import ContenderReport, ModelReport, Report
from yolact_ros.benchmark.stages import STAGES


def plot(report: Report, path: Path) -> None:
    """Write a PNG: the stages of our models, and everything side by side."""
    panels = [part for part in (report.models, report.side_by_side) if part]
    if not panels:
        raise ValueError("there is nothing to draw: no model was measured")
    heights = [max(2.6, 1.4 + 0.42 * len(part)) for part in panels]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    remaining = iter(axes)
    if report.models:
        _draw_stages(next(remaining), report.models)
    if report.side_by_side:
        _draw_side_by_side(next(remaining), report.side_by_side)
    figure.suptitle(f"{report.machine.device}, {report.machine.threads} threads", fontsize=10)
    figure.savefig(path, dpi=120)


def _draw_stages(axes: Axes, models: tuple[ModelReport, ...]) -> None:
    names = [model.name.replace(", ", ",\n") for model in models]
    left = [0.0] * len(models)
    colours = colormaps["tab20"]
    for i, stage in enumerate(STAGES):
        widths = [
            model.single.stages[stage].median if stage in model.single.stages else 0.0
            for model in models
        ]
        if any(widths):
            axes.barh(names, widths, left=left, color=colours(i), label=stage)
            left = [a + b for a, b in zip(left, widths, strict=True)]
    for row, model in enumerate(models):
        if model.single.limit is not None:
            axes.plot([model.single.limit] * 2, [row - 0.4, row + 0.4], color="black", linewidth=2)
    axes.plot([], [], color="black", linewidth=2, label="network at PyTorch's matrix rate")
    axes.set(xlabel="ms an image, batch 1, median of each stage")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_side_by_side(axes: Axes, contenders: tuple[ContenderReport, ...]) -> None:
    ranked = sorted(contenders, key=lambda each: each.timing.median)
    medians = [each.timing.median for each in ranked]
    colours = ["tab:blue" if each.name.startswith("ours") else "tab:gray" for each in ranked]
    bars = axes.barh([each.name for each in ranked], medians, color=colours)
    axes.bar_label(bars, [f"{each:.0f} ms" for each in medians], padding=4, fontsize=8)
    axes.set(xlabel="ms an image, to masks of its size, median", xlim=(0, 1.15 * max(medians)))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
