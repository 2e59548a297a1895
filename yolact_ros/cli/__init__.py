"""The command `yolact`: one module for each subcommand, loaded when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from yolact_ros.extras import how_to_install
from yolact_ros.openmp import wait_briefly

_COMMANDS = {
    "predict": "segment images, folders and videos",
    "train": "train a network on COCO-format data",
    "eval": "measure accuracy on COCO-format data",
    "data": "check and split COCO-format data, convert Pascal SBD",
    "download": "download published weights",
    "explain": "show how the masks of an image are assembled",
    "stability": "measure how steady masks are in a video",
    "bench": "measure speed and memory, alone and side by side with others",
    "export": "write a network for ONNX Runtime, OpenVINO or as compiled PyTorch",
    "table": "print a table from the papers next to values measured here",
}
# Extra that a subcommand needs.
_EXTRAS = {
    "train": "train",
    "eval": "eval",
    "data": "eval",
    "stability": "eval",
    "table": "eval",
    "bench": "bench",
}
# These plot at the very end: check for matplotlib before the work begins.
_PLOTTING = ("eval", "stability")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a file may have a name that is not UTF-8
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 2
    wait_briefly()
    command, rest = words[0], words[1:]
    if command not in _COMMANDS:
        print(f"yolact: there is no command {command!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(f"yolact_ros.cli.{command}")
        if command in _PLOTTING:
            importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        if command not in _EXTRAS or str(error.name).startswith("yolact_ros"):
            raise
        missing, extra = (error.name or "").partition(".")[0], _EXTRAS[command]
        print(f"{missing} is missing: {how_to_install(extra)}", file=sys.stderr)
        return 1
    try:
        module.run(rest)
    except Exception as error:
        # These tell all that a user needs; a traceback would hide it. Others are bugs.
        ours = type(error).__module__.startswith("yolact_ros")
        if not ours and not isinstance(error, ValueError | OSError):
            raise
        print(f"yolact {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _usage() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in _COMMANDS.items()]
    return "\n".join(
        [
            "usage: yolact COMMAND ...",
            "",
            "commands (`yolact COMMAND --help` says more):",
            *lines,
        ]
    )
