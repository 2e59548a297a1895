"""Small networks that find things in every picture, and exports of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
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


@pytest.fixture(scope="session")
def segmenters(
    tmp_path_factory: pytest.TempPathFactory, reference_weights: ModuleType
) -> dict[str, Segmenter]:
    """On PyTorch, by the name of the network."""
    return {
        config.name: _segmenter(config, tmp_path_factory.mktemp(config.name), reference_weights)
        for config in (PLAIN, PLUS)
    }


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
    if config is PLAIN:  # most of the time goes into compiling and converting layers
        _leave_repetitions_out(segmenter.runtime.run.backbone.blocks)
    return segmenter


def _leave_repetitions_out(blocks: nn.ModuleList) -> None:
    """All but the first of the blocks that have a shortcut, and so as many channels as before."""
    repeated = [i for i, block in enumerate(blocks) if block.shortcut]
    for i in repeated[1:]:
        blocks[i] = nn.Identity().eval()


@pytest.fixture(scope="session")
def pictures(reference_weights: ModuleType) -> dict[str, np.ndarray]:
    sizes = ((60, 90), (96, 96), (120, 80))
    return {str(s): reference_weights.image(*s, seed=i) for i, s in enumerate(sizes)}


Exported = Callable[[str, str, bool], Path]


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
    segmenters: dict[str, Segmenter],
    pictures: dict[str, np.ndarray],
) -> Exported:
    """Exports a network once: (its name, ending of the file, detection stage inside)."""
    made: dict[tuple[str, str, bool], Path] = {}
    folder = tmp_path_factory.mktemp("exported")

    def of(name: str, ending: str, detection: bool = False) -> Path:
        needed = {".onnx": ("onnxruntime", "onnxscript"), ".xml": ("openvino",), ".pt2": ()}
        for module in needed[ending]:
            pytest.importorskip(module)
        if (name, ending) == ("plus", ".onnx"):
            pytest.importorskip("onnxruntime", "1.25", "no deformable convolution before")
        key = (name, ending, detection)
        if key not in made:
            path = folder / f"{name}{'-detection' if detection else ''}{ending}"
            export(segmenters[name], path, pictures, detection=detection)
            made[key] = path
        return made[key]

    return of
