"""What happened to the frames: counts, rates and latencies, for the diagnostics."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

RATE_WINDOW = 5.0
"""Seconds that a rate is taken over."""

LATENCY_FRAMES = 300
"""Newest frames that the percentiles of latency are taken over."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one stage."""

    median: float
    percentile_99: float


@dataclass(frozen=True)
class Summary:
    """The state of a `FrameStatistics` at one moment."""

    received: int
    processed: int
    passed_over: int
    failed: int
    refused: Mapping[str, int]
    """Malformed images, by what was wrong."""
    depth_refused: int
    """Depth images that could not be used."""
    without_depth: int
    """Images for which there was no depth image or no calibration."""
    rate_in: float
    """Images a second that arrived, malformed ones included."""
    rate_out: float
    """Images a second that were processed."""
    latencies: Mapping[str, Latency]
    """By stage, in the order in which the stages were first recorded."""
    silence: float
    """Seconds since the last image arrived, or since the start when none has."""
    unanswered: float
    """Seconds since an image was accepted, the first one after the last answer; 0 if none was."""
    refused_lately: int
    """Images refused within the window of the rates."""
    failed_lately: int
    """Images that failed within the window of the rates."""
    depth_refused_lately: int
    """Depth images refused within the window of the rates."""
    without_depth_lately: int
    """Images without depth within the window of the rates."""


class _Events:
    """Things of one kind: how many there were, and when those of the last `RATE_WINDOW` seconds."""

    def __init__(self) -> None:
        self.total, self._times = 0, deque[float]()

    def note(self) -> float:
        """One happens, at the time that is returned."""
        now = time.monotonic()
        self.total += 1
        self._times.append(now)
        self.lately(now)
        return now

    def lately(self, now: float) -> int:
        """How many there were within the window."""
        while self._times and self._times[0] < now - RATE_WINDOW:
            self._times.popleft()
        return len(self._times)


class FrameStatistics:
    """Counts frames; to be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start = self._last_arrival = time.monotonic()
        self._unanswered_since: float | None = None
        self._arrivals, self._completions, self._failures = _Events(), _Events(), _Events()
        self._refusals, self._depth_refusals, self._depths_missed = _Events(), _Events(), _Events()
        self._passed_over = 0
        self._refused: Counter[str] = Counter()
        self._latencies: dict[str, deque[float]] = {}

    def arrived(self) -> None:
        """An image came in."""
        with self._lock:
            self._last_arrival = self._arrivals.note()

    def accepted(self) -> None:
        """An image waits for the network."""
        with self._lock:
            if self._unanswered_since is None:
                self._unanswered_since = self._last_arrival

    def passed_over(self) -> None:
        """An image was given up for a newer one, or comes too early for `max_rate`."""
        with self._lock:
            self._passed_over += 1

    def refused(self, reason: str, accepted: bool = False) -> int:
        """An image was malformed, which showed before or after it was accepted.

        Returns how many were so far.
        """
        with self._lock:
            self._refused[reason] += 1
            if accepted:
                self._unanswered_since = None
            self._refusals.note()
            return self._refusals.total

    def depth_refused(self) -> None:
        """A depth image could not be used; the image that it belongs to can."""
        with self._lock:
            self._depth_refusals.note()

    def without_depth(self) -> None:
        """There was no depth for an image."""
        with self._lock:
            self._depths_missed.note()

    def failed(self) -> None:
        """A sound image could not be processed."""
        with self._lock:
            self._unanswered_since = None
            self._failures.note()

    def processed(self, latencies: Mapping[str, float]) -> None:
        """An image was processed; milliseconds by stage."""
        with self._lock:
            self._unanswered_since = None
            self._completions.note()
            for stage, value in latencies.items():
                self._latencies.setdefault(stage, deque(maxlen=LATENCY_FRAMES)).append(value)

    def summary(self) -> Summary:
        """All of it, now."""
        with self._lock:
            now = time.monotonic()
            window = max(min(RATE_WINDOW, now - self._start), 1e-3)
            return Summary(
                received=self._arrivals.total,
                processed=self._completions.total,
                passed_over=self._passed_over,
                failed=self._failures.total,
                refused=dict(self._refused),
                depth_refused=self._depth_refusals.total,
                without_depth=self._depths_missed.total,
                rate_in=self._arrivals.lately(now) / window,
                rate_out=self._completions.lately(now) / window,
                latencies={
                    stage: Latency(*np.percentile(values, (50, 99)).tolist())
                    for stage, values in self._latencies.items()
                },
                silence=now - self._last_arrival,
                unanswered=now - (self._unanswered_since or now),
                refused_lately=self._refusals.lately(now),
                failed_lately=self._failures.lately(now),
                depth_refused_lately=self._depth_refusals.lately(now),
                without_depth_lately=self._depths_missed.lately(now),
            )
