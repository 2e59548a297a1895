"""Interleaved timing, so that whatever slows the machine down affects all candidates."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Timing:
    """How long something took, in milliseconds per call."""

    milliseconds: tuple[float, ...]
    """One value per round, in order of measurement."""

    @property
    def rounds(self) -> int:
        return len(self.milliseconds)

    @property
    def median(self) -> float:
        return float(np.median(self.milliseconds))

    @property
    def percentile_99(self) -> float:
        """99 % of calls took no longer. With few rounds it is close to the slowest."""
        return float(np.percentile(self.milliseconds, 99))


def check_limits(rounds: int, seconds: float = math.inf) -> None:
    """Raise ValueError for limits that `measure` does not accept."""
    if rounds < 1:
        raise ValueError(f"rounds={rounds} is not allowed: it must be at least 1")
    if not seconds > 0:
        raise ValueError(f"seconds={seconds} is not allowed: it must be more than 0")


def measure(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warm_up: int = 3,
    repeats: int = 1,
    seconds: float = math.inf,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time each call once per round; return the timings by the same names.

    The order is shuffled each round, reproducibly, so that a call does not always run in the caches
    of the same predecessor. CUDA devices are synchronised before the clock is read. Gradients are
    not computed.

    Args:
        calls: What to time, by name.
        rounds: Number of rounds, at least 1.
        warm_up: Uncounted rounds before those.
        repeats: Back-to-back calls per round, whose mean is the round's time: the device then keeps
            working while the host submits the next call.
        seconds: No new round starts after this time; at least one round is measured.
        device: Where the calls compute.
        clock: Returns seconds. `time.process_time` counts the CPU time of all threads together.

    Raises:
        ValueError: For a number that is not allowed.
    """
    check_limits(rounds, seconds)
    if warm_up < 0:
        raise ValueError(f"warm_up={warm_up} is not allowed: it must be at least 0")
    if repeats < 1:
        raise ValueError(f"repeats={repeats} is not allowed: it must be at least 1")
    device = torch.device(device)
    order = list(calls)
    shuffle = random.Random(0).shuffle
    taken: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for name in order * warm_up:
            calls[name]()
        deadline = clock() + seconds
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                _wait(device)
                started = clock()
                for _ in range(repeats):
                    calls[name]()
                _wait(device)
                taken[name].append(1000 * (clock() - started) / repeats)
            if clock() > deadline:
                break
    return {name: Timing(tuple(values)) for name, values in taken.items()}


def _wait(device: torch.device) -> None:
    """Synchronise with the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
