"""Build a TensorRT engine of a network that `yolact export` wrote as ONNX, and time it:

python tools/tensorrt_engine.py yolact.onnx --batch 4

To be run on the board or machine that will use the engine: an engine is for one kind of GPU and one
version of TensorRT. Needs TensorRT's program trtexec and the packages of requirements/core.txt and
onnx. TensorRT 11 and later take the precision from the file, earlier ones build in half precision.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]  # the repository, installed or not

from yolact_ros.engine.runtimes.tracing import INPUT  # noqa: E402

ON_JETSON = "/usr/src/tensorrt/bin/trtexec"
"""Location on a Jetson, which JetPack does not add to PATH."""


class EngineError(Exception):
    """No engine can be built; the message says why."""


@dataclass(frozen=True)
class Engine:
    """What to build."""

    onnx: Path
    path: Path
    image_size: int
    batch: int
    """Largest batch; the engine takes 1 to `batch` images and is tuned for this size."""
    half: bool

    def build(self, trtexec: str) -> list[str]:
        """The command that builds the engine."""
        shapes = {"min": 1, "opt": self.batch, "max": self.batch}
        command = [trtexec, f"--onnx={self.onnx}", f"--saveEngine={self.path}"]
        command += [f"--{name}Shapes={self._shape(count)}" for name, count in shapes.items()]
        return [*command, "--fp16"] if self.half else command

    def time(self, trtexec: str) -> list[str]:
        """The command that runs the engine with random images for ten seconds."""
        options = ["--useCudaGraph", "--duration=10", f"--shapes={self._shape(self.batch)}"]
        return [trtexec, f"--loadEngine={self.path}", *options]

    def _shape(self, count: int) -> str:
        return f"{INPUT}:{count}x3x{self.image_size}x{self.image_size}"


def image_size_of(path: Path) -> int:
    """The side of the images that an .onnx file takes, which other tools may have converted.

    Raises EngineError for what is no exported network.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise EngineError("onnx is not installed: pip install onnx") from error
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        inputs = onnx.load(path, load_external_data=False).graph.input
    except DecodeError as error:
        raise EngineError(f"{path} is no ONNX model: {error}") from error
    except OSError as error:
        raise EngineError(str(error)) from error
    for each in inputs:
        sides = [side.dim_value for side in each.type.tensor_type.shape.dim]
        if each.name == INPUT and len(sides) == 4:
            return int(sides[-1])
    raise EngineError(f"{path} is no network of `yolact export`: it has no input {INPUT!r}")


def find_trtexec(name: str) -> str:
    """The program to run. Raises EngineError where there is none."""
    for candidate in (name, ON_JETSON):
        if found := shutil.which(candidate):
            return found
    raise EngineError(
        f"there is no program {name}, and none at {ON_JETSON}: install TensorRT (JetPack and the "
        "packages tensorrt or libnvinfer-bin bring it), or name it with --trtexec"
    )


def knows_half(trtexec: str) -> bool:
    """Whether this trtexec has the option --fp16."""
    told = subprocess.run([trtexec, "--help"], capture_output=True, text=True, check=False)
    return "--fp16" in told.stdout + told.stderr


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        size = image_size_of(options.onnx)
        trtexec = options.trtexec if options.show else find_trtexec(options.trtexec)
    except EngineError as error:
        print(f"tensorrt_engine: {error}", file=sys.stderr)
        return 1
    half = not options.float32
    if half and not options.show and not knows_half(trtexec):
        print("This TensorRT takes the precision from the file (docs/export.md has half precision)")
        half = False
    path = options.engine or options.onnx.with_suffix(".engine")
    engine = Engine(options.onnx, path, size, options.batch, half)
    for command in (engine.build(trtexec), engine.time(trtexec)):
        print(shlex.join(command), flush=True)
        if not options.show and (status := subprocess.run(command, check=False).returncode):
            return status
    return 0


def _batch(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 256:
        raise argparse.ArgumentTypeError(f"{count} is not allowed: it must be 1 to 256")
    return count


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Build a TensorRT engine of an exported network, and time it."
    )
    parser.add_argument("onnx", type=Path, help="the .onnx file that `yolact export` wrote")
    parser.add_argument(
        "--engine", type=Path, help="file to write; else the same, ending in .engine"
    )
    parser.add_argument("--batch", type=_batch, default=1, help="maximum batch size")
    parser.add_argument("--float32", action="store_true", help="no half precision")
    parser.add_argument("--trtexec", default="trtexec", help="TensorRT's program, if not on PATH")
    parser.add_argument("--show", action="store_true", help="only print the commands")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
