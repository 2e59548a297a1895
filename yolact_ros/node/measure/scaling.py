"""Scaling with cameras: answers per second and latency by the number of cameras."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yolact_ros.node.measure.camera import CameraSettings
from yolact_ros.node.measure.graph import MeasureError, running
from yolact_ros.node.statistics import Latency


@dataclass(frozen=True)
class Load:
    """How a node served a number of cameras."""

    cameras: int
    rate: float
    """Answers per second, all cameras together."""
    least_rate: float
    """Answers per second of the camera with the fewest."""
    answered: float
    """Answers as a fraction of images at the nominal rate, 0 to 1: the rest was skipped, lost or
    never published."""
    latency: Latency
    """From an image's stamp to the receipt of its answer."""


def scaling(
    settings: CameraSettings, cameras: int, seconds: float, ros_arguments: Sequence[str]
) -> Iterator[Load]:
    """Measure 1 to `cameras` cameras for `seconds` each. Raises MeasureError."""
    for count in range(1, cameras + 1):
        with running(settings, count, ros_arguments) as graph:
            answers = graph.watch(seconds)
        if not answers:
            raise MeasureError(f"no answer in {seconds:.0f} s")
        numbers = np.bincount([each.camera for each in answers], minlength=count)
        yield Load(
            cameras=count,
            rate=len(answers) / seconds,
            least_rate=float(numbers.min()) / seconds,
            answered=min(1.0, len(answers) / (count * settings.rate * seconds)),
            latency=Latency.of([each.milliseconds for each in answers]),
        )


def plot(loads: Sequence[Load], title: str, path: Path) -> None:
    """Draw rate and latency over the number of cameras. Needs matplotlib (the extra `eval`)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    rates, latencies = figure.subplots(1, 2)
    counts = [load.cameras for load in loads]
    rates.plot(counts, [load.rate for load in loads], "o-", label="all cameras")
    rates.plot(counts, [load.least_rate for load in loads], "s--", label="the least served camera")
    rates.set_ylabel("answers a second")
    latencies.plot(counts, [load.latency.median for load in loads], "o-", label="median")
    latencies.plot(counts, [load.latency.percentile_99 for load in loads], "s--", label="99 %")
    latencies.set_ylabel("latency from stamp to answer, ms")
    for axes in (rates, latencies):
        axes.set_xlabel("cameras")
        axes.set_xticks(counts)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=120)
