"""Threads and memory of the processes of a training."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import cv2

# Parameters of glibc's mallopt, and what they are unless set.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_USUAL = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
_NEVER_GIVE_BACK = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}


@contextlib.contextmanager
def opencv_on_one_core() -> Iterator[None]:
    """Within, OpenCV has no threads. Processes that load pictures are forked: its threads would be
    missing there, and what uses or ends them would wait for ever."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, memory that is freed waits for the next iteration, where the C library is glibc.

    Else every large tensor on a CPU is memory fresh from the system, and a quarter of the time goes
    into making its pages. It is for the main thread: glibc gives others arenas too small for it.
    Processes that load pictures inherit it, which serves them, too.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        yield
        return
    for parameter, value in _NEVER_GIVE_BACK.items():
        library.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)
