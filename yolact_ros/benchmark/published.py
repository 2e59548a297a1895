"""The published implementation, from an unmodified checkout of github.com/dbolya/yolact.

On import, its code requires CUDA, a compiled deformable convolution and pycocotools. It gets
torchvision's convolution, and stubs for what it imports but does not use here: pycocotools and,
without CUDA, the few calls that need it.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from yolact_ros.benchmark.contender import Contender, Found
from yolact_ros.engine import Image
from yolact_ros.engine.device import cudnn_benchmark
from yolact_ros.network import PUBLISHED, Yolact, official_name
from yolact_ros.network.anchors import feature_sizes

_MODULES = ("backbone", "data", "dcn_v2", "layers", "pycocotools", "utils", "yolact")


class _DeformableConv(nn.Module):
    """Replaces `dcn_v2.DCN` in the published code: the same parameters, nothing to compile."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, **options: int) -> None:
        super().__init__()
        self.stride, self.padding = options["stride"], options["padding"]
        self.dilation = options["dilation"]
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_uniform_(self.weight, math.sqrt(5))
        self.conv_offset_mask = nn.Conv2d(
            inputs, 3 * kernel_size**2, kernel_size, self.stride, self.padding
        )

    def forward(self, x: Tensor) -> Tensor:
        rows, columns, factors = self.conv_offset_mask(x).chunk(3, dim=1)
        offsets, factors = torch.cat((rows, columns), dim=1), factors.sigmoid()
        options = (self.stride, self.padding, self.dilation)
        return deform_conv2d(x, offsets, self.weight, self.bias, *options, mask=factors)


def published(checkout: Path, net: Yolact, device: torch.device, score: float) -> Contender:
    """The published implementation of the model of `net`, with the weights of `net`.

    Raises as `load` does.
    """
    segment, name = load(checkout, net, device, score), f"published {net.config.name}"
    return Contender(name, lambda image: segment(image).cpu(), "the same weights")


def load(
    checkout: Path, net: Yolact, device: torch.device, score: float
) -> Callable[[Image], Found]:
    """Load the published implementation; its results stay on the device.

    Each call imports the code again, since its settings are global, so that several models can
    coexist. Images are segmented as in its `eval.py` for videos, up to masks of the image's size.
    `score` is the minimum score of an instance.

    Raises:
        ValueError: For a model that it does not have.
        FileNotFoundError: If the folder is not a checkout.
    """
    name = net.config.name
    if name not in PUBLISHED:
        raise ValueError(f"the published implementation has no model {name!r}")
    check_checkout(checkout)
    with _imports(checkout), _without_cuda(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the code dates from 2020
        config, code = importlib.import_module("data.config"), importlib.import_module("yolact")
        output = importlib.import_module("layers.output_utils")
        config.set_cfg(f"{name}_config")
        config.cfg.mask_proto_debug = False  # as `eval.py` does
        theirs = code.Yolact()
        transform = importlib.import_module("utils.augmentations").FastBaseTransform()
    state = {official_name(key): value for key, value in net.state_dict().items()}
    theirs.load_state_dict(state)
    _make_anchors(theirs, config.cfg)
    theirs.to(device).eval()  # which returns nothing
    theirs.detect.use_fast_nms = True

    @torch.no_grad()
    def segment(image: Image) -> Found:
        height, width = image.shape[:2]
        with cudnn_benchmark(), _fusion_may_fail():
            batch = transform(torch.from_numpy(image).to(device).float().unsqueeze(0))
            ids, scores, boxes, masks = output.postprocess(
                theirs(batch), width, height, score_threshold=score
            )
        if isinstance(scores, list):  # of boxes and of masks
            scores = scores[0]
        if masks.is_cuda:  # a quarter of the bytes to copy; nothing is copied on a CPU
            masks = masks.bool()
        return Found(boxes.reshape(-1, 4), scores, ids, masks.reshape(-1, height, width))

    return segment


def _make_anchors(theirs: nn.Module, cfg: Any) -> None:
    """Let the code create its anchors now, on the CPU; it moves them to the right device itself.

    It uses `torch.Tensor(values, device=...)`, which PyTorch rejects for a device other than that
    of the default tensor type. Its scripts change that type for the whole process.
    """
    cfg._tmp_img_w = cfg._tmp_img_h = cfg.max_size
    for layer, side in zip(theirs.prediction_layers, feature_sizes(cfg.max_size), strict=True):  # type: ignore[arg-type]
        layer.make_priors(side, side, torch.device("cpu"))


@contextlib.contextmanager
def _fusion_may_fail() -> Iterator[None]:
    """Let TorchScript run without fusion what it fails to fuse."""
    compiler: Any = torch._C
    before = compiler._jit_texpr_fallback_allowed()
    compiler._jit_texpr_set_fallback_allowed(True)
    try:
        yield
    finally:
        compiler._jit_texpr_set_fallback_allowed(before)


def check_checkout(folder: Path) -> None:
    """Raise FileNotFoundError unless a folder is a checkout of the published implementation."""
    if not (folder / "yolact.py").is_file():
        raise FileNotFoundError(f"{folder} is no checkout of dbolya/yolact: it has no yolact.py")


@contextlib.contextmanager
def _imports(checkout: Path) -> Iterator[None]:
    """Make the checkout's modules importable, and remove them from `sys.modules` afterwards."""
    dcn = ModuleType("dcn_v2")
    dcn.DCN = _DeformableConv  # type: ignore[attr-defined]
    coco = ModuleType("pycocotools")  # whose mask module is imported, but used only in training
    coco.mask = ModuleType("pycocotools.mask")  # type: ignore[attr-defined]
    with mock.patch.object(sys, "path", [str(checkout), *sys.path]):
        before = _take_modules()
        sys.modules |= {"dcn_v2": dcn, "pycocotools": coco}
        try:
            yield
        finally:
            _take_modules()
            sys.modules.update(before)


def _take_modules() -> dict[str, ModuleType]:
    """Remove the modules whose names the checkout uses from `sys.modules`; return them."""
    names = [name for name in sys.modules if name.partition(".")[0] in _MODULES]
    return {name: sys.modules.pop(name) for name in names}


@contextlib.contextmanager
def _without_cuda(device: torch.device) -> Iterator[None]:
    """If the device is not CUDA, stub the CUDA calls that the code makes during set-up."""
    if device.type == "cuda":
        yield
        return
    stay: Callable[[Any], Any] = lambda tensor: tensor  # noqa: E731
    with (
        mock.patch.object(torch.cuda, "current_device", lambda: 0),
        mock.patch.object(Tensor, "cuda", stay),
    ):
        yield
