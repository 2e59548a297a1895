"""Checks that a graph matches its header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from yolact_ros.engine.runtimes.header import Header
from yolact_ros.engine.runtimes.tracing import INPUT
from yolact_ros.network import WeightsError
from yolact_ros.network.anchors import feature_sizes

Shape = Sequence[object]
"""A dimension that is not an int may have any length, such as the batch."""


def check_inputs(header: Header, inputs: Mapping[str, Shape], where: object) -> None:
    """Raise WeightsError unless the graph in the file `where` takes the images of its header."""
    side = header.config.image_size
    _check(inputs, {INPUT: (None, 3, side, side)}, "inputs", where)


def check_outputs(header: Header, outputs: Mapping[str, Shape], where: object) -> None:
    """Raise WeightsError unless the graph in the file `where` has the outputs of its header."""
    config = header.config
    cells = sum(side**2 for side in feature_sizes(config.image_size))
    # With the detection stage in the graph there are at most `top_k` rows.
    rows = cells * config.anchors_per_cell if header.settings is None else None
    shapes: dict[str, Shape] = {
        "class_logits": (None, rows, config.num_classes + 1),
        "box_offsets": (None, rows, 4),
        "boxes": (None, rows, 4),
        "scores": (None, rows),
        "class_ids": (None, rows),
        "counts": (None,),
        "coefficients": (None, rows, config.num_coefficients),
        "prototypes": (None, config.num_prototypes, None, None),
        "mask_scores": (None, rows),
    }
    _check(outputs, {name: shapes[name] for name in header.outputs}, "outputs", where)


def _check(
    found: Mapping[str, Shape], expected: Mapping[str, Shape], what: str, where: object
) -> None:
    said = "as its metadata says"
    if list(found) != list(expected):
        raise WeightsError(
            f"{where} has the {what} {', '.join(found)}; they must be {', '.join(expected)}, {said}"
        )
    for name, shape in found.items():
        wanted = expected[name]
        if len(shape) != len(wanted) or not all(map(_fits, shape, wanted)):
            raise WeightsError(
                f"{where} has {name} of the shape {_text(shape)}; it must be {_text(wanted)}, "
                f"{said}"
            )


def _fits(length: object, wanted: object) -> bool:
    return length == wanted or not (isinstance(length, int) and isinstance(wanted, int))


def _text(shape: Shape) -> str:
    return f"[{', '.join(str(each) if isinstance(each, int) else 'any' for each in shape)}]"
