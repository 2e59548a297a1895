"""8-bit networks for CPUs: post-training quantisation with NNCF."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from yolact_ros.engine import preprocess
from yolact_ros.engine.runtimes.tracing import INPUT
from yolact_ros.extras import missing
from yolact_ros.image_files import read_image
from yolact_ros.network import NetworkConfig

if TYPE_CHECKING:
    import openvino

MAX_IMAGES = 300
"""More images do not improve the calibration."""
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_DEPTH = 2  # number of convolutions after an input that stay in float


def import_nncf() -> Any:
    """Import NNCF. Raises MissingExtraError if it is missing."""
    try:
        import nncf
    except ModuleNotFoundError as error:
        raise missing(error, "int8", "int8") from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def quantise(
    model: openvino.Model, config: NetworkConfig, images: Sequence[Path]
) -> openvino.Model:
    """Quantise the convolutions of an OpenVINO model to 8 bits.

    Weights are quantised per channel, activations per tensor, within the ranges observed on at most
    300 of the `images`. The most sensitive parts stay in float: the first two convolutions on
    each path from the image, the last one on each path to an output, and everything after those,
    such as the detection stage.

    Raises ValueError for a file that is not an image, MissingExtraError if NNCF is missing.
    """
    nncf = import_nncf()

    def prepare(path: Path) -> dict[str, Any]:
        batch = preprocess([torch.from_numpy(read_image(path))], config)
        return {INPUT: batch.contiguous().numpy()}

    count = min(len(images), MAX_IMAGES)
    chosen = [images[i * len(images) // count] for i in range(count)]
    quantised: openvino.Model = nncf.quantize(
        model,
        nncf.Dataset(chosen, prepare),
        preset=nncf.QuantizationPreset.MIXED,  # activations need not be symmetric
        subset_size=count,
        ignored_scope=nncf.IgnoredScope(names=sorted(_first(model) | _last(model))),
    )
    return quantised


def _first(model: openvino.Model) -> set[str]:
    """Return the names of the first `_DEPTH` convolutions on each path from an input."""
    names = set()
    ahead = [(node.get_node(), _DEPTH) for node in model.inputs]
    while ahead:
        node, left = ahead.pop()
        if node.get_type_name() in _CONVOLUTIONS:
            names.add(node.get_friendly_name())
            left -= 1
        if left:
            ahead += [(each, left) for each in _after(node)]
    return names


def _last(model: openvino.Model) -> set[str]:
    """Return the names of the last convolutions on paths to outputs, and of all nodes after them.

    Other paths from there, such as to mask scores, may have more convolutions.
    """
    names, seen = set[str](), set[str]()
    ends, ahead = [], [output.get_node() for output in model.outputs]
    while ahead:
        node = ahead.pop()
        name = node.get_friendly_name()
        if name in seen:
            continue
        seen.add(name)
        if node.get_type_name() in _CONVOLUTIONS:
            ends.append(node)
        else:
            ahead += [each.get_source_output().get_node() for each in node.inputs()]
    while ends:
        node = ends.pop()
        name = node.get_friendly_name()
        if name not in names:
            names.add(name)
            ends += _after(node)
    return names


def _after(node: Any) -> list[Any]:
    targets = [each for output in node.outputs() for each in output.get_target_inputs()]
    return [each.get_node() for each in targets]
