"""Timing in turns, on calls whose order and length are known. No clock is compared with another."""

import itertools
import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from yolact_ros.benchmark.timing import Timing, measure


def test_everything_is_called_once_a_round():
    called = []
    calls = {name: (lambda name=name: called.append(name)) for name in ("a", "b", "c")}
    timings = measure(calls, rounds=5, warm_up=2)
    assert list(timings) == ["a", "b", "c"]
    assert all(timing.rounds == 5 for timing in timings.values())
    rounds = [called[i : i + 3] for i in range(0, len(called), 3)]
    assert len(rounds) == 7
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert any(a != b for a, b in pairwise(rounds[2:])), "the order changes"


def test_repeated_calls_share_their_time():
    called = []
    ticks = itertools.count()
    (timing,) = measure(
        {"a": lambda: called.append(0)},
        rounds=2,
        warm_up=1,
        repeats=4,
        clock=lambda: float(next(ticks)),
    ).values()
    assert timing.milliseconds == (250.0, 250.0) and len(called) == 1 + 2 * 4


def test_a_call_takes_at_least_as_long_as_it_sleeps():
    timings = measure({"short": lambda: None, "long": lambda: time.sleep(0.01)}, rounds=3)
    assert min(timings["long"].milliseconds) >= 10
    assert timings["short"].median < timings["long"].median <= timings["long"].percentile_99


def test_the_processor_does_not_work_while_it_sleeps():
    calls = {"sleep": lambda: time.sleep(0.05)}
    (timing,) = measure(calls, rounds=3, clock=time.process_time).values()
    assert timing.median < 25


def test_median_and_percentile():
    values = tuple(float(i) for i in np.random.default_rng(0).permutation(101))
    assert Timing(values).median == 50
    assert Timing(values).percentile_99 == 99


def test_one_round_is_made_however_short_the_time():
    timings = measure({"a": lambda: None}, rounds=1000, warm_up=0, seconds=1e-9)
    assert timings["a"].rounds == 1


def test_no_gradients():
    weights = torch.ones(2, requires_grad=True)
    results = []
    measure({"a": lambda: results.append(weights * 2)}, rounds=1, warm_up=0)
    assert not results[0].requires_grad


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"warm_up": -1}, {"repeats": 0}, {"seconds": 0}])
def test_bad_numbers_are_refused(bad):
    with pytest.raises(ValueError, match=f"^{next(iter(bad))}="):
        measure({"a": lambda: None}, **bad)
