"""The Triton kernels against their twins in plain PyTorch: how far they differ, how long they take.

A part of `gpu_check.py`. Without Triton the kernels' columns stay empty.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from yolact_ros import kernels
from yolact_ros.benchmark.timing import measure
from yolact_ros.detection.masks import assemble, crop, crop_rectangles
from yolact_ros.detection.regions import pack_plain, packed_sizes, pixel_rectangles
from yolact_ros.engine.preprocess import normalise, preprocess, resize
from yolact_ros.network import config_of

DEFORMABLE = {"C3": (69, 128), "C4": (35, 256), "C5": (18, 512)}
"""Side of the feature map and channels, for images of 550 pixels."""


@dataclass(frozen=True)
class Case:
    """A kernel and its twin on the same tensors."""

    name: str
    twin: Callable[[], Tensor]
    kernel: Callable[[], Tensor]
    exact: Callable[[], Tensor]
    """The twin in float32, which errors are counted from."""


@torch.no_grad()
def check_kernels(device: torch.device, small: bool = False) -> dict[str, dict[str, Any]]:
    """Relative errors and milliseconds of each twin and, where it runs, of its kernel."""
    usable = kernels.usable(torch.zeros(1, device=device))
    cases = [_preprocessing(device, small), *_masks(device, small), *_deformable(device, small)]
    found = {}
    for case in cases:
        exact = case.exact().double()
        calls = {"twin": case.twin} | ({"kernel": case.kernel} if usable else {})
        times = measure(calls, rounds=2 if small else 30, seconds=1.0, device=device)
        found[case.name] = {
            name: {
                "error": float((call().double() - exact).norm() / exact.norm()),
                "milliseconds": times[name].median,
            }
            for name, call in calls.items()
        }
    if usable:
        found["tiles"] = sweep_tiles(device, small)
    return found


def _preprocessing(device: torch.device, small: bool) -> Case:
    config = config_of("yolact_resnet50").replace(image_size=64 if small else 550)
    image = torch.randint(0, 256, (1, *((48, 64) if small else (480, 640)), 3), dtype=torch.uint8)
    image = image.to(device)

    def plain(dtype: torch.dtype) -> Tensor:
        return normalise(resize(image, config.image_size), config).to(dtype)

    return Case(
        "preprocessing",
        twin=partial(plain, torch.float16),
        kernel=partial(preprocess, image, config, torch.float16),
        exact=partial(plain, torch.float32),
    )


def _masks(device: torch.device, small: bool) -> list[Case]:
    """Assembly of 100 masks of 32 prototypes, and packing them for an image of 640 x 480."""
    count, side, size = (4, 16, (48, 64)) if small else (100, 138, (480, 640))
    half = torch.float32 if device.type == "cpu" else torch.float16
    coefficients = torch.randn(1, count, 32, device=device).tanh().to(half)
    prototypes = torch.randn(1, 32, side, side, device=device).relu().to(half)
    prototypes = prototypes.contiguous(memory_format=torch.channels_last)
    corners = torch.rand(1, count, 2, 2, device=device).sort(dim=2).values.flatten(2)
    cells = crop_rectangles(corners, side, side)
    values = crop(assemble(coefficients, prototypes), cells)[0]
    scale = torch.tensor((size[1], size[0]), dtype=torch.float32, device=device)
    extents = torch.cat((torch.zeros_like(scale), scale)).expand(count, 4)
    rectangles = pixel_rectangles(extents, cells[0], values, scale)
    ends = packed_sizes(rectangles).cumsum(0)
    out = torch.zeros(int(ends[-1]), dtype=torch.uint8, device=device)

    def assembled() -> Tensor:
        from yolact_ros.kernels import masks

        return masks.assemble(coefficients, prototypes, cells)

    def packed(by_kernel: bool) -> Tensor:
        if by_kernel:
            from yolact_ros.kernels import masks

            masks.pack(values, extents, rectangles, ends, out)
        else:
            pack_plain(values, extents, rectangles, ends, out)
        return out

    def plain(dtype: torch.dtype) -> Tensor:
        return crop(assemble(coefficients.to(dtype), prototypes.to(dtype)), cells)

    return [
        Case("mask assembly", partial(plain, half), assembled, partial(plain, torch.float32)),
        # Bits: an error of 0.01 is one byte of ten thousand that differs by a bit or more.
        Case(
            "mask packing",
            partial(packed, False),
            partial(packed, True),
            lambda: packed(False).clone(),
        ),
    ]


def _layer(device: torch.device, batch: int, side: int, channels: int) -> tuple[Tensor, ...]:
    """Input, learned offsets and factors, weight and bias of a deformable convolution."""
    half = torch.float32 if device.type == "cpu" else torch.float16
    tensors = (
        torch.randn(batch, channels, side, side),
        torch.randn(batch, 27, side, side),
        torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5,
    )
    last = torch.channels_last
    moved = (tensor.to(device, half).contiguous(memory_format=last) for tensor in tensors)
    return (*moved, torch.randn(channels).to(device, half))


def _twin(x: Tensor, learned: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    offsets, factors = learned[:, :18], learned[:, 18:].sigmoid()
    return deform_conv2d(x, offsets, weight, bias, padding=1, mask=factors)


def _kernel(*tensors: Tensor, tiles: Any = None) -> Tensor:
    from yolact_ros.kernels import deformable

    return deformable.deform_conv2d(*tensors, tiles=tiles)


def _deformable(device: torch.device, small: bool) -> list[Case]:
    shapes = {"small": (4, 16)} if small else DEFORMABLE
    cases = []
    for (name, shape), batch in itertools.product(shapes.items(), (1,) if small else (1, 16)):
        tensors = _layer(device, batch, *shape)
        full = [tensor.float() for tensor in tensors]
        cases.append(
            Case(
                f"deformable convolution, {name}, batch {batch}",
                twin=partial(_twin, *tensors),
                kernel=partial(_kernel, *tensors),
                exact=partial(_twin, *full),
            )
        )
    return cases


def sweep_tiles(device: torch.device, small: bool) -> dict[str, dict[str, float]]:
    """Milliseconds of the deformable convolution by how its work is cut, to choose tiles by."""
    from yolact_ros.kernels.deformable import Tiles

    shapes = {"small": (4, 16)} if small else DEFORMABLE
    sizes = [(16, 16, 16)] if small else [(32, 64, 64), (64, 64, 32), (64, 128, 32), (128, 128, 32)]
    found = {}
    for (name, shape), batch in itertools.product(shapes.items(), (1,) if small else (1, 16)):
        tensors = _layer(device, batch, *shape)
        choices = itertools.product(sizes, (1, 3, 9), (8,) if small else (4, 8))
        calls = {
            "x".join(map(str, (*size, splits, warps))): partial(
                _kernel, *tensors, tiles=Tiles(*size, splits=splits, warps=warps)
            )
            for size, splits, warps in choices
        }
        times = measure(calls, rounds=1 if small else 10, warm_up=1, seconds=2.0, device=device)
        found[f"{name}, batch {batch}"] = {key: each.median for key, each in times.items()}
    return found
