"""Triton kernels for CUDA; each has a twin in plain PyTorch, which defines it and stands in for it.

| kernel | twin |
|---|---|
| `preprocess.resize_and_normalise` | `engine.preprocess` |
| `deformable.deform_conv2d` | torchvision's operator |
| `masks.assemble` | `detection.masks` |
| `masks.pack` | `detection.regions` |

Nothing here imports Triton before a kernel is wanted: PyTorch for CPUs comes without it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings

import torch
from torch import Tensor


def usable(x: Tensor) -> bool:
    """Whether the kernels can take `x`: a tensor on the current CUDA device, where Triton works.

    Under Triton's interpreter (TRITON_INTERPRET=1) tensors on the CPU can be taken, too. Never
    while gradients are recorded or a graph is traced: kernels know neither.
    """
    if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    if x.is_cuda:
        return x.device.index == torch.cuda.current_device() and _compiles(x.device)
    return interpreted() and x.device.type == "cpu" and _is_installed()


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
def _compiles(device: torch.device) -> bool:
    """Tried once: Triton needs a C compiler, and not every device is one of its own."""
    if not _is_installed():
        return False
    from yolact_ros.kernels.preprocess import resize_and_normalise

    image = torch.zeros(1, 2, 2, 3, dtype=torch.uint8, device=device)
    try:
        resize_and_normalise(image, torch.empty(1, 3, 2, 2, device=device), (0, 0, 0), (1, 1, 1))
        torch.cuda.synchronize(device)
    except Exception as error:  # whatever Triton lacks, PyTorch's own operators do the work
        reason = (str(error).strip().splitlines() or [""])[0]
        warnings.warn(
            f"Triton's kernels are not used on {device}, PyTorch's are: "
            f"{type(error).__name__}: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    return True
