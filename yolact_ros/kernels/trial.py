"""One small call of each kernel, in its largest tiles, to see whether it runs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from yolact_ros.kernels import deformable, masks, nms, preprocess


def _resize_and_normalise(device: torch.device, dtype: torch.dtype) -> None:
    image = torch.zeros(1, 2, 2, 3, dtype=torch.uint8, device=device)
    out = torch.empty(1, 3, 2, 2, dtype=dtype, device=device)
    preprocess.resize_and_normalise(image, out, (0, 0, 0), (1, 1, 1))


def _deform_conv2d(device: torch.device, dtype: torch.dtype) -> None:
    x, learned = torch.zeros(1, 128, 8, 8), torch.zeros(1, 27, 8, 8)
    tensors = (x, learned, torch.zeros(128, 128, 3, 3), torch.zeros(128))
    deformable.deform_conv2d(*(tensor.to(device, dtype) for tensor in tensors))


def _assemble(device: torch.device, dtype: torch.dtype) -> None:
    coefficients = torch.zeros(1, 32, 32, dtype=dtype, device=device)
    prototypes = torch.zeros(1, 32, 4, 4, dtype=dtype, device=device)
    masks.assemble(
        coefficients, prototypes, torch.zeros(1, 32, 4, dtype=torch.int64, device=device)
    )


def _pack(device: torch.device, dtype: torch.dtype) -> None:
    masks.pack(
        torch.zeros(1, 4, 4, dtype=dtype, device=device),
        torch.zeros(1, 4, device=device),
        torch.zeros(1, 4, dtype=torch.int64, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
        torch.empty(1, dtype=torch.uint8, device=device),
    )


def _suppress(device: torch.device, dtype: torch.dtype) -> None:
    boxes = torch.zeros(1, 40, 4, dtype=dtype, device=device)
    nms.suppress(boxes, boxes[..., 0], 0.5)


KERNELS: dict[str, Callable[[torch.device, torch.dtype], None]] = {
    "resize_and_normalise": _resize_and_normalise,
    "deform_conv2d": _deform_conv2d,
    "assemble": _assemble,
    "pack": _pack,
    "suppress": _suppress,
}
"""By name; called with the device and the data type, each raises what the kernel does."""
