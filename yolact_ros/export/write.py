"""Writes an exported network, and keeps it only if it agrees with PyTorch."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from yolact_ros.engine import Image, Segmenter
from yolact_ros.engine.runtimes import EXPORTED, Header, compiled, onnx, openvino
from yolact_ros.engine.runtimes.files import pytorch_release
from yolact_ros.engine.runtimes.tracing import trace
from yolact_ros.export.check import FLOAT, HALF, INT8, ExportCheck, check
from yolact_ros.export.quantise import import_nncf, quantise
from yolact_ros.network import Yolact

PRECISIONS = ("float32", "float16", "bfloat16", "int8")
_PRECISIONS_OF = {
    ".onnx": ("float32",),
    ".xml": ("float32", "int8"),
    ".pt2": ("float32", "float16", "bfloat16"),
}


class ExportError(RuntimeError):
    """An exported network does not agree with the original; the message says where."""


def export(
    segmenter: Segmenter,
    path: Path,
    images: Mapping[str, Image],
    *,
    detection: bool = False,
    precision: str = "float32",
    calibration: Sequence[Path] = (),
    keep_anyway: bool = False,
) -> ExportCheck:
    """Write the network of `segmenter`, which runs on PyTorch, to `path`.

    The suffix of `path` determines the format: .onnx, .xml (OpenVINO, with a .bin next to it) or
    .pt2 (compiled PyTorch, for the segmenter's device; the other formats need a segmenter on the
    CPU). The file appears only when it is complete and finds on the BGR `images` [H, W, 3], by
    name, what the segmenter finds.

    Args:
        detection: Include the detection stage, with the segmenter's settings.
        precision: The segmenter's precision, which must be float32 except for a .pt2; or "int8" for
            an .xml. `check` has limits for each.
        calibration: Image files like those that the network will see, for "int8".
        keep_anyway: Keep the file even if its results differ; `problems` then says how.

    Raises:
        ExportError: The results of the exported network differ.
        ValueError: For an unknown suffix, or settings that are impossible in a graph.
        MissingExtraError: If something is not installed; the message says how to install it.
    """
    path = path.expanduser()
    _check_path(path, segmenter.device)
    if not images:
        raise ValueError("there is no image to check with")
    _check_precision(precision, path, calibration)
    net = _network_of(segmenter, path, precision)
    header = Header.of(net, segmenter.settings if detection else None)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        made = Path(folder) / path.name
        _write(net, header, made, calibration)
        exported = Segmenter(weights=made, device=str(segmenter.device))
        limits = {"float32": FLOAT, "int8": INT8}.get(precision, HALF)
        checked = check(exported, segmenter, images, limits)
        if checked.problems and not keep_anyway:
            raise ExportError(
                f"{path} was not written, since it does not find what PyTorch finds: "
                f"{'; '.join(checked.problems)}\n{checked.table()}"
            )
        for file in sorted(Path(folder).iterdir()):  # .bin before .xml
            file.replace(path.parent / file.name)
    return checked


def _check_path(path: Path, device: torch.device) -> None:
    """Raise ValueError for a bad suffix, no folder, or if PyTorch is too old for the format."""
    if path.suffix not in EXPORTED:
        raise ValueError(f"{path} is not allowed: its name must end in {', '.join(EXPORTED)}")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}")
    oldest = {".onnx": (2, 6), ".pt2": compiled.oldest_pytorch(device)}.get(path.suffix, (0, 0))
    if pytorch_release() < oldest:
        raise ValueError(
            f"{path} is not allowed with PyTorch {torch.__version__}: it takes "
            f"{oldest[0]}.{oldest[1]}"
        )


def _check_precision(precision: str, path: Path, calibration: Sequence[Path]) -> None:
    """Raise ValueError for an invalid combination, MissingExtraError if NNCF is missing."""
    if precision == "int8" and path.suffix != ".xml":
        raise ValueError(f"{path} is not allowed for int8: its name must end in .xml")
    allowed = _PRECISIONS_OF[path.suffix]
    if precision not in allowed:
        raise ValueError(
            f"precision={precision!r} is not allowed for a {path.suffix}: it must be "
            f"{' or '.join(map(repr, allowed))}"
        )
    if precision == "int8" and not calibration:
        raise ValueError("int8 needs images to calibrate with, like those that it will see")
    if precision != "int8" and calibration:
        raise ValueError(f"images to calibrate with are for int8, not for {precision}")
    if precision == "int8":
        import_nncf()  # before tracing, which takes a while


def _network_of(segmenter: Segmenter, path: Path, precision: str) -> Yolact:
    """Return the network. Raises ValueError if the segmenter does not fit the file."""
    net, computes = segmenter.runtime.run, segmenter.runtime.precision
    is_placed = segmenter.device.type == "cpu" or path.suffix == ".pt2"
    if not isinstance(net, Yolact) or not is_placed:
        raise ValueError(
            f"{segmenter.description} is not allowed: it must be PyTorch on the CPU, or for a .pt2 "
            "on any device"
        )
    if computes != ("float32" if precision == "int8" else precision):
        raise ValueError(f"precision={precision!r} is not allowed: the segmenter has {computes}")
    return net


def _write(net: Yolact, header: Header, path: Path, calibration: Sequence[Path]) -> None:
    program = trace(net, header)
    if path.suffix == ".onnx":
        onnx.to_program(program, header).save(path)
    elif path.suffix == ".xml":
        model = openvino.to_model(program, header)
        if calibration:
            model = quantise(model, header.config, calibration)
        openvino.save(model, path)
    else:
        compiled.save(program, header, path)
