"""How much a lower precision changes the results of a network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from yolact_ros.benchmark.agreement import Agreement, compare
from yolact_ros.benchmark.contender import Found
from yolact_ros.detection import DetectionSettings
from yolact_ros.engine.fixed import Batch, FixedPath
from yolact_ros.engine.runtimes.pytorch import run_network
from yolact_ros.engine.runtimes.runtime import Runtime
from yolact_ros.network import Yolact


def compare_precisions(
    net: Yolact,
    images: Sequence[Tensor],
    settings: DetectionSettings,
    dtype: torch.dtype,
    device: torch.device,
) -> Agreement:
    """Compare what `net` finds in float32 and in `dtype`, on the fixed-shape path.

    `images` are uint8 [H, W, 3], BGR. TensorFloat-32 is off in float32. On a CPU, tensor cores are
    simulated, see `rounded`.

    Raises RuntimeError if more anchors exceed the score threshold than that path considers.
    """
    batch = Batch.of(images, settings)
    on_device = [image.to(device) for image in images]
    on_cpu = device.type == "cpu"
    full = run_network(net, device, torch.float32, fast=not on_cpu)
    reduced = rounded(full, dtype) if on_cpu else run_network(net, device, dtype)
    found: list[list[Found]] = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for runtime in (full, reduced):
            # Room for all masks, each as large as the image.
            path = FixedPath(runtime, batch.plan, batch.mask_bytes(settings.top_k))
            path.prepare(on_device, batch.numbers())
            path.run()
            results = path.results.to("cpu")
            if not results.is_complete():
                raise RuntimeError("more anchors exceed the score threshold than are considered")
            instances = results.instances(batch.image_sizes, net.config.class_names)
            found.append([Found.of(each) for each in instances])
    return Agreement.over([compare(*pair) for pair in zip(*found, strict=True)])


def rounded(runtime: Runtime, dtype: torch.dtype) -> Runtime:
    """Return a float32 runtime (not `fast`) with all weights and operator results rounded to
    `dtype`.

    As on tensor cores, accumulation is in float32 and stored values are not.
    """
    mask_iou = None if runtime.mask_iou is None else _Rounded(runtime.mask_iou, dtype)
    return replace(
        runtime,
        name=f"{runtime.name}, {dtype} simulated",
        run=_Rounded(runtime.run, dtype),
        header=replace(runtime.header, mask_iou=mask_iou),  # type: ignore[arg-type]
    )


class _Rounded(nn.Module):
    def __init__(self, function: Callable[..., Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.function = copy.deepcopy(function)
        self.dtype = dtype
        for parameter in self.parameters():
            parameter.copy_(parameter.to(dtype))

    def forward(self, x: Tensor) -> Any:
        # With gradients enabled (nothing needs any), deformable convolution is a single operator:
        # in our kernel for CUDA, too, positions and sums are float32.
        with _RoundResults(self.dtype), torch.enable_grad():
            return self.function(x.to(self.dtype).float())


class _RoundResults(TorchDispatchMode):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            result.copy_(result.to(self.dtype))  # in place: it may be a view, or an argument
        return result


def is_harmless(agreement: Agreement) -> bool:
    """Whether 95 % of instances are matched, with a mean mask IoU of at least 0.99.

    Unmatched instances come from close decisions: a score next to a threshold or a rank, or which
    of two boxes suppresses the other.
    """
    enough = agreement.matched >= 0.95 * agreement.instances > 0
    return enough and agreement.mean_mask_iou >= 0.99
