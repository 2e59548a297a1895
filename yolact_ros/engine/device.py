"""Choice of device, precision and cuDNN kernels."""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
from collections.abc import Iterator

import torch

_PRECISIONS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def choose_device(name: str) -> torch.device:
    """Return the device for "auto" (CUDA if available, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises ValueError, naming the devices of this machine, for any other name.
    """
    # device_count() may come from NVML and include GPUs whose driver is too old for PyTorch.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if name not in there:
        raise ValueError(f"device={name!r} is not allowed: this machine has {', '.join(there)}")
    if name == "auto":
        name = "cuda" if count else "cpu"
    return torch.device("cuda:0" if name == "cuda" else name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the data type `name`; "auto" is float16 on CUDA and float32 on a CPU.

    Raises ValueError for one that the device does not support, such as float16 on a CPU.
    """
    allowed = ["auto", *(_PRECISIONS if device.type == "cuda" else ["float32", "bfloat16"])]
    if name not in allowed:
        raise ValueError(
            f"precision={name!r} is not allowed on {device.type}: one of {', '.join(allowed)}"
        )
    if name == "auto":
        name = "float16" if device.type == "cuda" else "float32"
    return _PRECISIONS[name]


@functools.cache
def capture_lock(device: torch.device) -> threading.Lock:
    """Return the lock to hold during a capture and for calls that CUDA forbids while any thread
    captures: device-wide synchronisation, which cuDNN's benchmarking also does."""
    return threading.Lock()


_searching, _capturing = threading.RLock(), threading.RLock()


@contextlib.contextmanager
def garbage_collection_disabled() -> Iterator[None]:
    """Disable garbage collection: freeing a CUDA graph would invalidate a capture.

    One thread at a time, since it is disabled in the whole process.
    """
    with _capturing:
        gc.collect()
        collects = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collects:
                gc.enable()


@contextlib.contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN benchmark its kernels for each new shape.

    One thread at a time, since the flag is global.

    `torch.backends.cudnn.flags` would also set TensorFloat-32 and determinism, or reject the
    user's settings of them.
    """
    with _searching:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before
