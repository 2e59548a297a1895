"""What half precision changes of the embedded model's findings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch

from yolact_ros.benchmark.agreement import Agreement
from yolact_ros.benchmark.precision import compare_precisions, is_harmless
from yolact_ros.detection import DetectionSettings
from yolact_ros.network import EMBEDDED, build, load_weights


@pytest.fixture(scope="module")
def agreements(repository: Path):
    folder = repository / "yolact_ros"
    net = build(EMBEDDED)
    load_weights(net, folder / "weights" / f"{EMBEDDED.name}.safetensors")
    photo = cv2.imread(str(folder / "demo" / "photos" / "riders.jpg"))
    images = [torch.from_numpy(cv2.resize(photo, (160, 120)))]
    settings = DetectionSettings(score_threshold=0.15, top_k=20)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small layers on several threads mostly wait for each other
    yield {
        dtype: compare_precisions(net, images, settings, dtype, torch.device("cpu"))
        for dtype in (torch.float16, torch.bfloat16)
    }
    torch.set_num_threads(threads)


def test_half_precision_changes_nothing_that_matters(agreements):
    found = agreements[torch.float16]
    assert found.matched == found.instances >= 2
    assert found.mean_mask_iou > 0.99 and found.mask_iou > 0.95
    assert 0 < found.score_difference < 0.02 and 0 < found.box_difference < 0.5
    assert is_harmless(found)


def test_what_matters_is_seen(agreements):
    half, coarse = agreements[torch.float16], agreements[torch.bfloat16]
    assert coarse.score_difference > 2 * half.score_difference
    assert 1 - coarse.mean_mask_iou > 3 * (1 - half.mean_mask_iou)
    assert not is_harmless(replace(half, mean_mask_iou=0.98))
    assert not is_harmless(replace(half, matched=9, instances=10))


def test_nothing_found_proves_nothing():
    nothing = Agreement.over([])
    assert nothing.instances == 0 and not is_harmless(nothing)
