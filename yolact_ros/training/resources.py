"""Threads and memory of training processes."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import cv2

# Parameters of glibc's mallopt, and their defaults.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_USUAL = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
_NEVER_GIVE_BACK = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}


@contextlib.contextmanager
def opencv_on_one_core() -> Iterator[None]:
    """Run OpenCV without threads. Data loader workers are forked: OpenCV's threads would not exist
    in them, and using or joining these would hang."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Make glibc keep freed memory for the next iteration.

    Otherwise every large CPU tensor is newly mapped memory, and a quarter of the time goes into
    page faults. This helps only the main thread: other threads' arenas are too small. Data loader
    workers inherit it and benefit too.
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
