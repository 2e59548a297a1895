"""A submitted batch and its results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from yolact_ros.detection import Instances


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds of each stage of a batch.

    A CUDA graph is timed as a whole: its device time counts as network, the host's work before it
    as preprocessing.
    """

    preprocess: float
    network: float
    detection: float

    def __add__(self, other: StageTimes) -> StageTimes:
        return StageTimes(
            self.preprocess + other.preprocess,
            self.network + other.network,
            self.detection + other.detection,
        )


class SegmentedBatch(NamedTuple):
    """The instances of a batch and the time of its stages."""

    instances: list[Instances]
    stages: StageTimes

    @classmethod
    def joined(cls, parts: Iterable[SegmentedBatch]) -> SegmentedBatch:
        """Join the parts of a batch, in order; their times are added."""
        parts = list(parts)
        instances = [each for part in parts for each in part.instances]
        return cls(instances, sum((part.stages for part in parts), StageTimes(0, 0, 0)))


@dataclass(frozen=True)
class SubmittedBatch:
    """A submitted batch, similar to a `concurrent.futures.Future`."""

    done: Callable[[], bool]
    """Whether `result` would return without waiting."""
    result: Callable[[], SegmentedBatch]
    """Waits for the results; raises the same errors as a call of the segmenter."""
