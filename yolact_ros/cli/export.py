"""`yolact export`."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from yolact_ros.cli.files import find_images, short_names
from yolact_ros.detection.settings import DetectionSettings, NmsMethod
from yolact_ros.engine import Image, Segmenter
from yolact_ros.export import PRECISIONS, export
from yolact_ros.export.check import INT8
from yolact_ros.image_files import PHOTOS, read_image
from yolact_ros.network import CONFIGS


def run(arguments: Sequence[str]) -> None:
    """Write a network for another runtime, and check that it finds what PyTorch finds.

    FILE ends in .onnx, .xml (OpenVINO) or .pt2 (PyTorch, compiled for this kind of processor, or
    with --device cuda for this kind of GPU).
    Give it as the weights of any other command, of the node or of a Segmenter.
    """
    options = _parser().parse_args(arguments)
    inside = {"--nms": options.nms, "--nms-iou": options.nms_iou, "--top-k": options.top_k}
    for name, value in inside.items():
        if value is not None and not options.detection:
            raise ValueError(f"{name} {value} is not allowed without --detection")
    segmenter = Segmenter(
        options.model,
        options.weights,
        device=options.device,
        precision="float32" if options.precision == "int8" else options.precision,
        backend="torch",
        nms_method=options.nms,
        nms_iou_threshold=options.nms_iou,
        top_k=options.top_k,
    )
    print(segmenter.description)
    checked = export(
        segmenter,
        options.file,
        _Images(options.images or [PHOTOS]),
        detection=options.detection,
        precision=options.precision,
        calibration=[file for path in options.calibrate for file in find_images(path)],
        keep_anyway=options.keep_anyway,
    )
    print(f"{checked.table()}\n{checked.summary()}")
    if checked.problems:
        print(f"{options.file} is kept, but: {'; '.join(checked.problems)}")
    else:
        print(f"{options.file} finds what PyTorch finds")


def _parser() -> argparse.ArgumentParser:
    defaults = DetectionSettings()
    parser = argparse.ArgumentParser(prog="yolact export", description=run.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--weights", default="", help="a file or a published model's name")
    parser.add_argument(
        "--model", default="", help=f"default: that of the weights; names: {', '.join(CONFIGS)}"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        type=Path,
        help="images to check with; default: the package's photographs",
    )
    parser.add_argument(
        "--keep-anyway",
        action="store_true",
        help="keep a file whose results differ, for example to time random weights",
    )
    parser.add_argument("--device", default="cpu", help="that a .pt2 is for: cpu or cuda")
    group = parser.add_argument_group("precision")
    group.add_argument(
        "--precision",
        default="float32",
        choices=PRECISIONS,
        help=f"float16, bfloat16: in a .pt2; int8: convolutions in 8 bits, in an .xml; kept if "
        f"at least {INT8.matched:.0%}% of the instances that score {INT8.confident} or more are "
        f"found and their masks' mean IoU is at least {INT8.mask_iou}",
    )
    group.add_argument(
        "--calibrate",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="images or folders for int8, of what the network will see; 100 to 300 are best",
    )
    group = parser.add_argument_group("detection stage")
    group.add_argument(
        "--detection", action="store_true", help="include it, for use from other languages"
    )
    methods = [name for name in typing.get_args(NmsMethod) if name != "standard"]
    group.add_argument("--nms", choices=methods, help=f"default: {defaults.nms_method}")
    group.add_argument(
        "--nms-iou", type=float, metavar="IOU", help=f"default: {defaults.nms_iou_threshold}"
    )
    group.add_argument(
        "--top-k", type=int, metavar="K", help=f"most per image; default: {defaults.top_k}"
    )
    return parser


class _Images(Mapping[str, Image]):
    """Images by their files' short names, read lazily: together they may not fit into memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raise ValueError for an unreadable image before anything is exported."""
        found = [file for path in paths for file in find_images(path)]
        self._files = dict(zip(short_names(found), found, strict=True))
        for name in self:
            self[name]

    def __getitem__(self, name: str) -> Image:
        return read_image(self._files[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
