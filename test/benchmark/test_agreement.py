"""Instances of two implementations, paired."""

import pytest
import torch

from yolact_ros.benchmark.agreement import Agreement, compare
from yolact_ros.benchmark.contender import Found


@pytest.fixture
def found():
    boxes = torch.tensor([[0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]])
    masks = torch.zeros(3, 32, 32)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return Found(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 1]), masks)


def test_the_same_in_another_order(found):
    other = Found(*(each[[2, 0, 1]] for each in found))
    result = compare(found, other)
    assert (result.instances, result.matched) == (3, 3)
    assert result.score_difference == 0
    assert result.mask_iou == 1


def test_another_class_is_no_match(found):
    other = found._replace(class_ids=torch.tensor([0, 1, 2]))
    assert compare(found, other).matched == 2


def test_differences_are_measured(found):
    masks = found.masks.clone()
    masks[0, :5] = 0
    other = found._replace(scores=found.scores + torch.tensor([0, 0, 0.1]), masks=masks)
    result = compare(found, other)
    assert result.score_difference == pytest.approx(0.1, abs=1e-6)
    assert result.mask_iou == pytest.approx(0.5)


def test_each_is_paired_once(found):
    twice = Found(*(each[[0, 0, 1, 2]] for each in found))
    result = compare(twice, found)
    assert (result.instances, result.matched) == (4, 3)


def test_boxes_outside_the_image_are_paired(found):
    """Clipped, they end before they begin; networks with random weights find some."""
    outside = torch.tensor([[0, 0, -50, 10], [0, 60, 32, 32], [0, 0, -40, -17]])
    other = found._replace(boxes=outside)
    assert compare(other, other).matched == 3
    assert compare(other, other._replace(boxes=outside + 1)).matched == 3
    assert compare(other, found).matched == 0


def test_several_images(found):
    masks = found.masks.clone()
    masks[0, :5] = 0
    half = compare(found, found._replace(masks=masks, scores=found.scores - 0.1))
    one = compare(*(Found(*(each[1:2] for each in found)),) * 2)
    nothing = compare(found, Found(*(each[:0] for each in found)))
    result = Agreement.over([half, one, nothing])
    assert (result.instances, result.matched) == (7, 4)
    assert result.mean_mask_iou == pytest.approx(3.5 / 4)  # each pair counts, not each image
    assert (result.mask_iou, result.box_difference) == (0.5, 0)
    assert result.score_difference == pytest.approx(0.1)


def test_nothing_and_something(found):
    nothing = Found(*(each[:0] for each in found))
    assert compare(nothing, found).matched == compare(found, nothing).matched == 0
    assert compare(nothing, nothing).instances == 0


def test_what_scores_too_little_is_left_out(found):
    less = found._replace(scores=torch.tensor([0.9, 0.2, 0.4]))
    assert compare(less, less, 0.5).instances == 1
    # One of the two is sure of it: its partner may score a little less.
    result = compare(found, less, 0.5)
    assert (result.instances, result.matched) == (3, 3)
    assert result.score_difference == pytest.approx(0.6)
    nothing = Found(*(each[:0] for each in found))
    assert compare(less, nothing, 0.3).instances == compare(nothing, less, 0.3).instances == 2
