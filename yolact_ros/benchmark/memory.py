"""Measures the memory of one segmenter in its own process.

    python -m yolact_ros.benchmark.memory '{"weights": "FILE", "device": "cpu"}' IMAGE FREE

prints the values of `Memory` as JSON; FREE is the number of bytes free on the device beforehand.
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

import torch

from yolact_ros.engine import Segmenter
from yolact_ros.engine.device import choose_device
from yolact_ros.image_files import read_image

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Mebibytes that a process needs to segment one image."""

    host: float
    """Peak host memory."""
    imports: float
    """The part of it used by Python and its libraries before the segmenter is created."""
    device: float
    """Peak device memory reserved by PyTorch in steady state: weights, graphs and fragmentation.
    0 on a CPU, like the next two."""
    device_peak: float
    """The same including warm-up, when cuDNN benchmarks its kernels."""
    process: float
    """Drop in the device's free memory, including CUDA's context and libraries. Other processes
    that allocate or free memory meanwhile distort it."""


def measure_memory(options: Mapping[str, Any], image: Path) -> Memory:
    """Make a Segmenter with `options`, its keyword arguments, and segment `image`.

    Raises RuntimeError, with what the process wrote, when it fails.
    """
    before = str(_free(choose_device(options.get("device", "auto"))))
    command = [sys.executable, "-m", __name__, json.dumps(dict(options)), str(image), before]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"the memory cannot be measured (status {done.returncode}):\n{done.stderr}"
        )
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def can_measure_memory() -> bool:
    """Whether the system reports a process's own peak memory, as Linux does."""
    return _STATUS.is_file()


def _peak() -> float:
    # Not getrusage, whose peak includes the parent process.
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024


def _free(device: torch.device) -> int:
    """Return the free bytes of a device's memory; 0 on a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _main() -> None:
    options, path, free_before = sys.argv[1:]
    image = read_image(Path(path))
    imports = _peak()
    segment = Segmenter(**json.loads(options))
    segment.warm_up((image.shape[0], image.shape[1]))
    device = device_peak = process = 0.0
    if segment.device.type == "cuda":
        device_peak = torch.cuda.max_memory_reserved(segment.device)
        torch.cuda.reset_peak_memory_stats(segment.device)
    for _ in range(3):
        segment(image)
    if segment.device.type == "cuda":
        device = torch.cuda.max_memory_reserved(segment.device)
        process = int(free_before) - _free(segment.device)
    on_device = (each / 2**20 for each in (device, device_peak, process))
    print(json.dumps(dataclasses.asdict(Memory(_peak(), imports, *on_device))))


if __name__ == "__main__":
    _main()
