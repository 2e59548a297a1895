"""Overlays of instances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from yolact_ros.detection import Instances, SmallMasks
from yolact_ros.engine import draw_overlay, overlay
from yolact_ros.engine.overlay import class_colours, instance_colours


def instances(
    height: int, width: int, boxes: list[list[float]], class_ids: list[int], masks: bool = True
) -> Instances:
    """Instances whose masks fill their boxes; boxes in whole pixels."""
    corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    count = len(corners)
    scores = torch.linspace(0.9, 0.5, count) if count else torch.zeros(0)
    small = SmallMasks(
        torch.ones(count, 8, 8), corners, torch.tensor((0, 0, 8, 8)).expand(count, 4)
    )
    return Instances(
        corners,
        scores,
        scores,
        torch.tensor(class_ids, dtype=torch.int64),
        (height, width),
        ("cat", "dog", "a rather long name of a class"),
        small if masks else None,
    )


@pytest.fixture
def grey() -> np.ndarray:
    return np.full((100, 200, 3), 128, np.uint8)


def test_nothing_drawn_for_nothing_found(grey):
    drawn = draw_overlay(grey, instances(100, 200, [], []))
    assert np.array_equal(drawn, grey) and drawn is not grey


def test_masks_take_their_classs_colour(grey):
    found = instances(100, 200, [[20, 40, 60, 90], [100, 40, 150, 90]], [0, 1])
    before = grey.copy()
    drawn = draw_overlay(grey, found, alpha=0.5, boxes=False, labels=False)
    assert np.array_equal(grey, before)
    colours = class_colours(3).astype(int)
    for class_id, left in ((0, 20), (1, 100)):
        blend = (128 + colours[class_id]) / 2
        assert np.abs(drawn[60, left + 20].astype(int) - blend).max() <= 1
        assert np.array_equal(drawn[60, left], colours[class_id]), "the outline is opaque"
    changed = (drawn != grey).any(axis=2)
    assert np.array_equal(changed, found.masks.any(dim=0).numpy())


@pytest.mark.parametrize("alpha, inside", [(0.0, 128), (1.0, None)])
def test_alpha(grey, alpha, inside):
    found = instances(100, 200, [[20, 40, 60, 90]], [0])
    drawn = draw_overlay(grey, found, alpha=alpha, boxes=False, labels=False)
    expected = class_colours(1)[0] if inside is None else inside
    assert (drawn[60, 40] == expected).all()


def test_the_better_instance_is_on_top(grey):
    found = instances(100, 200, [[20, 40, 80, 90], [40, 50, 120, 80]], [0, 1])
    drawn = draw_overlay(grey, found, alpha=1.0, boxes=False, labels=False)
    assert np.array_equal(drawn[60, 60], class_colours(3)[0])


def test_boxes_and_labels(grey):
    found = instances(100, 200, [[20, 40, 60, 90]], [0], masks=False)
    boxes = draw_overlay(grey, found, labels=False)
    changed = (boxes != grey).any(axis=2)
    assert changed[40, 20:60].all() and changed[40:90, 59].all() and not changed[50:80, 30:50].any()
    labels = draw_overlay(grey, found, boxes=False)
    changed = (labels != grey).any(axis=2)
    assert changed[20:40, 20:60].sum() > 200 and not changed[60:].any()
    assert (labels == class_colours(1)[0]).all(axis=2).sum() > 200, "a patch of its colour"
    assert (labels < 60).all(axis=2).sum() > 20, "dark text"


def test_names_that_opencv_cannot_draw(monkeypatch):
    names = ["person", "Ampelmännchen", "行人"]
    monkeypatch.setattr(overlay, "DRAWS_UNICODE", False)
    drawn = [overlay._drawable(name, i) for i, name in enumerate(names)]
    assert drawn == ["person", "Ampelmannchen", "class 2"]


def test_neighbours_of_a_class_differ_and_keep_their_colours():
    places = [[20, 40, 60, 90], [50, 40, 90, 90], [110, 40, 150, 90]]
    found = instances(100, 200, places, [1, 1, 1])
    colours = instance_colours(found)
    assert np.array_equal(colours[0], class_colours(3)[1])
    assert np.abs(np.diff(colours.astype(int), axis=0)).sum(axis=1).min() > 60
    other_order = instances(100, 200, places[::-1], [1, 1, 1])
    assert np.array_equal(instance_colours(other_order), colours[::-1])


def test_labels_keep_clear_of_each_other(grey):
    """Above, else below the upper edge, and so on; none is wider than the image."""
    found = instances(100, 200, [[20, 40, 60, 90], [25, 42, 65, 92]], [0, 0], masks=False)
    both = (draw_overlay(grey, found, boxes=False) != grey).any(axis=2)
    alone = [
        (draw_overlay(grey, found[[i]], boxes=False) != grey).any(axis=2).sum() for i in range(2)
    ]
    assert both.sum() > 0.95 * sum(alone)
    narrow = np.full((100, 40, 3), 128, np.uint8)
    found = instances(100, 40, [[5, 40, 30, 90]], [2], masks=False)
    assert np.array_equal(draw_overlay(narrow, found, boxes=False), narrow)


def test_outlines_of_large_images_are_thicker():
    found = instances(1300, 1300, [[100, 100, 900, 900]], [0])
    image = np.full((1300, 1300, 3), 128, np.uint8)
    drawn = draw_overlay(image, found, alpha=0.5, boxes=False, labels=False)
    opaque = (drawn[500] == class_colours(1)[0]).all(axis=1)
    assert opaque[:500].sum() == 2


def test_colours_are_stable_and_differ():
    colours = class_colours(80)
    assert np.array_equal(colours[:20], class_colours(20))
    assert colours.shape == (80, 3) and colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) == 80
    apart = np.abs(colours[:, None].astype(int) - colours[None]).sum(axis=2)
    neighbours = apart[np.arange(79), np.arange(1, 80)]
    assert neighbours.min() > 60


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("masks", [True, False])
def test_tiny_images(size, masks):
    image = np.zeros((*size, 3), np.uint8)
    found = instances(*size, [[0, 0, size[1], size[0]]] * 2, [2, 0], masks)
    drawn = draw_overlay(image, found)
    assert drawn.shape == image.shape and drawn.any()


def test_boxes_beyond_the_image(grey):
    """As `make_instances` leaves them: cut on one side only."""
    outside = [[220, 10, 200, 20], [0, 0, -30, 50], [1e12, 0, 200, 50]]
    found = instances(100, 200, outside, [0, 1, 2], masks=False)
    assert np.array_equal(draw_overlay(grey, found), grey)


def test_read_only_and_reversed_images(grey):
    found = instances(100, 200, [[20, 40, 60, 90]], [0])
    expected = draw_overlay(grey, found)
    read_only = np.frombuffer(grey.tobytes(), np.uint8).reshape(grey.shape)
    assert np.array_equal(draw_overlay(read_only, found), expected)
    assert np.array_equal(draw_overlay(grey[::-1, ::-1], found), expected)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((50, 200, 3), np.uint8),
        np.zeros((100, 200), np.uint8),
        np.zeros((100, 200, 4), np.uint8),
        np.zeros((100, 200, 3), np.float32),
    ],
    ids=lambda image: f"{image.dtype}{image.shape}",
)
def test_images_that_are_not_the_instances(image):
    found = instances(100, 200, [[20, 40, 60, 90]], [0])
    with pytest.raises(ValueError, match=r"the instances are of a uint8 image of shape \(100, 200"):
        draw_overlay(image, found)
