"""Soak test: whether memory or latency grows while the node runs at full rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from yolact_ros.node.diagnostics import MEBIBYTE, resident_bytes
from yolact_ros.node.measure.camera import CameraSettings
from yolact_ros.node.measure.graph import MeasureError, running
from yolact_ros.node.statistics import Latency

MIN_INTERVALS = 3
"""The first interval is the warm-up, and a trend needs two more."""


@dataclass(frozen=True)
class Interval:
    """Measurements of one interval."""

    start: float
    """Seconds since the first answer."""
    rate: float
    """Answers per second."""
    latency: Latency
    """From an image's stamp to the receipt of its answer."""
    memory: float
    """MiB that the node holds at the end of the interval."""


@dataclass(frozen=True)
class Limits:
    """Limits on the linear trend over all intervals after the warm-up."""

    growth: float
    """Growth of memory in MiB."""
    drift: float
    """Rise in latency as a fraction of the median."""

    def broken(self, intervals: Sequence[Interval]) -> list[str]:
        """Describe what exceeds the limits. The first interval is the warm-up and does not count.

        Raises ValueError for fewer than three intervals.
        """
        _check_count(len(intervals))
        steady = intervals[1:]
        growth = _rise([each.memory for each in steady])
        medians = [each.latency.median for each in steady]
        drift = _rise(medians) / min(medians)
        reasons = []
        if growth > self.growth:
            reasons.append(f"memory grew by {growth:.1f} MiB; at most {self.growth} are allowed")
        if drift > self.drift:
            reasons.append(f"latency rose by {drift:.0%}; at most {self.drift:.0%} are allowed")
        return reasons


def _check_count(intervals: int) -> None:
    if intervals < MIN_INTERVALS:
        raise ValueError(
            f"{intervals} intervals say nothing: at least {MIN_INTERVALS} are needed, so a longer "
            "time or shorter intervals"
        )


def _rise(values: Sequence[float]) -> float:
    """Return the rise from first to last value of a line fitted to equally spaced values."""
    slope = np.polyfit(np.arange(len(values)), values, 1)[0]
    return float(slope * (len(values) - 1))


def soak(
    settings: CameraSettings,
    cameras: int,
    seconds: float,
    interval: float,
    ros_arguments: Sequence[str],
) -> Iterator[Interval]:
    """Run a graph and yield each interval when it ends.

    Raises MeasureError, and ValueError if there is no time for three intervals.
    """
    _check_count(round(seconds / interval))
    with running(settings, cameras, ros_arguments) as graph:
        for i in range(round(seconds / interval)):
            answers = graph.watch(interval)
            if not answers:
                raise MeasureError(f"no answer in {interval:.0f} s")
            yield Interval(
                start=i * interval,
                rate=len(answers) / interval,
                latency=Latency.of([each.milliseconds for each in answers]),
                memory=resident_bytes(graph.node.pid) / MEBIBYTE,
            )
