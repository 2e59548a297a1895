"""Triton kernels for CUDA; each has a twin in plain PyTorch, which defines it and stands in for it.

| kernel | twin |
|---|---|
| `preprocess.resize_and_normalise` | `engine.preprocess` |
| `deformable.deform_conv2d` | torchvision's operator |
| `masks.assemble` | `detection.masks` |
| `masks.pack` | `detection.regions` |
| `nms.fast_nms` | `detection.detections` |

Nothing here imports Triton before a kernel is wanted: PyTorch for CPUs comes without it.
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
"""What errors other than `OutOfMemoryError` say when memory is short: CUDA's of pinned memory and
of graphs, and Triton's; cuBLAS'; cuDNN's; PyTorch's on a Jetson; PyTorch's on a CPU."""

_refused: set[tuple[str, torch.device, torch.dtype]] = set()


def usable(x: Tensor, kernel: str, dtype: torch.dtype | None = None) -> bool:
    """Whether a kernel can take `x`: a tensor on the current CUDA device, where Triton works.

    Under Triton's interpreter (TRITON_INTERPRET=1) tensors on the CPU can be taken, too. Never
    while gradients are recorded or a graph is traced: kernels know neither.

    Args:
        x: Any tensor of the call.
        kernel: Its name in the table above, without the module.
        dtype: What it computes in; that of `x`, if None.
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
    """Run a kernel that is `usable`; if it fails, warn once and go on after the block, where the
    caller calls its twin. From then on the kernel is not usable.

    It may fail whenever it is called: Triton compiles it for each new kind of arguments, with a C
    compiler, and the device must have the registers and shared memory that it takes. Errors that do
    not concern the kernel are raised: too little memory, and warnings turned into errors.
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
    """Whether a device, or the host, had too little memory: less work may fit."""
    text = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or any(
        each in text for each in _NO_MEMORY
    )


def is_recording() -> bool:
    """Whether PyTorch records what is called, for gradients or as a graph."""
    return torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling()


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def multiprocessors(device: torch.device) -> int:
    """How many programs of a kernel run at once at least; 1 on a CPU."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
