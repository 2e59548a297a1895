"""The node's own work for one image, by `yolact_measure`, in a process of its own."""

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
"""Instances in each image, images that are measured, and images a second."""
_STAGES = ("receive", "check", "decode", "publish", "own work")
"""Of `yolact_measure stages`; it tells of the network too."""


@dataclass(frozen=True)
class NodeStage:
    """Milliseconds that a stage of the node takes."""

    median: float
    percentile_99: float


def node_can_run() -> bool:
    """Whether ROS 2 is sourced and the package's messages are built."""
    return all(importlib.util.find_spec(name) for name in ("rclpy", "yolact_ros.msg"))


def measure_node(options: Mapping[str, Any], size: tuple[int, int]) -> dict[str, NodeStage]:
    """Stages of images of `size` (height, width) in pixels on their way through the node.

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
