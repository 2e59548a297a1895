"""The published implementation, from a checkout of github.com/dbolya/yolact, as it is.

Its code asks for CUDA when imported, for a compiled deformable convolution and for pycocotools. It
is given the convolution of torchvision and stand-ins for what it imports but does not use here:
pycocotools and, where there is no CUDA, the few calls that need it.
Its files stay as they are.
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
    """What the published code imports as `dcn_v2.DCN`: the same parameters, nothing to compile."""

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
    """What `published` calls; what it finds stays on the device.

    Every call of this function imports the code anew, since its settings are global: several
    models live side by side. Images are segmented as its `eval.py` does with videos, down to masks
    of the size of the image. `score` is the least score of an instance.

    Raises:
        ValueError: For a model that it does not have.
        FileNotFoundError: If the folder is no checkout.
    """
    name = net.config.name
    if name not in PUBLISHED:
        raise ValueError(f"the published implementation has no model {name!r}")
    check_checkout(checkout)
    with _imports(checkout), _without_cuda(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for it is of 2020
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
        if masks.is_cuda:  # a quarter of the bytes to copy; on a CPU they are not copied
            masks = masks.bool()
        return Found(boxes.reshape(-1, 4), scores, ids, masks.reshape(-1, height, width))

    return segment


def _make_anchors(theirs: nn.Module, cfg: Any) -> None:
    """Let the code make its anchors now, on the CPU; those that lie elsewhere it moves itself.

    It makes them with `torch.Tensor(values, device=...)`, which PyTorch refuses for a device that
    is not that of the default tensor type. Its scripts change that type for all of the process.
    """
    cfg._tmp_img_w = cfg._tmp_img_h = cfg.max_size
    for layer, side in zip(theirs.prediction_layers, feature_sizes(cfg.max_size), strict=True):  # type: ignore[arg-type]
        layer.make_priors(side, side, torch.device("cpu"))


@contextlib.contextmanager
def _fusion_may_fail() -> Iterator[None]:
    """Within, what TorchScript cannot fuse into kernels of its own runs without that."""
    compiler: Any = torch._C
    before = compiler._jit_texpr_fallback_allowed()
    compiler._jit_texpr_set_fallback_allowed(True)
    try:
        yield
    finally:
        compiler._jit_texpr_set_fallback_allowed(before)


def check_checkout(folder: Path) -> None:
    """Raise FileNotFoundError if a folder is no checkout of the published implementation."""
    if not (folder / "yolact.py").is_file():
        raise FileNotFoundError(f"{folder} is no checkout of dbolya/yolact: it has no yolact.py")


@contextlib.contextmanager
def _imports(checkout: Path) -> Iterator[None]:
    """Within, the checkout's modules can be imported; before and after, their names are free."""
    dcn = ModuleType("dcn_v2")
    dcn.DCN = _DeformableConv  # type: ignore[attr-defined]
    coco = ModuleType("pycocotools")  # whose masks it imports, and uses in training alone
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
    """Where the device is not CUDA: what the code asks of CUDA while it is set up does nothing."""
    if device.type == "cuda":
        yield
        return
    stay: Callable[[Any], Any] = lambda tensor: tensor  # noqa: E731
    with (
        mock.patch.object(torch.cuda, "current_device", lambda: 0),
        mock.patch.object(Tensor, "cuda", stay),
    ):
        yield
