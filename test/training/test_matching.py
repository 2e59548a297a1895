import pytest
import torch

from yolact_ros.training.matching import BACKGROUND, IGNORED, MatchSettings, match
from yolact_ros.training.targets import Target


def target(boxes, labels=None, crowds=()):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    crowds = torch.tensor(crowds, dtype=torch.float32).reshape(-1, 4)
    return Target(boxes, labels, torch.ones(len(boxes), 8, 8, dtype=torch.uint8), crowds)


def anchors(*corners):
    x1, y1, x2, y2 = torch.tensor(corners, dtype=torch.float32).T
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=1)


def test_thresholds():
    grid = anchors(
        (0.0, 0.0, 0.4, 0.4),  # the object itself
        (0.0, 0.0, 0.4, 0.6),  # IoU 2/3
        (0.0, 0.0, 0.4, 0.9),  # IoU 0.44
        (0.0, 0.0, 0.4, 1.0),  # IoU 0.4
        (0.0, 0.0, 0.5, 1.0),  # IoU 0.32
        (0.6, 0.6, 0.9, 0.9),
    )
    matching = match(grid, target([[0, 0, 0.4, 0.4]], [6]))
    assert matching.labels.tolist() == [7, 7, IGNORED, IGNORED, BACKGROUND, BACKGROUND]


def test_every_object_gets_an_anchor_of_its_own():
    """Two objects want anchor 0; the one that fits better has it, the other takes the next best."""
    grid = anchors((0.0, 0.0, 0.4, 0.4), (0.0, 0.0, 0.1, 0.4), (0.7, 0.7, 0.9, 0.9))
    objects = target([[0.0, 0.0, 0.3, 0.4], [0.0, 0.0, 0.4, 0.39]], [1, 2])
    matching = match(grid, objects)
    assert matching.labels.tolist() == [3, 2, BACKGROUND]
    assert matching.objects[:2].tolist() == [1, 0]


def test_objects_of_equal_boxes_share_fairly():
    generator = torch.Generator().manual_seed(0)
    grid = torch.rand(500, 4, generator=generator) * 0.3 + 0.1
    objects = target([[0.1, 0.1, 0.4, 0.4]] * 5, [0, 1, 2, 3, 4])
    matching = match(grid, objects)
    assert set(matching.labels[matching.positive].tolist()) == {1, 2, 3, 4, 5}


def test_crowds_keep_anchors_from_learning_background():
    grid = anchors((0.0, 0.0, 0.2, 0.2), (0.3, 0.3, 0.6, 0.6), (0.5, 0.5, 0.9, 0.9))
    matching = match(grid, target([[0, 0, 0.2, 0.2]], crowds=[[0.0, 0.0, 0.6, 0.6]]))
    assert matching.labels.tolist() == [1, IGNORED, BACKGROUND]


def test_an_image_without_objects_is_background():
    grid = anchors((0.0, 0.0, 0.2, 0.2), (0.3, 0.3, 0.6, 0.6))
    matching = match(grid, target([]))
    assert matching.labels.tolist() == [BACKGROUND, BACKGROUND]


def test_bad_thresholds_are_refused():
    with pytest.raises(ValueError, match=r"negative_iou=0\.6 and positive_iou=0\.5"):
        MatchSettings(negative_iou=0.6)


def test_anchors_that_lie_in_a_crowd_by_seven_tenths_are_ignored():
    grid = anchors(
        (0.7, 0.7, 0.9, 0.9),  # the object itself
        (0.2, 0.0, 0.3, 0.1),  # all of it in the crowd
        (0.225, 0.0, 0.335, 0.1),  # 73 %
        (0.24, 0.0, 0.34, 0.1),  # 65 %
    )
    matching = match(grid, target([[0.7, 0.7, 0.9, 0.9]], crowds=[[0, 0, 0.305, 0.6]]))
    assert matching.labels.tolist() == [1, IGNORED, IGNORED, BACKGROUND]
