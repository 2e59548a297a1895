"""OpenVINO, which compiles a graph for the processor in a fraction of a second."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from yolact_ros.engine.runtimes.files import check_file, check_precision, unreadable
from yolact_ros.engine.runtimes.header import Header
from yolact_ros.engine.runtimes.runtime import Runtime, runtime_of_graph
from yolact_ros.engine.runtimes.shapes import Shape, check_inputs, check_outputs
from yolact_ros.engine.runtimes.tracing import INPUT
from yolact_ros.extras import missing
from yolact_ros.files import sha256_of
from yolact_ros.network import WeightsError

if TYPE_CHECKING:
    import openvino
    from torch.export import ExportedProgram

_KEY = "yolact_ros"  # of the header in a model's rt_info
_WEIGHTS = "weights_sha256"  # next to the header

# OpenVINO and NNCF send usage reports over the network, but work without this module.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def _library() -> Any:
    try:
        import openvino
        import packaging.version  # noqa: F401  # an undeclared dependency of OpenVINO
    except ModuleNotFoundError as error:
        raise missing(error, "openvino", "OpenVINO") from error
    return openvino


def to_model(program: ExportedProgram, header: Header) -> openvino.Model:
    """Convert a graph to an OpenVINO model, with its header inside."""
    model = _library().convert_model(program)
    model.inputs[0].set_names({INPUT})
    side = header.config.image_size
    model.reshape({INPUT: [-1, 3, side, side]})  # otherwise it would seem to accept any image size
    for output, name in zip(model.outputs, header.outputs, strict=True):
        output.set_names({name})
    for key, value in header.to_metadata().items():
        model.set_rt_info(value, [_KEY, key])
    return model


def save(model: openvino.Model, path: Path) -> None:
    """Write `path` (.xml) and its weights, unconverted, to a .bin next to it.

    The .xml holds the checksum of the .bin, to detect files from different exports.
    """
    write = _library().save_model
    write(model, path, compress_to_fp16=False)
    model.set_rt_info(sha256_of(path.with_suffix(".bin")), [_KEY, _WEIGHTS])
    write(model, path, compress_to_fp16=False)


def read(path: Path, precision: str = "auto") -> Runtime:
    """Load a model written by `save`. Raises WeightsError, ValueError or MissingExtraError."""
    library = _library()
    check_file(path)
    weights = path.with_suffix(".bin")
    check_file(weights)
    try:
        model = library.Core().read_model(path)
        values = model.get_rt_info([_KEY]).value if model.has_rt_info([_KEY]) else {}
        metadata = {key: str(value) for key, value in values.items()}
    except (RuntimeError, KeyError, AttributeError) as error:
        raise unreadable(path, "OpenVINO model", error) from error
    if metadata.get(_WEIGHTS) not in (None, sha256_of(weights)):  # None: an older export
        raise WeightsError(f"{weights} is of another export than {path}")
    return run_model(model, Header.from_metadata(metadata, path), precision, path)


def check(precision: str) -> None:
    """Raise ValueError for a precision that this processor does not support.

    Raises MissingExtraError without the library.
    """
    capabilities = _library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    half = ("bfloat16",) if "BF16" in capabilities else ()
    check_precision(precision, ("float32", *half), "OpenVINO")


def run_model(
    model: openvino.Model,
    header: Header,
    precision: str = "auto",
    where: object = "the graph in memory",
) -> Runtime:
    """Prepare a model to run on this processor; it is compiled on the first call.

    Raises ValueError for a precision that this processor does not support, and WeightsError, naming
    the file `where`, for a model that does not match its header.
    """
    check(precision)
    single = _for_one_image(model, header, where)
    core = _library().Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        # The default would be the processor's fastest precision, at the cost of accuracy.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
    }
    requests: dict[bool, Any] = {}

    def run(images: Tensor) -> list[Tensor]:
        # A graph of fixed shape is 10 % faster, so single images have their own.
        is_single = len(images) == 1
        if is_single not in requests:
            compiled = core.compile_model(single if is_single else model, "CPU", options)
            requests[is_single] = compiled.create_infer_request()
        array = images.float().contiguous().numpy()
        results = requests[is_single].infer([array], share_inputs=True)
        return [torch.from_numpy(results[i]) for i in range(len(header.outputs))]

    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    is_quantised = any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
    return runtime_of_graph("openvino", header, run, dtype, is_quantised)


def _for_one_image(model: openvino.Model, header: Header, where: object) -> openvino.Model:
    """Return the model for batch size 1. Raises WeightsError if it does not match its header."""
    check_inputs(header, _shapes(model.inputs), where)
    single, side = model.clone(), header.config.image_size
    try:
        single.reshape({INPUT: [1, 3, side, side]})
    except RuntimeError as error:
        raise WeightsError(
            f"{where} takes no images of {side} x {side} pixels; it must, as its metadata says"
        ) from error
    check_outputs(header, _shapes(single.outputs), where)
    return single


def _shapes(ports: Sequence[Any]) -> dict[str, Shape]:
    """Return the shapes of inputs or outputs by name; None for dynamic dimensions."""
    return {
        " ".join(port.get_names()): [
            each.get_length() if each.is_static else None for each in port.partial_shape
        ]
        for port in ports
    }
