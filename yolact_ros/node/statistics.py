"""Frame statistics for the diagnostics: counts, rates and latencies."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RATE_WINDOW = 5.0
"""Window for rates, in seconds."""

LATENCY_FRAMES = 300
"""Number of most recent frames for the latency percentiles."""


@dataclass(frozen=True)
class Latency:
    """How long something took, over many images, in milliseconds."""

    median: float
    percentile_99: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        return cls(*np.percentile(milliseconds, (50, 99)).tolist())


@dataclass(frozen=True)
class Summary:
    """The state of a `FrameStatistics` at one moment."""

    received: int
    processed: int
    passed_over: int
    failed: int
    refused: Mapping[str, int]
    """Malformed images, by reason."""
    depth_refused: int
    """Depth images that could not be used."""
    without_depth: int
    """Images without a depth image or calibration."""
    rate_in: float
    """Images received per second, including malformed ones."""
    rate_out: float
    """Images processed per second."""
    latencies: Mapping[str, Latency]
    """By stage, in the order of first recording."""
    silence: float
    """Seconds since the last image arrived, or since the start if none has."""
    unanswered: float
    """Seconds since the first image accepted after the last answer; 0 if none is waiting."""
    refused_lately: int
    """Images refused within the rate window."""
    failed_lately: int
    """Images that failed within the rate window."""
    depth_refused_lately: int
    """Depth images refused within the rate window."""
    without_depth_lately: int
    """Images without depth within the rate window."""


class _Events:
    """Events of one kind: their total, and the times of those in the last `RATE_WINDOW` seconds."""

    def __init__(self) -> None:
        self.total, self._times = 0, deque[float]()

    def note(self) -> float:
        """Record an event; return its time."""
        now = time.monotonic()
        self.total += 1
        self._times.append(now)
        self.lately(now)
        return now

    def lately(self, now: float) -> int:
        """Return the number of events within the window."""
        while self._times and self._times[0] < now - RATE_WINDOW:
            self._times.popleft()
        return len(self._times)


class FrameStatistics:
    """Counts frames; thread-safe."""

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
        """An image arrived."""
        with self._lock:
            self._last_arrival = self._arrivals.note()

    def accepted(self) -> None:
        """An image is waiting for the network."""
        with self._lock:
            if self._unanswered_since is None:
                self._unanswered_since = self._last_arrival

    def passed_over(self) -> None:
        """An image was dropped for a newer one or because of `max_rate`."""
        with self._lock:
            self._passed_over += 1

    def refused(self, reason: str, accepted: bool = False) -> int:
        """An image was malformed, found before or after it was `accepted`.

        Returns the number of malformed images so far.
        """
        with self._lock:
            self._refused[reason] += 1
            if accepted:
                self._unanswered_since = None
            self._refusals.note()
            return self._refusals.total

    def depth_refused(self) -> None:
        """A depth image could not be used; its colour image still can."""
        with self._lock:
            self._depth_refusals.note()

    def without_depth(self) -> None:
        """There was no depth for an image."""
        with self._lock:
            self._depths_missed.note()

    def failed(self) -> None:
        """A valid image could not be processed."""
        with self._lock:
            self._unanswered_since = None
            self._failures.note()

    def processed(self, latencies: Mapping[str, float]) -> None:
        """An image was processed; `latencies` are milliseconds by stage."""
        with self._lock:
            self._unanswered_since = None
            self._completions.note()
            for stage, value in latencies.items():
                self._latencies.setdefault(stage, deque(maxlen=LATENCY_FRAMES)).append(value)

    def summary(self) -> Summary:
        """Return the current state."""
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
                latencies={stage: Latency.of(values) for stage, values in self._latencies.items()},
                silence=now - self._last_arrival,
                unanswered=now - (self._unanswered_since or now),
                refused_lately=self._refusals.lately(now),
                failed_lately=self._failures.lately(now),
                depth_refused_lately=self._depth_refusals.lately(now),
                without_depth_lately=self._depths_missed.lately(now),
            )
