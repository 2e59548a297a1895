"""Backends that run the network: PyTorch (eager or compiled), OpenVINO and ONNX Runtime.

| backend | module | exported file |
|---|---|---|
| `torch` | `pytorch` | |
| `inductor` | `inductor` | |
| `openvino` | `openvino` | `.xml`, with `.bin` beside it |
| `onnxruntime` | `onnx` | `.onnx` |
| `compiled` | `compiled` | `.pt2` |
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from yolact_ros.engine.device import choose_device, choose_precision
from yolact_ros.engine.runtimes.header import Detected, Header
from yolact_ros.engine.runtimes.runtime import Runtime
from yolact_ros.network import Yolact

BACKENDS = ("auto", "torch", "inductor", "openvino", "onnxruntime")
"""Backends for ordinary weights. OpenVINO and ONNX Runtime are extras, for CPUs; Inductor, which is
part of PyTorch, needs a C++ compiler."""

EXPORTED = {".onnx": "onnxruntime", ".xml": "openvino", ".pt2": "compiled"}
"""The backend that runs an exported file, by its suffix."""


def choose(
    backend: str, device: str, precision: str = "auto", backbone: str = ""
) -> tuple[str, torch.device]:
    """Return the backend for ordinary weights, one of `BACKENDS` except "auto", and the device.

    "auto" is the fastest by measurement (docs/performance.md): PyTorch, except that a CPU with
    OpenVINO installed uses it for efficientnet_lite0, and for bfloat16 if the processor supports
    it.

    Raises ValueError for an invalid value or combination, and MissingExtraError, saying what to
    install, if OpenVINO or ONNX Runtime is missing.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not allowed: one of {', '.join(BACKENDS)}")
    needs_cpu = backend in ("openvino", "onnxruntime")
    where = choose_device("cpu" if needs_cpu and device == "auto" else device)
    if needs_cpu and where.type != "cpu":
        raise ValueError(f"backend={backend!r} is not allowed on {where}: it runs on a CPU")
    if backend == "auto":
        backend = "openvino" if _openvino_gains(where, precision, backbone) else "torch"
    _check_precision(precision, backend, where)
    return backend, where


def _openvino_gains(device: torch.device, precision: str, backbone: str) -> bool:
    # For the other backbones Winograd convolutions make PyTorch faster in float32, except on
    # processors with AVX-512, where OpenVINO takes 8 to 9 % less time.
    if device.type != "cpu" or (backbone != "efficientnet_lite0" and precision != "bfloat16"):
        return False
    if importlib.util.find_spec("openvino") is None:
        return False
    try:
        _check_precision(precision, "openvino", device)
    except (ValueError, ImportError):  # ImportError: what OpenVINO needs is missing
        return False
    return True


def _check_precision(precision: str, backend: str, device: torch.device) -> None:
    from yolact_ros.engine.runtimes import onnx, openvino

    if backend in ("torch", "inductor"):
        choose_precision(precision, device)
    else:
        (openvino if backend == "openvino" else onnx).check(precision)


def run(net: Yolact, backend: str, device: torch.device, precision: str = "auto") -> Runtime:
    """Prepare a network, in evaluation mode, to run on a backend returned by `choose`.

    All backends except PyTorch trace it to a graph first, which takes some seconds. Raises
    MissingExtraError, saying what to install, if the backend or one of its dependencies is missing.
    """
    from yolact_ros.engine.runtimes import inductor, onnx, openvino, pytorch
    from yolact_ros.engine.runtimes.tracing import trace

    if backend in ("torch", "inductor"):
        runtime = pytorch.run_network(net, device, choose_precision(precision, device))
        return runtime if backend == "torch" else inductor.compile_network(runtime)
    header = Header.of(net)
    if backend == "openvino":
        return openvino.run_model(openvino.to_model(trace(net, header), header), header, precision)
    return onnx.run_program(onnx.to_program(trace(net, header), header))


def read(path: Path, precision: str = "auto", device: str = "auto") -> Runtime:
    """Load an exported file, whose suffix is one of `EXPORTED`.

    Raises WeightsError for a file that cannot be used, ValueError for a precision or device that it
    does not support, and MissingExtraError, saying what to install, if its runtime is missing.
    """
    from yolact_ros.engine.runtimes import compiled, onnx, openvino

    if path.suffix == ".pt2":
        return compiled.read(path, precision, device)
    if device not in ("auto", "cpu"):
        raise ValueError(f"device={device!r} is not allowed: {path.name} runs on a CPU")
    return (onnx if path.suffix == ".onnx" else openvino).read(path, precision)


__all__ = [
    "BACKENDS",
    "EXPORTED",
    "Detected",
    "Header",
    "Runtime",
    "choose",
    "read",
    "run",
]
