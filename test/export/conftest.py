"""Small networks that find things in every image, and exports of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

from yolact_ros.engine import Segmenter
from yolact_ros.export import export
from yolact_ros.network import (
    EMBEDDED,
    NetworkConfig,
    build,
    load_weights,
    official_name,
    save_weights,
)

PLAIN = EMBEDDED.replace(
    name="small",
    class_names=("cat", "dog", "person"),
    image_size=96,
    fpn_channels=16,
    mask_rescoring=False,
)
PLUS = PLAIN.replace(
    name="plus",
    backbone="resnet50",
    image_size=256,
    dcn_variant="interval4",
    mask_rescoring=True,
)


class Segmenters:
    """On PyTorch, by the name of the network; made when they are wanted."""

    def __init__(
        self, folder: Path, reference_weights: ModuleType, shorten: Callable[[nn.ModuleList], None]
    ) -> None:
        self._folder, self._reference_weights, self._shorten = folder, reference_weights, shorten
        self._made: dict[str, Segmenter] = {}

    def __getitem__(self, name: str) -> Segmenter:
        if name not in self._made:
            config = {each.name: each for each in (PLAIN, PLUS)}[name]
            made = _segmenter(config, self._folder, self._reference_weights)
            if config is PLAIN:
                self._shorten(made.runtime.run.backbone.blocks)
            self._made[name] = made
        return self._made[name]


@pytest.fixture(scope="session")
def segmenters(
    tmp_path_factory: pytest.TempPathFactory,
    reference_weights: ModuleType,
    leave_repetitions_out: Callable[[nn.ModuleList], None],
) -> Segmenters:
    """The networks that are exported."""
    folder = tmp_path_factory.mktemp("networks")
    return Segmenters(folder, reference_weights, leave_repetitions_out)


def _segmenter(config: NetworkConfig, folder: Path, reference_weights: ModuleType) -> Segmenter:
    with torch.device("meta"):
        shapes = {official_name(n): tuple(t.shape) for n, t in build(config).state_dict().items()}
    net = build(config)
    values = {n: torch.from_numpy(reference_weights.fill(n, s)) for n, s in shapes.items()}
    load_weights(net, values)
    path = folder / f"{config.name}.safetensors"
    save_weights(net, path)
    options = {"device": "cpu", "backend": "torch", "score_threshold": 0.2, "top_k": 10}
    segmenter = Segmenter(weights=path, **options)
    return segmenter


@pytest.fixture(scope="session")
def images(reference_weights: ModuleType) -> dict[str, np.ndarray]:
    sizes = ((60, 90), (96, 96), (120, 80))
    return {str(s): reference_weights.image(*s, seed=i) for i, s in enumerate(sizes)}


Exported = Callable[[str, str, bool], Path]


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
    segmenters: Segmenters,
    images: dict[str, np.ndarray],
) -> Exported:
    """Exports a network once: (its name, ending of the file, detection stage inside)."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    folder /= "exported"
    folder.mkdir(exist_ok=True)

    def of(name: str, ending: str, detection: bool = False) -> Path:
        needed = {".onnx": ("onnxruntime", "onnxscript"), ".xml": ("openvino",), ".pt2": ()}
        for module in needed[ending]:
            pytest.importorskip(module)
        if (name, ending) == ("plus", ".onnx"):
            pytest.importorskip("onnxruntime", "1.25", "no deformable convolution before")
        path = folder / f"{name}{'-detection' if detection else ''}{ending}"
        whole = path.with_suffix(f"{ending}.whole")
        with FileLock(path.with_suffix(f"{ending}.lock")):
            if not whole.exists():
                export(segmenters[name], path, images, detection=detection)
                whole.touch()
        return path

    return of
