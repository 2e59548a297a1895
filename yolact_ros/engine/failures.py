"""Devices that run out of memory or are lost."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from yolact_ros.engine.device import capture_lock
from yolact_ros.kernels import is_out_of_memory

_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class DeviceLostError(RuntimeError):
    """The device no longer responds. With CUDA only a new process can use it again."""


class DeviceMemoryError(RuntimeError):
    """Not even one image fits into the device's memory."""


@contextlib.contextmanager
def detect_lost_device(device: torch.device) -> Iterator[None]:
    """Turn an error after which `device` no longer responds into a DeviceLostError."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error) or responds(device):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DeviceLostError(f"{device} is lost: {reason}") from error


def responds(device: torch.device) -> bool:
    """Whether a device still responds. After a fault, every CUDA call fails."""
    if device.type != "cuda":
        return True
    try:
        with capture_lock(device):
            torch.cuda.synchronize(device)
    except Exception:  # AssertionError, RuntimeError or AcceleratorError
        return False
    return True


def allocated(device: torch.device) -> int:
    """Return the bytes that tensors occupy on the device; 0 on a CPU, which does not count them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


@dataclass(frozen=True)
class MemoryNeed:
    """How much memory a batch needed on a device that ran out of it."""

    images: int
    bytes: int
    """Lower bound for all images, without the weights; 0 if unknown."""
    free: int
    """Bytes that were available for them."""

    @classmethod
    def of(cls, error: BaseException, images: int, device: torch.device, before: int) -> MemoryNeed:
        """Measure the need; call this while `error` is being handled, before anything is freed.

        `before` is what was `allocated` before the batch.
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
        """Return the largest input size that fits, a multiple of 32: memory grows with its area."""
        share = min(1.0, self.free * self.images / max(self.bytes, 1))
        return max(64, int(current * share**0.5) // 32 * 32)

    def __str__(self) -> str:
        image, free = self.bytes / self.images / 2**20, self.free / 2**20
        if not self.bytes:
            return f"how much an image takes is not known, and {free:.0f} MiB were free"
        return f"an image takes {image:.0f} MiB or more, and {free:.0f} MiB were free"
