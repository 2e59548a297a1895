"""The executable `yolact_measure`: what the node costs, alone, over time, with several cameras."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclpy.executors import ExternalShutdownException

from yolact_ros.extras import check_installed, how_to_install
from yolact_ros.masks import ENCODINGS as MASK_ENCODINGS
from yolact_ros.node.measure import camera
from yolact_ros.openmp import wait_briefly

PLOTS = (".png", ".jpg", ".pdf", ".svg")
"""Endings of the files that plots are written to."""

if TYPE_CHECKING:  # each command imports its own module, and PyTorch with it
    from yolact_ros.node.measure import scaling, soak
    from yolact_ros.node.statistics import Latency


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 1 if something could not be measured or exceeds a limit."""
    wait_briefly()  # as the node does
    options = _parser().parse_args(arguments)
    width, height = options.size
    settings = camera.CameraSettings(width, height, options.encoding, options.rate)
    try:
        return int(options.command(settings, options))
    except Exception as error:
        # Our own errors tell all that a user needs; a traceback would hide it.
        ours = type(error).__module__.startswith("yolact_ros.")
        if not ours and not isinstance(error, ValueError):
            raise
        print(f"measure: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        return 130


def _stages(settings: camera.CameraSettings, options: argparse.Namespace) -> int:
    from yolact_ros.engine import Segmenter
    from yolact_ros.node.measure import stages

    segmenter = Segmenter(
        options.model,
        options.weights,
        device=options.device,
        precision=options.precision,
        backend=options.backend,
    )
    found = stages.measure(
        settings, segmenter, options.instances, options.mask_encoding, options.frames
    )
    _report(options, found)
    return 0


def _transport(settings: camera.CameraSettings, options: argparse.Namespace) -> int:
    from yolact_ros.node.measure import transport

    _report(options, {"transport": transport.transport(settings, options.frames)})
    return 0


def _report(options: argparse.Namespace, found: Mapping[str, Latency]) -> None:
    print(f"{'stage':22}{'median ms':>11}{'99 % ms':>11}")
    for stage, latency in found.items():
        print(f"{stage:22}{latency.median:11.2f}{latency.percentile_99:11.2f}")
    _write(options, [{"name": name, **vars(each)} for name, each in found.items()])


def _soak(settings: camera.CameraSettings, options: argparse.Namespace) -> int:
    from yolact_ros.node.measure import soak

    limits = soak.Limits(options.max_growth, options.max_drift)
    intervals: list[soak.Interval] = []
    print(f"{'from s':>8}{'answers/s':>11}{'median ms':>11}{'99 % ms':>10}{'memory MiB':>12}")
    for each in soak.soak(
        settings, options.cameras, options.seconds, options.interval, options.ros_args
    ):
        intervals.append(each)
        print(
            f"{each.start:8.0f}{each.rate:11.1f}{each.latency.median:11.1f}"
            f"{each.latency.percentile_99:10.1f}{each.memory:12.1f}",
            flush=True,
        )
    broken = limits.broken(intervals)
    print("\n".join(broken) or "steady: memory and latency stayed within the limits")
    _write(options, intervals)
    return int(bool(broken))


def _cameras(settings: camera.CameraSettings, options: argparse.Namespace) -> int:
    from yolact_ros.node.measure import scaling

    if options.plot:  # fail now, not after the measurement
        check_installed("matplotlib", "--plot", how_to_install("eval"))
    loads: list[scaling.Load] = []
    print(
        f"{'cameras':>8}{'answers/s':>11}{'least/s':>9}{'answered':>10}{'median ms':>11}"
        f"{'99 % ms':>10}"
    )
    for each in scaling.scaling(settings, options.cameras, options.seconds, options.ros_args):
        loads.append(each)
        print(
            f"{each.cameras:8}{each.rate:11.1f}{each.least_rate:9.1f}{each.answered:10.1%}"
            f"{each.latency.median:11.1f}{each.latency.percentile_99:10.1f}",
            flush=True,
        )
    _write(options, loads)
    if options.plot:
        title = f"{settings.width} x {settings.height} {settings.encoding} at {settings.rate:g} Hz"
        scaling.plot(loads, title, options.plot)
    return 0


def _write(options: argparse.Namespace, results: Sequence[object]) -> None:
    """Write the results with the options and the machine, if requested."""
    if options.json:
        kept = {k: v for k, v in vars(options).items() if k not in ("command", "json", "plot")}
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        content = {"options": kept, "machine": machine, "results": results}
        text = json.dumps(content, indent=2, default=vars)  # data classes become objects
        options.json.write_text(text + "\n")


def count(text: str) -> int:
    """Parse a whole number, 1 or more; argparse shows the function's name in errors."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed: it must be 1 or more")
    return number


def amount(text: str) -> float:
    """Parse a number above 0; argparse shows the function's name in errors."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not allowed: it must be more than 0")
    return number


def _new_file(text: str) -> Path:
    path = Path(text)
    # Fail now, not after the measurement.
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder")
    return path


def _new_plot(text: str) -> Path:
    path = _new_file(text)
    if path.suffix not in PLOTS:
        raise argparse.ArgumentTypeError(f"{text!r} does not end with one of {', '.join(PLOTS)}")
    return path


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 640x480")
    return int(width), int(height)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="yolact_measure", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Any, help_text: str, rate: float) -> argparse.ArgumentParser:
        each = commands.add_parser(name, help=help_text, description=help_text)
        each.set_defaults(command=run)
        each.add_argument("--size", type=_size, default="640x480", help="of the images")
        each.add_argument("--encoding", choices=camera.ENCODINGS, default="bgr8")
        each.add_argument("--rate", type=amount, default=rate, help="images a second of a camera")
        each.add_argument("--json", type=_new_file, help="file to write the results to")
        return each

    stages = command("stages", _stages, "The node's own work for one image, stage by stage.", 10)
    stages.add_argument("--instances", type=count, default=10, help="instances in each image")
    stages.add_argument("--mask-encoding", choices=MASK_ENCODINGS, default="rle")
    stages.add_argument("--frames", type=count, default=100, help="images to measure")
    for name in ("model", "weights", "device", "precision", "backend"):
        default = "" if name in ("model", "weights") else "auto"
        stages.add_argument(f"--{name}", default=default, help="as the node's parameter")

    transport = command(
        "transport", _transport, "Latency from camera stamp to another process.", 15
    )
    transport.add_argument("--frames", type=count, default=100, help="images to measure")

    soak = command("soak", _soak, "Full rate for a while; fails if memory or latency grows.", 60)
    soak.add_argument("--cameras", type=count, default=1)
    soak.add_argument("--seconds", type=amount, default=600, help="how long")
    soak.add_argument("--interval", type=amount, default=60, help="seconds per line")
    soak.add_argument("--max-growth", type=float, default=20, help="of memory, in MiB")
    soak.add_argument("--max-drift", type=float, default=0.2, help="rise in latency, as a fraction")

    text = "Answers a second and latency by the number of cameras."
    cameras = command("cameras", _cameras, text, 30)
    cameras.add_argument("--cameras", type=count, default=4, help="measure 1 to this many")
    cameras.add_argument("--seconds", type=amount, default=15, help="for each number of cameras")
    cameras.add_argument("--plot", type=_new_plot, help="file for a plot; needs matplotlib")
    for each in (soak, cameras):
        each.add_argument(
            "--ros-args",
            nargs=argparse.REMAINDER,
            default=[],
            help="the rest goes to the node, for example: --ros-args -p weights:=yolact_base",
        )
    return parser
