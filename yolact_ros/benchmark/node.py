"""Measures the node's own work for one image with `yolact_measure`, in its own process."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INSTANCES, FRAMES, RATE = 10, 50, 15
"""Instances per image, number of measured images, and images per second."""
_STAGES = ("receive", "check", "decode", "publish", "own work")
"""The node's own stages in the output of `yolact_measure stages`."""


@dataclass(frozen=True)
class NodeStage:
    """Time of a stage of the node in milliseconds."""

    median: float
    percentile_99: float


def node_can_run() -> bool:
    """Whether ROS 2 is sourced and the package's messages are built."""
    return all(importlib.util.find_spec(name) for name in ("rclpy", "yolact_ros.msg"))


def measure_node(options: Mapping[str, Any], size: tuple[int, int]) -> dict[str, NodeStage]:
    """Measure the node's stages for images of `size` (height, width) in pixels.

    `options` are keyword arguments of `Segmenter`. Raises RuntimeError, with what the process
    wrote, when it fails.
    """
    height, width = size
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "node.json"
        command = [
            *(sys.executable, "-c", "from yolact_ros.node.measure.main import main; exit(main())"),
            *("stages", "--size", f"{width}x{height}", "--json", str(output)),
            *("--instances", str(INSTANCES), "--frames", str(FRAMES), "--rate", str(RATE)),
            *(word for name, value in options.items() for word in (f"--{name}", str(value))),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            wrote = f"{done.stdout}{done.stderr}"
            raise RuntimeError(f"the node cannot be measured (status {done.returncode}):\n{wrote}")
        rows = {row["name"]: row for row in json.loads(output.read_text())["results"]}
    return {name: NodeStage(rows[name]["median"], rows[name]["percentile_99"]) for name in _STAGES}
