"""Triton kernels for CUDA; each has a twin in plain PyTorch, which defines it and stands in for it.

| kernel | twin |
|---|---|
| `preprocess.resize_and_normalise` | `engine.preprocess` |
| `deformable.deform_conv2d` | torchvision's operator |
| `masks.assemble` | `detection.masks` |
| `masks.pack` | `detection.regions` |
| `nms.suppress` | `detection.nms` |

Nothing here imports Triton before a kernel is wanted: PyTorch for CPUs comes without it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings

import torch
from torch import Tensor


def usable(x: Tensor, kernel: str = "", dtype: torch.dtype | None = None) -> bool:
    """Whether a kernel can take `x`: a tensor on the current CUDA device, where Triton works.

    Under Triton's interpreter (TRITON_INTERPRET=1) tensors on the CPU can be taken, too. Never
    while gradients are recorded or a graph is traced: kernels know neither.

    A kernel is tried when it is first asked for. One that fails there is not used again, and a
    warning says why.

    Args:
        x: Any tensor of the call.
        kernel: Its name in the table above, without the module; all of them, if empty.
        dtype: What it computes in; that of `x`, if None.
    """
    if recorded() or x.device.type not in ("cuda", "cpu") or not _is_installed():
        return False
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return False
    if not x.is_cuda and not interpreted():
        return False
    from yolact_ros.kernels.trial import KERNELS

    names = (kernel,) if kernel else tuple(KERNELS)
    return all(_works(name, x.device, dtype or x.dtype) for name in names)


def recorded() -> bool:
    """Whether PyTorch writes down what is called, for gradients or as a graph."""
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


@functools.cache
def _works(kernel: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Tried once: Triton needs a C compiler, and a device that has what the kernel takes of it."""
    from yolact_ros.kernels.trial import KERNELS

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # a warning, even where it is an error, is no failure
            KERNELS[kernel](device, dtype)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError:
        raise  # says nothing of the kernel
    except Exception as error:  # whatever Triton lacks, PyTorch's own operators do the work
        reason = (str(error).strip().splitlines() or [""])[0]
        warnings.warn(
            f"Triton's kernel {kernel} is not used for {str(dtype).removeprefix('torch.')} on "
            f"{device}, PyTorch's operators are: {type(error).__name__}: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    return True
