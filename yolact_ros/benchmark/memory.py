"""How much memory one segmenter takes, in a process of its own.

    python -m yolact_ros.benchmark.memory '{"weights": "FILE", "device": "cpu"}' PICTURE

prints the numbers of `Memory` as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from yolact_ros.engine import Segmenter

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Mebibytes that a process needs to segment one image."""

    host: float
    """The most that lay in the host's memory at any time."""
    imports: float
    """Of that: Python and its libraries, before there was a segmenter."""
    device: float
    """The most that PyTorch took of the device's memory; 0 on a CPU."""


def measure_memory(options: Mapping[str, Any], picture: Path) -> Memory:
    """Make a Segmenter with `options`, its keyword arguments, and segment `picture`.

    Raises RuntimeError, with what the process wrote, when it fails.
    """
    command = [sys.executable, "-m", __name__, json.dumps(dict(options)), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"the memory cannot be measured (status {done.returncode}):\n{done.stderr}"
        )
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def can_measure_memory() -> bool:
    """Whether the system tells a process its own peak: Linux does."""
    return _STATUS.is_file()


def _peak() -> float:
    # Not getrusage: what that gives includes the process that started this one.
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024


def _main() -> None:
    options, picture = sys.argv[1:]
    image = np.asarray(cv2.imread(picture, cv2.IMREAD_COLOR), np.uint8)
    imports = _peak()
    segment = Segmenter(**json.loads(options))
    for _ in range(3):
        segment(image)
    cuda = segment.device.type == "cuda"
    device = torch.cuda.max_memory_reserved(segment.device) / 2**20 if cuda else 0.0
    print(json.dumps(dataclasses.asdict(Memory(_peak(), imports, device))))


if __name__ == "__main__":
    _main()
