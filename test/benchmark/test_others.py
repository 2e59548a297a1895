"""Others' models, given our Fast NMS or run as they are."""

import pytest
import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.ops import box_iou

from yolact_ros.benchmark.others import _fast_postprocess, ultralytics


def test_fast_nms_keeps_a_part_of_what_standard_nms_keeps():
    """It lets boxes that are removed suppress others, so it can only remove more."""
    torch.manual_seed(0)
    heads = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, box_score_thresh=0.2
    ).roi_heads
    heads.detections_per_img = 1000
    corners = torch.rand(150, 2) * 60
    proposals = [torch.cat((corners, corners + 10 + 30 * torch.rand(150, 2)), dim=1)]
    arguments = (torch.randn(150, 4) * 2, torch.randn(150, 16) * 0.1, proposals, [(100, 100)])
    standard = heads.postprocess_detections(*arguments)
    fast = _fast_postprocess(heads, *arguments)
    kept = {
        (round(score, 6), label)
        for score, label in zip(standard[1][0].tolist(), standard[2][0].tolist(), strict=True)
    }
    ours = [
        (round(score, 6), label)
        for score, label in zip(fast[1][0].tolist(), fast[2][0].tolist(), strict=True)
    ]
    assert 0.5 * len(kept) < len(ours) <= len(kept)
    assert set(ours) <= kept
    assert fast[1][0].diff().max() <= 0, "by falling score"
    overlaps = box_iou(fast[0][0], fast[0][0]).triu(diagonal=1)
    same = fast[2][0].unsqueeze(0) == fast[2][0].unsqueeze(1)
    assert (overlaps * same).max() <= heads.nms_thresh


def test_ultralytics_reports_instances_with_random_weights(image):
    pytest.importorskip("ultralytics")
    found = ultralytics(torch.device("cpu"), image, "yolo11n-seg", score=0).segment(image)
    assert len(found.scores) > 0
    assert found.masks.shape == (len(found.scores), *image.shape[:2])
