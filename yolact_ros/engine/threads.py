"""Work that leaves no threads behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def run_apart(work: Callable[[], Result]) -> Result:
    """`work()`, or what it raises, in a thread that ends with it.

    On a CPU PyTorch computes with OpenMP. GNU's libgomp keeps a team of threads for each thread
    that ever computed, while that lives. With more of them than cores all teams sleep between two
    operators, and a network in another thread than the one that built it took twice as long.
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
    done.wait()  # Ctrl-C during join() would make Python end while the thread computes
    thread.join()
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # else it would refer to itself, and keep what its stack holds
    return results[0]
