"""ONNX graphs, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from yolact_ros.engine.runtimes.files import check_file, check_precision, unreadable
from yolact_ros.engine.runtimes.header import Header
from yolact_ros.engine.runtimes.runtime import Runtime, runtime_of_graph
from yolact_ros.engine.runtimes.shapes import check_inputs, check_outputs
from yolact_ros.engine.runtimes.tracing import INPUT
from yolact_ros.extras import missing
from yolact_ros.network import WeightsError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.onnx import ONNXProgram

OPSET = 19
"""The first opset with deformable convolution."""


def _library() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise missing(error, "export", "ONNX Runtime") from error
    return onnxruntime


def check(precision: str) -> None:
    """Raise ValueError for an unsupported precision, MissingExtraError without the library."""
    _library()
    check_precision(precision, ("float32",), "ONNX Runtime")


def to_program(program: ExportedProgram, header: Header) -> ONNXProgram:
    """Convert a graph to ONNX, with its header in the metadata."""
    try:
        result = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=list(header.outputs),
            dynamic_shapes=({0: "batch"},),  # gives the dimension its name
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    except ModuleNotFoundError as error:
        raise missing(error, "export", "ONNX export") from error
    assert result is not None
    result.model.metadata_props.update(header.to_metadata())
    return result


def read(path: Path, precision: str = "auto") -> Runtime:
    """Load an .onnx file of `yolact export`. Raises WeightsError, ValueError, MissingExtraError."""
    check(precision)
    check_file(path)
    return _run(str(path), path)


def run_program(program: ONNXProgram) -> Runtime:
    """Prepare a graph in memory, with its header, to run."""
    return _run(program.model_proto.SerializeToString(), "the graph in memory")


def _run(source: str | bytes, where: object) -> Runtime:
    library = _library()
    options = library.SessionOptions()
    # Spinning threads would take the cores from the detection stage.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = library.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # ONNX Runtime has many exception types of its own
        if "Could not find an implementation for DeformConv" in str(error):
            raise WeightsError(
                f"{where} has deformable convolutions: ONNX Runtime {library.__version__} "
                "cannot run them, 1.25 and newer can, from Python 3.11 on"
            ) from error
        raise unreadable(where, "ONNX model", error) from error
    header = Header.from_metadata(metadata, where)
    check_inputs(header, {each.name: each.shape for each in session.get_inputs()}, where)
    check_outputs(header, {each.name: each.shape for each in session.get_outputs()}, where)

    def run(images: Tensor) -> list[Tensor]:
        arrays = session.run(header.outputs, {INPUT: images.contiguous().numpy()})
        return [torch.from_numpy(array) for array in arrays]

    return runtime_of_graph("onnxruntime", header, run)
