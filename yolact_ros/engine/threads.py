"""Runs work without leaving OpenMP threads behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
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
    results: list[Result] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, name="apart")
    thread.start()
    done.wait()  # after Ctrl-C during join(), Python would exit while the thread computes
    thread.join()
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # breaks a reference cycle that would keep the traceback's frames alive
    return results[0]
