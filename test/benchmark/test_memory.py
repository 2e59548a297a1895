"""What one segmenter takes, measured in a process of its own."""

from __future__ import annotations

import cv2
import pytest

from yolact_ros.benchmark.memory import can_measure_memory, measure_memory


@pytest.mark.skipif(not can_measure_memory(), reason="the system does not tell a process its peak")
def test_memory_on_a_cpu(small_weights, image, tmp_path, repository, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cv2.imwrite(str(tmp_path / "image.png"), image)
    options = {"weights": str(small_weights), "device": "cpu", "backend": "torch"}
    memory = measure_memory(options, tmp_path / "image.png")
    weights = small_weights.stat().st_size / 2**20
    assert memory.imports > 50
    assert memory.host > memory.imports + weights
    assert memory.device == memory.device_peak == memory.process == 0
