"""`yolact bench`."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from yolact_ros.benchmark.plot import plot
from yolact_ros.benchmark.report import to_markdown, write_json
from yolact_ros.benchmark.run import run as run_benchmark
from yolact_ros.benchmark.settings import Settings
from yolact_ros.engine import Image
from yolact_ros.engine.runtimes import BACKENDS
from yolact_ros.image_files import PHOTOS, read_image
from yolact_ros.network import CONFIGS, EMBEDDED

_PHOTOGRAPH = "riders.jpg"
_LARGEST_SIDE = 8192


def run(arguments: Sequence[str]) -> None:
    """Measure how fast models are, stage by stage and beside others."""
    options = _parser().parse_args(arguments)
    settings = Settings(
        models=tuple(options.model),
        image=_read_image(options.image, options.size),
        device=options.device,
        precision=options.precision,
        backends=tuple(options.backends),
        batches=tuple(options.batches),
        score_threshold=options.score,
        reference=options.reference,
        mask_rcnn=options.mask_rcnn,
        ultralytics=tuple(options.ultralytics),
        memory=not options.no_memory,
        node=not options.no_node,
        rounds=options.rounds,
        seconds=options.seconds,
        keep=options.output if options.keep_weights else None,
        clock=time.process_time if options.processor_time else time.perf_counter,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    report = run_benchmark(settings, shlex.join(["yolact", "bench", *arguments]), _say)
    table = to_markdown(report)
    print(table)
    (options.output / "benchmark.md").write_text(table + "\n")
    write_json(report, options.output / "benchmark.json")
    plot(report, options.output / "benchmark.png")
    _say(f"written to {options.output}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="yolact bench", description=run.__doc__)
    parser.add_argument(
        "model",
        nargs="*",
        default=[EMBEDDED.name],
        help=f"NAME, with random weights unless it is {EMBEDDED.name}; NAME=WEIGHTS; or a weight "
        f"file. Names: {', '.join(CONFIGS)}",
    )
    parser.add_argument("--output", type=Path, default=Path("benchmark"), help="folder to write")
    parser.add_argument("--image", type=Path, help="image to segment; default: a shipped one")
    parser.add_argument("--size", default="640x480", help="WIDTHxHEIGHT that it is resized to")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", help="auto, float32, float16 or bfloat16")
    parser.add_argument("--backends", nargs="+", default=["auto"], help=", ".join(BACKENDS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4], metavar="N")
    parser.add_argument("--score", type=float, default=0.0, help="minimum score of an instance")
    parser.add_argument("--rounds", type=int, default=20, help="how often each item is timed")
    parser.add_argument("--seconds", type=float, default=60, help="time limit for one comparison")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="measure CPU time, which other programs affect little; run it on one core "
        "(taskset -c 0), since threads that wait for each other use CPU time too",
    )
    parser.add_argument(
        "--keep-weights",
        action="store_true",
        help="keep random weights in the output folder, to export them; those already there are "
        "reused",
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--no-node", action="store_true", help="do not measure the ROS node")
    group = parser.add_argument_group("side by side")
    group.add_argument(
        "--reference", type=Path, metavar="FOLDER", help="checkout of github.com/dbolya/yolact"
    )
    group.add_argument(
        "--mask-rcnn", action="store_true", help="torchvision's, with standard and with Fast NMS"
    )
    group.add_argument(
        "--ultralytics", nargs="+", default=[], metavar="MODEL", help="for example yolo11n-seg"
    )
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _read_image(path: Path | None, size: str) -> Image:
    """Read an image and resize it to WIDTHxHEIGHT. Raises ValueError for a bad image or size."""
    try:
        width, height = map(int, size.split("x"))
        if not 1 <= min(width, height) <= max(width, height) <= _LARGEST_SIDE:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"--size {size!r} is not allowed: it must be like 640x480, each 1 to {_LARGEST_SIDE}"
        ) from None
    image = read_image(path or PHOTOS / _PHOTOGRAPH)
    return np.asarray(cv2.resize(image, (width, height)), np.uint8)
