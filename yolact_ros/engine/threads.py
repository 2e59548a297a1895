"""Runs work without leaving OpenMP threads behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

TRACING = threading.Lock()
"""Held while a network is built, traced or compiled: torch.export changes state of the whole
process, with which no other network can be built."""


def run_apart(work: Callable[[], Result]) -> Result:
    """Call `work` in a temporary thread; return what it returns, raise what it raises.

    On a CPU, PyTorch computes with OpenMP. GNU's libgomp keeps a team of threads for each live
    thread that has computed. With more threads than cores, every team sleeps between operators: a
    network took twice as long in a thread other than the one that had built it.
    """
    pool = ThreadPoolExecutor(1, "apart")
    # Not `with`, which would hold Ctrl-C back until the work is done.
    # The future is not named: it and its exception's traceback would form a reference cycle.
    result = pool.submit(work).result()
    pool.shutdown()
    return result
