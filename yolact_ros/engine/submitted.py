"""A batch on its way, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from yolact_ros.detection import Instances


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds that the stages of a batch took.

    A CUDA graph is one piece: its time on the device is that of the network, and what the host did
    before is preprocessing.
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


class Segmented(NamedTuple):
    """What was found in a batch, and how long that took."""

    instances: list[Instances]
    stages: StageTimes

    @classmethod
    def joined(cls, parts: Iterable[Segmented]) -> Segmented:
        """Parts of a batch, one after the other."""
        parts = list(parts)
        instances = [each for part in parts for each in part.instances]
        return cls(instances, sum((part.stages for part in parts), StageTimes(0, 0, 0)))


@dataclass(frozen=True)
class Submitted:
    """A batch that is on its way, as a future of `concurrent.futures` is."""

    done: Callable[[], bool]
    """Whether `result` would not wait."""
    result: Callable[[], Segmented]
    """Waits, and raises what a call of the segmenter raises."""
