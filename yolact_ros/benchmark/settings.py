"""Benchmark settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from yolact_ros.benchmark.published import check_checkout
from yolact_ros.benchmark.timing import Timing, check_limits, measure
from yolact_ros.engine import Image
from yolact_ros.extras import check_installed


@dataclass(frozen=True)
class Settings:
    """What to measure, and how long."""

    models: tuple[str, ...]
    """NAME (random weights, except for the embedded model), NAME=WEIGHTS, or a file."""
    image: Image
    """BGR, [H, W, 3]."""
    device: str = "auto"
    precision: str = "auto"
    backends: tuple[str, ...] = ("auto",)
    """Backends as in `Segmenter`. An exported file runs on its own backend."""
    batches: tuple[int, ...] = (1,)
    """Batch sizes to try."""
    score_threshold: float = 0.0
    reference: Path | None = None
    """A checkout of the published implementation."""
    mask_rcnn: bool = False
    ultralytics: tuple[str, ...] = ()
    """Names of Ultralytics models."""
    memory: bool = True
    node: bool = True
    rounds: int = 20
    seconds: float = 60.0
    """Time limit for the rounds of one comparison."""
    keep: Path | None = None
    """Folder where random weights are kept and reused."""
    clock: Callable[[], float] = time.perf_counter
    """Clock for `measure`."""

    def __post_init__(self) -> None:
        """Raises ValueError, FileNotFoundError, MissingExtraError before anything has run."""
        if not self.models:
            raise ValueError("models=() is not allowed: name one or more")
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batches={self.batches} is not allowed: each must be at least 1")
        check_limits(self.rounds, self.seconds)
        if self.reference is not None:
            check_checkout(self.reference)
        if self.ultralytics:
            what = f"ultralytics={self.ultralytics}"
            check_installed("ultralytics", what, "pip install ultralytics")

    def clock_of(self, device: torch.device) -> Callable[..., dict[str, Timing]]:
        """Return `measure` with these settings."""
        return partial(
            measure, rounds=self.rounds, seconds=self.seconds, device=device, clock=self.clock
        )
