"""Write an exported network, and keep it only if it does what PyTorch does."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from yolact_ros.engine import Segmenter
from yolact_ros.engine.runtimes import EXPORTED, Header, compiled, onnx, openvino
from yolact_ros.engine.runtimes.graph import trace
from yolact_ros.export.check import Checked, Image, check
from yolact_ros.network import Yolact


class ExportError(RuntimeError):
    """An exported network that does not do what the original does; the message says where."""


def export(
    segmenter: Segmenter, path: Path, pictures: Mapping[str, Image], *, detection: bool = False
) -> Checked:
    """Write the network of `segmenter`, which runs on PyTorch on the CPU, to `path`.

    The ending of `path` says for what: .onnx, .xml (OpenVINO, with a .bin beside it) or .pt2
    (compiled PyTorch). The file appears only when it is whole and finds on the BGR `pictures`
    [H, W, 3], by name, what the segmenter finds.

    Args:
        detection: Include the detection stage, with the segmenter's settings.

    Raises:
        ExportError: The exported network finds something else.
        ValueError: For another ending, or what a graph cannot have.
        MissingExtraError: Where something is not installed; the message says how to install it.
    """
    path = path.expanduser()
    if path.suffix not in EXPORTED:
        raise ValueError(f"{path} is not allowed: its name must end in {', '.join(EXPORTED)}")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}")
    if not pictures:
        raise ValueError("there is no picture to check with")
    net = segmenter.runtime.run
    if not isinstance(net, Yolact) or segmenter.device.type != "cpu":
        raise ValueError(f"{segmenter.description} is not allowed: it must be PyTorch on the CPU")
    header = Header.of(net, segmenter.settings if detection else None)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        made = Path(folder) / path.name
        _write(net, header, made)
        settings = segmenter.settings
        exported = Segmenter(
            weights=made,
            device="cpu",
            nms_method=settings.nms_method,
            nms_iou_threshold=settings.nms_iou_threshold,
        )
        checked = check(exported, segmenter, pictures)
        if checked.problems:
            raise ExportError(
                f"{path} was not written, since it does not find what PyTorch finds: "
                f"{'; '.join(checked.problems)}\n{checked.table()}"
            )
        for file in sorted(Path(folder).iterdir()):  # .bin before .xml
            file.replace(path.parent / file.name)
    return checked


def _write(net: Yolact, header: Header, path: Path) -> None:
    program = trace(net, header)
    if path.suffix == ".onnx":
        onnx.to_program(program, header).save(path)
    elif path.suffix == ".xml":
        openvino.save(openvino.to_model(program, header), path)
    else:
        compiled.save(program, header, path)
