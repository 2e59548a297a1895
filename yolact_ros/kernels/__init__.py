"""Triton kernels for CUDA; each has a plain PyTorch twin, its reference and fallback.

| kernel | twin |
|---|---|
| `preprocess.resize_and_normalise` | `engine.preprocess` |
| `deformable.deform_conv2d` | torchvision's operator |
| `masks.assemble` | `detection.masks` |
| `masks.pack` | `detection.regions` |
| `nms.fast_nms` | `detection.detections` |

Triton is imported only when a kernel is needed: PyTorch for CPUs comes without it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

_NO_MEMORY = (
    "out of memory",
    "_ALLOC_FAILED",
    "_ALLOCATION_FAILED",
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED",
    "DefaultCPUAllocator: ",
)
"""Texts of out-of-memory errors other than `OutOfMemoryError`: CUDA's for pinned memory and graphs
and Triton's; cuBLAS'; cuDNN's; PyTorch's on a Jetson; PyTorch's on a CPU."""

_refused: set[tuple[str, torch.device, torch.dtype]] = set()


def usable(x: Tensor, kernel: str, dtype: torch.dtype | None = None) -> bool:
    """Whether a kernel can be used for `x`: a tensor on the current CUDA device, if Triton works.

    With Triton's interpreter (TRITON_INTERPRET=1), CPU tensors are supported too. Kernels are not
    used while gradients are recorded or a graph is traced, since they support neither.

    Args:
        x: Any tensor of the call.
        kernel: The kernel's name in the table above, without the module.
        dtype: The data type that it computes in; None: that of `x`.
    """
    if is_recording() or x.device.type not in ("cuda", "cpu") or not _is_installed():
        return False
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return False
    if not x.is_cuda and not interpreted():
        return False
    return (kernel, x.device, dtype or x.dtype) not in _refused


@contextlib.contextmanager
def attempt(x: Tensor, kernel: str, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Context manager to run a `usable` kernel. If it fails, warn once, mark it as not usable and
    continue after the block, where the caller uses the twin.

    A kernel may fail on any call: Triton compiles it for each new specialisation, with a C
    compiler, and the device must have enough registers and shared memory. Errors unrelated to the
    kernel are raised: out of memory, and warnings turned into errors.
    """
    dtype = dtype or x.dtype
    try:
        yield
    except Exception as error:
        if isinstance(error, Warning) or is_out_of_memory(error):
            raise
        _refused.add((kernel, x.device, dtype))
        reason = (str(error).strip().splitlines() or [""])[0]
        warnings.warn(
            f"Triton's kernel {kernel} is not used for {str(dtype).removeprefix('torch.')} on "
            f"{x.device}, PyTorch's operators are: {type(error).__name__}: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the host ran out of memory; less work may fit."""
    text = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or any(
        each in text for each in _NO_MEMORY
    )


def is_recording() -> bool:
    """Whether PyTorch records operators, for gradients or to trace a graph."""
    return torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling()


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors, a lower bound of concurrent programs; 1 on a CPU."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
