"""Options that several subcommands share."""

from __future__ import annotations

import argparse
import typing

from yolact_ros.detection.settings import DetectionSettings, NmsMethod
from yolact_ros.engine import Segmenter
from yolact_ros.engine.runtimes import BACKENDS
from yolact_ros.network import CONFIGS


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add options for the network and for detection."""
    defaults = DetectionSettings()
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", default="", help=f"default: that of the weights; names: {', '.join(CONFIGS)}"
    )
    group.add_argument(
        "--weights",
        default="",
        help="a file or a published model's name; default: those of --model, or the person model",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--precision", default="auto", help="auto, float32, float16 or bfloat16")
    group.add_argument("--backend", default="auto", choices=BACKENDS, help="what runs the network")
    group.add_argument(
        "--nms",
        choices=typing.get_args(NmsMethod),
        help=f"default: what an exported file has built in, else {defaults.nms_method}",
    )
    group.add_argument(
        "--nms-iou",
        type=float,
        metavar="IOU",
        help=f"default: likewise, else {defaults.nms_iou_threshold}",
    )
    group.add_argument(
        "--top-k",
        type=int,
        help=f"maximum number of instances per image; default: likewise, else {defaults.top_k}",
    )


def make_segmenter(options: argparse.Namespace, score_threshold: float) -> Segmenter:
    """Make the segmenter for the options."""
    return Segmenter(
        options.model,
        options.weights,
        device=options.device,
        precision=options.precision,
        backend=options.backend,
        score_threshold=score_threshold,
        nms_method=options.nms,
        nms_iou_threshold=options.nms_iou,
        top_k=options.top_k,
    )
