"""Compares the Triton kernels with their plain PyTorch twins, in error and time.

Steps of `gpu_check.py`. Without Triton the kernels' columns stay empty.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from yolact_ros import kernels
from yolact_ros.benchmark.stages import as_graph, repeats_on
from yolact_ros.benchmark.timing import measure
from yolact_ros.detection import Detections, DetectionSettings, detect
from yolact_ros.detection.detections import detect_plain
from yolact_ros.detection.masks import assemble, crop, crop_rectangles
from yolact_ros.detection.regions import pack_plain, packed_sizes, pixel_rectangles
from yolact_ros.engine.fixed import CANDIDATES
from yolact_ros.engine.preprocess import normalise, preprocess, resize
from yolact_ros.network import Predictions, config_of
from yolact_ros.network.deformable import refuse_capture

DEFORMABLE = {"C3": (69, 128), "C4": (35, 256), "C5": (18, 512)}
"""Side of the feature map and channels, for images of 550 pixels."""

COPIES = 20
"""Copies of a kernel per graph: many kernels take less time than the launch of a graph."""


@dataclass(frozen=True)
class Case:
    """A kernel and its twin on the same tensors."""

    twin: Callable[[], Tensor]
    kernel: Callable[[], Tensor]
    exact: Callable[[], Tensor]
    """The twin in float32, the reference for errors."""
    name: str
    """The kernel's name for `kernels.usable`."""
    dtype: torch.dtype
    """The data type that it computes in."""


def builders(device: torch.device, small: bool = False) -> dict[str, Callable[[], Case]]:
    """What makes each case, by its name."""
    made: dict[str, Callable[[], Case]] = {
        "preprocessing": partial(_preprocessing, device, small),
        "mask assembly": partial(_assembly, device, small),
        "mask packing": partial(_packing, device, small),
        "Fast NMS": partial(_fast_nms, device, small),
    }
    for name, shape in layers(small).items():
        made[f"deformable convolution, {name}"] = partial(_deformable, device, shape)
    return made


@torch.no_grad()
def check(case: Case, device: torch.device, small: bool = False) -> dict[str, dict[str, float]]:
    """Relative errors and milliseconds of the twin and, where Triton works, of the kernel.

    Raises RuntimeError where the kernel should run and does not; a warning has said why.
    """
    x = torch.zeros(1, device=device)
    usable = kernels.usable(x, case.name, case.dtype)
    if usable:
        with kernels.attempt(x, case.name, case.dtype):
            case.kernel()
        if not kernels.usable(x, case.name, case.dtype):
            raise RuntimeError(f"the kernel {case.name} does not run: its twin takes its place")
    exact = case.exact().double()
    calls = {"twin": case.twin} | ({"kernel": case.kernel} if usable else {})
    copies = COPIES if device.type == "cuda" else 1
    graphs = {}
    for name, call in calls.items():
        try:
            graphs[name] = as_graph(call, device, copies)
        except RuntimeError as error:
            if name == "kernel" or kernels.is_out_of_memory(error):
                raise
            warnings.warn(f"the twin is not timed: {error}", RuntimeWarning, stacklevel=2)
    rounds, warm_up = (2, 0) if small else (30, 3)
    times = measure(graphs, rounds=rounds, warm_up=warm_up, seconds=1.0, device=device)
    return {
        name: {
            "error": _error(call, exact),
            **({"milliseconds": times[name].median / copies} if name in times else {}),
        }
        for name, call in calls.items()
    }


def _error(call: Callable[[], Tensor], exact: Tensor) -> float:
    """The relative error. The first call's result is overwritten: the memory may be used again, and
    what the second call leaves out must not look right."""
    call().fill_(0x5A)
    return float((call().double() - exact).norm() / exact.norm())


def _preprocessing(device: torch.device, small: bool) -> Case:
    config = config_of("yolact_resnet50").replace(image_size=64 if small else 550)
    image = torch.randint(0, 256, (1, *((48, 64) if small else (480, 640)), 3), dtype=torch.uint8)
    image = image.to(device)

    def plain(dtype: torch.dtype) -> Tensor:
        return normalise(resize(image, config.image_size), config).to(dtype)

    return Case(
        twin=partial(plain, torch.float16),
        kernel=partial(preprocess, image, config, torch.float16),
        exact=partial(plain, torch.float32),
        name="resize_and_normalise",
        dtype=torch.float16,
    )


