"""When a device has too little memory, or is gone."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from yolact_ros.kernels import is_out_of_memory

_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class DeviceLostError(RuntimeError):
    """The device no longer answers. On CUDA only a new process can use it again."""


class DeviceMemoryError(RuntimeError):
    """Not even one image fits the device's memory."""


@contextlib.contextmanager
def lost_devices_named(device: torch.device) -> Iterator[None]:
    """Within, an error after which `device` does not answer any more becomes a DeviceLostError."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error) or answers(device):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DeviceLostError(f"{device} is lost: {reason}") from error


@functools.cache
def whole_device(device: torch.device) -> threading.Lock:
    """To be held during a capture, and by what CUDA forbids while any thread captures: to wait for
    all of a device, which cuDNN's search for kernels does, too."""
    return threading.Lock()


def answers(device: torch.device) -> bool:
    """Whether a device still does what it is told. After a fault CUDA refuses every call."""
    if device.type != "cuda":
        return True
    try:
        with whole_device(device):
            torch.cuda.synchronize(device)
    except Exception:  # AssertionError, RuntimeError or AcceleratorError
        return False
    return True


def allocated(device: torch.device) -> int:
    """Bytes of the device's memory that tensors take now; 0 on a CPU, which does not count them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


@dataclass(frozen=True)
class MemoryNeed:
    """What a batch took of a device's memory before there was no more."""

    images: int
    bytes: int
    """At least so many for all images, the weights not counted; 0 where nothing is known."""
    free: int
    """Bytes that there were for them."""

    @classmethod
    def of(cls, error: BaseException, images: int, device: torch.device, before: int) -> MemoryNeed:
        """To be asked while `error` is handled: until then nothing is freed.

        `before` is what was `allocated` before the batch came.
        """
        taken = allocated(device) - before
        asked = re.search(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", str(error))
        wanted = int(float(asked[1]) * _UNITS[asked[2]]) if asked else 0
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            free += torch.cuda.memory_reserved(device) - allocated(device)
        else:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(images, taken + wanted, free + taken)

    def image_size(self, current: int) -> int:
        """The largest network input that fits, a multiple of 32: memory grows with its area."""
        share = min(1.0, self.free * self.images / max(self.bytes, 1))
        return max(64, int(current * share**0.5) // 32 * 32)

    def __str__(self) -> str:
        image, free = self.bytes / self.images / 2**20, self.free / 2**20
        if not self.bytes:
            return f"how much an image takes is not known, and {free:.0f} MiB were free"
        return f"an image takes {image:.0f} MiB or more, and {free:.0f} MiB were free"
