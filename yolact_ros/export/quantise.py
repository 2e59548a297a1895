"""Networks in 8 bits for a CPU: quantisation after training, by NNCF."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from yolact_ros.engine import preprocess
from yolact_ros.engine.runtimes.tracing import INPUT
from yolact_ros.extras import missing
from yolact_ros.network import NetworkConfig
from yolact_ros.pictures import read_picture

if TYPE_CHECKING:
    import openvino

MAX_PICTURES = 300
"""More calibrate no better."""
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_DEPTH = 2  # so many convolutions from an input on stay in float


def import_nncf() -> Any:
    """The library. Raises MissingExtraError where it is missing."""
    try:
        import nncf
    except ModuleNotFoundError as error:
        raise missing(error, "int8", "int8") from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def quantise(
    model: openvino.Model, config: NetworkConfig, pictures: Sequence[Path]
) -> openvino.Model:
    """An OpenVINO model whose convolutions compute in 8 bits.

    Weights are rounded channel by channel, activations layer by layer, within the ranges that they
    have on `pictures`, 300 of them at most. What rounding harms most stays in float: the first two
    convolutions on each way from the image, the last on each way to an output, and all that comes
    after these, such as the detection stage.

    Raises ValueError for a file that is no picture, MissingExtraError where NNCF is missing.
    """
    nncf = import_nncf()

    def prepare(path: Path) -> dict[str, Any]:
        batch = preprocess([torch.from_numpy(read_picture(path))], config)
        return {INPUT: batch.contiguous().numpy()}

    count = min(len(pictures), MAX_PICTURES)
    chosen = [pictures[i * len(pictures) // count] for i in range(count)]
    quantised: openvino.Model = nncf.quantize(
        model,
        nncf.Dataset(chosen, prepare),
        preset=nncf.QuantizationPreset.MIXED,  # activations need not be symmetric
        subset_size=count,
        ignored_scope=nncf.IgnoredScope(names=sorted(_first(model) | _last(model))),
    )
    return quantised


def _first(model: openvino.Model) -> set[str]:
    """Names of the first `_DEPTH` convolutions on each way from an input."""
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
    """Names of the convolutions that no other follows on a way to an output, and of what follows.

    On other ways, to the scores of masks, there may be more convolutions.
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