def _mask_inputs(device: torch.device, small: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Coefficients of 100 masks, 32 prototypes, boxes, and those in cells of the prototypes."""
    count, side = (4, 16) if small else (100, 138)
    half = torch.float32 if device.type == "cpu" else torch.float16
    coefficients = torch.randn(1, count, 32, device=device).tanh().to(half)
    prototypes = torch.randn(1, 32, side, side, device=device).relu().to(half)
    prototypes = prototypes.contiguous(memory_format=torch.channels_last)
    corners = torch.rand(1, count, 2, 2, device=device).sort(dim=2).values.flatten(2)
    return coefficients, prototypes, corners, crop_rectangles(corners, side, side)


def _assembly(device: torch.device, small: bool) -> Case:
    coefficients, prototypes, _, cells = _mask_inputs(device, small)

    def assembled() -> Tensor:
        from yolact_ros.kernels import masks

        return masks.assemble(coefficients, prototypes, cells)

    def plain(dtype: torch.dtype) -> Tensor:
        return crop(assemble(coefficients.to(dtype), prototypes.to(dtype)), cells)

    half = coefficients.dtype
    exact = partial(plain, torch.float32)
    return Case(partial(plain, half), assembled, exact, "assemble", half)


def _packing(device: torch.device, small: bool) -> Case:
    """For an image of 640 x 480. An error of 0.01: one byte of ten thousand differs by a bit."""
    size = (48, 64) if small else (480, 640)
    coefficients, prototypes, _, cells = _mask_inputs(device, small)
    values = crop(assemble(coefficients, prototypes), cells)[0]
    scale = torch.tensor((size[1], size[0]), dtype=torch.float32, device=device)
    extents = torch.cat((torch.zeros_like(scale), scale)).expand(len(values), 4)
    rectangles = pixel_rectangles(extents, cells[0], values, scale)
    ends = packed_sizes(rectangles).cumsum(0)

    def packed(pack: Callable[..., None]) -> Callable[[], Tensor]:
        out = torch.zeros(int(ends[-1]), dtype=torch.uint8, device=device)

        def call() -> Tensor:
            pack(values, extents, rectangles, ends, out)
            return out

        return call

    def kernel(*tensors: Tensor) -> None:
        from yolact_ros.kernels import masks

        masks.pack(*tensors)

    plain = packed(pack_plain)
    return Case(plain, packed(kernel), plain, "pack", values.dtype)


def _fast_nms(device: torch.device, small: bool) -> Case:
    """Of the anchors of an image of 550 pixels, some hundred of which pass the threshold."""
    count, classes, wanted = (60, 3, 20) if small else (19248, 80, 300)
    half = torch.float32 if device.type == "cpu" else torch.float16
    logits = torch.randn(1, count, classes + 1, device=device)
    logits[..., 0] += 12
    logits[:, :wanted, 0] -= 12
    predictions = Predictions(
        class_logits=logits.to(half),
        box_offsets=torch.randn(1, count, 4, device=device).to(half),
        coefficients=None,
        prototypes=None,
    )
    anchors = torch.rand(count, 4, device=device)
    settings = DetectionSettings(score_threshold=0.05)

    def of(find: Callable[..., Detections]) -> Tensor:
        found = find(predictions, anchors, settings, candidates=min(count, CANDIDATES))
        numbers = torch.cat((found.boxes, found.scores.unsqueeze(-1)), dim=-1)
        return numbers.masked_fill(~found.valid.unsqueeze(-1), 0)

    plain = partial(of, detect_plain)
    return Case(plain, partial(of, detect), plain, "fast_nms", half)


def layers(small: bool = False) -> dict[str, tuple[int, int, int]]:
    """Batch, side and channels of the deformable convolutions that are tried, by name."""
    shapes = {"small": (4, 16)} if small else DEFORMABLE
    batches = (1,) if small else (1, 16)
    return {
        f"{name}, batch {batch}": (batch, *shape)
        for (name, shape), batch in itertools.product(shapes.items(), batches)
    }


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
    refuse_capture(x)
    offsets, factors = learned[:, :18], learned[:, 18:].sigmoid()
    return deform_conv2d(x, offsets, weight, bias, padding=1, mask=factors)


def _kernel(*tensors: Tensor, tiles: Any = None) -> Tensor:
    from yolact_ros.kernels import deformable

    return deformable.deform_conv2d(*tensors, tiles=tiles)


def _deformable(device: torch.device, shape: tuple[int, int, int]) -> Case:
    tensors = _layer(device, *shape)
    exact = partial(_twin, *(tensor.float() for tensor in tensors))
    kernel, half = partial(_kernel, *tensors), tensors[0].dtype
    return Case(partial(_twin, *tensors), kernel, exact, "deform_conv2d", half)


def tile_sizes(small: bool = False) -> Sequence[str]:
    """Pixels, outputs and inputs of the tiles that are tried."""
    return ("16x16x16",) if small else ("32x64x64", "64x64x32", "64x128x32", "128x128x32")


@torch.no_grad()
def sweep_tiles(device: torch.device, shape: tuple[int, int, int], size: str) -> dict[str, float]:
    """Milliseconds of a deformable convolution by splits and warps, to choose tiles by."""
    from yolact_ros.kernels.deformable import Tiles

    pixels, outputs, inputs = map(int, size.split("x"))
    tensors, on_gpu = _layer(device, *shape), device.type == "cuda"
    copies = COPIES if on_gpu else 1
    found: dict[str, float] = {}
    problem: Exception | None = None
    for splits, warps in itertools.product((1, 3, 9), (4, 8) if on_gpu else (8,)):
        tiles = Tiles(pixels, outputs, inputs, splits, warps)
        try:
            call = as_graph(partial(_kernel, *tensors, tiles=tiles), device, copies)
            rounds, repeats = 10 if on_gpu else 1, repeats_on(device)
            times = measure(
                {"": call}, rounds=rounds, warm_up=1, repeats=repeats, seconds=0.5, device=device
            )
        except Exception as error:  # some do not fit every GPU, and must not cost the others
            problem = error
            continue
        found[f"{splits}x{warps}"] = times[""].median / copies
    if problem is not None and not found:
        raise problem
    return found
