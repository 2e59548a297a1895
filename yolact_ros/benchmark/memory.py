"""How much memory one segmenter takes, in a process of its own.

    python -m yolact_ros.benchmark.memory '{"weights": "FILE", "device": "cpu"}' PICTURE

prints the numbers of `Memory` as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from yolact_ros.engine import Segmenter


@dataclass(frozen=True)
class Memory:
    """Mebibytes that a process needs to segment one image."""

    host: float
    """The most that lay in the host's memory at any time."""
    imports: float
    """Of that: Python and its libraries, before there was a segmenter."""
    device: float
    """The most that PyTorch took of the device's memory; 0 on a CPU."""


def measure_memory(options: Mapping[str, str], picture: Path) -> Memory:
    """Make a Segmenter with `options`, its keyword arguments, and segment `picture`.

    Raises RuntimeError, with what the process wrote, when it fails.
    """
    command = [sys.executable, "-m", __name__, json.dumps(dict(options)), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the memory cannot be measured:\n{done.stderr}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # which Linux gives in KiB


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
