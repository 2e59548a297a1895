"""Instances and their masks in source pixels."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from yolact_ros.detection import (
    Detections,
    DetectionSettings,
    Instances,
    SmallMasks,
    detect,
    make_instances,
    regions,
)
from yolact_ros.detection.boxes import decode, encode
from yolact_ros.detection.masks import FC_MASK_SIZE, crop, crop_rectangles, make_masks
from yolact_ros.network.yolact import MaskIoUNet

NAMES = ("cat", "dog", "person")
SIZES = [(1, 1), (1, 7), (9, 1), (2, 3), (20, 24), (40, 48), (37, 53), (480, 640), (1081, 777)]


def blobs(count: int, height: int, width: int, seed: int = 0) -> Instances:
    """Random smooth masks on a 69 x 69 grid, cropped to random boxes, some partly outside."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count, 2, generator=generator) * 1.2 - 0.1
    sizes = torch.rand(count, 2, generator=generator) * 0.6
    boxes = torch.cat((centres - sizes / 2, centres + sizes / 2), dim=1)
    coarse = torch.rand(count, 1, 9, 9, generator=generator)
    values = F.interpolate(coarse, size=(69, 69), mode="bilinear")[:, 0]
    cells = crop_rectangles(boxes, 69, 69)
    scale = torch.tensor((width, height, width, height), dtype=torch.float32)
    extents = torch.tensor((0.0, 0, width, height)).expand(count, 4)
    return Instances(
        boxes=boxes * scale,
        scores=torch.linspace(0.9, 0.4, count),
        mask_scores=torch.linspace(0.8, 0.3, count),
        class_ids=torch.arange(count) % 3,
        image_size=(height, width),
        class_names=NAMES,
        stored_masks=SmallMasks(crop(values, cells), extents, cells),
    )


def assert_masks(ours: torch.Tensor, values: torch.Tensor) -> None:
    """The masks are where the values exceed one half, but for those within rounding of it."""
    assert ours.dtype == torch.bool and ours.shape == values.shape
    differs = ours != (values > 0.5)
    assert not differs[(values - 0.5).abs() > 1e-5].any()


@pytest.mark.parametrize("at_once", [1, 23, 1 << 10])
def test_packing_is_the_same_in_steps(monkeypatch, at_once):
    small = blobs(5, 40, 53).stored_masks
    rectangles = regions.pixel_rectangles(
        small.extents, small.cells, small.values, torch.tensor((53.0, 40.0))
    )
    ends = regions.packed_sizes(rectangles).cumsum(0)
    assert ends[-1] > 3 * 23
    for room in (int(ends[-1]) - 30, int(ends[-1]) + 30):
        whole, parts = torch.full((2, room), 0x5A, dtype=torch.uint8)
        regions.pack_plain(small.values, small.extents, rectangles, ends, whole)
        with monkeypatch.context() as patch:
            patch.setattr(regions, "_PACKED_AT_ONCE", at_once)
            regions.pack_plain(small.values, small.extents, rectangles, ends, parts)
        assert whole.any() and torch.equal(parts, whole)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masks_are_the_interpolated_small_ones(size):
    instances = blobs(20, *size)
    values = F.interpolate(instances.stored_masks.values[None], size=size, mode="bilinear")[0]
    assert_masks(instances.masks, values)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_regions_and_labels_agree_with_masks(size):
    instances = blobs(20, *size, seed=1)
    masks, regions = instances.masks, instances.regions()
    assert regions is instances.regions(), "they are made once"
    assert torch.equal(regions.areas(), masks.sum(dim=(1, 2)))
    for i, (x1, y1, x2, y2) in enumerate(regions.rectangles.tolist()):
        assert 0 <= x1 <= x2 <= size[1] and 0 <= y1 <= y2 <= size[0]
        assert torch.equal(regions.mask(i), masks[i, y1:y2, x1:x2])
        assert regions.areas()[i] == masks[i].sum()
    best = torch.where(masks.any(dim=0), masks.int().argmax(dim=0) + 1, 0)
    assert torch.equal(instances.label_image(), best.int())


def test_a_region_is_hardly_larger_than_its_box():
    """Half an 8K image has no business in the mask of a small box."""
    instances = blobs(5, 4320, 7680)
    cell = torch.tensor((7680, 4320)) / 69
    rectangles = instances.regions().rectangles
    widths = rectangles[:, 2:] - rectangles[:, :2]
    assert (widths <= instances.boxes[:, 2:] - instances.boxes[:, :2] + 4 * cell).all()


def kilobytes(name: str) -> int:
    """Of this process: VmRSS, what it holds, or VmHWM, the most since the peak was reset."""
    found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1])


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no peak to reset")
def test_a_mask_of_all_of_an_8k_image_fits_in_memory():
    values = torch.ones(1, 138, 138)
    extent = torch.tensor([[0.0, 0, 7680, 4320]])
    small = SmallMasks(values, extent, torch.tensor([[0, 0, 138, 138]]))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what it holds now
    before = kilobytes("VmRSS")
    regions = small.regions(4320, 7680)
    assert int(regions.areas()[0]) == 4320 * 7680
    assert kilobytes("VmHWM") - before < 500_000


def fc_instances(boxes: torch.Tensor, size: tuple[int, int]) -> Instances:
    """Instances with random fc masks; boxes in pixels."""
    count = len(boxes)
    values = torch.rand(count, 16, 16, generator=torch.Generator().manual_seed(0))
    cells = torch.tensor((0, 0, 16, 16)).expand(count, 4)
    scores = torch.linspace(0.9, 0.4, count)
    small = SmallMasks(values, boxes, cells)
    return Instances(boxes, scores, scores, torch.arange(count) % 3, size, NAMES, small)


def test_fc_masks_cover_their_boxes():
    """For boxes on whole pixels that is F.interpolate into the box."""
    boxes = torch.tensor([[10.0, 20, 50, 90], [0, 0, 100, 100], [95, 3, 96, 4], [30, 30, 47, 33]])
    instances = fc_instances(boxes, (100, 100))
    for values, mask, box in zip(
        instances.stored_masks.values, instances.masks, boxes.int().tolist(), strict=True
    ):
        x1, y1, x2, y2 = box
        inside = F.interpolate(values[None, None], size=(y2 - y1, x2 - x1), mode="bilinear")[0, 0]
        whole = torch.zeros(100, 100)
        whole[y1:y2, x1:x2] = inside
        assert_masks(mask, whole)


def test_fc_masks_have_all_their_cells():
    logits = torch.linspace(-3, 3, FC_MASK_SIZE**2)
    detections = Detections(
        boxes=torch.tensor([[[0.1, 0.1, 0.5, 0.5]]]),
        scores=torch.ones(1, 1),
        class_ids=torch.zeros(1, 1, dtype=torch.int64),
        coefficients=logits.view(1, 1, -1),
        valid=torch.ones(1, 1, dtype=torch.bool),
    )
    grids = make_masks(detections, None, None)
    assert grids.cells.flatten().tolist() == [0, 0, FC_MASK_SIZE, FC_MASK_SIZE]
    assert torch.equal(grids.values.flatten(), logits.sigmoid())


def test_fc_masks_of_boxes_outside_and_of_no_size():
    boxes = torch.tensor(
        [
            [-50.0, -50, -10, -10],
            [200, 200, 300, 300],
            [40.5, 40.5, 40.5, 40.5],
            [40.5, 10, 40.5, 60],
            [-1e6, -1e6, 1e6, 1e6],
            [-20, -20, 30, 30],
        ]
    )
    instances = fc_instances(boxes, (100, 100))
    masks = instances.masks
    assert masks.shape == (6, 100, 100)
    assert not masks[:2].any()
    assert instances.label_image().shape == (100, 100)
    assert not masks[5, 30:].any() and not masks[5, :, 30:].any()


@pytest.mark.parametrize("rescoring", [False, True])
def test_a_batch_gives_what_its_images_give_alone(random_scene, rescoring):
    torch.manual_seed(0)
    predictions, anchors = random_scene(batch=3, count=40, classes=3)
    sizes = [(30, 50), (427, 640), (1, 1)]
    net = MaskIoUNet(3) if rescoring else None
    prototypes = F.interpolate(predictions.prototypes, size=(69, 69))
    detections = detect(predictions, anchors, DetectionSettings())
    with torch.no_grad():
        together = make_instances(detections, prototypes, net, sizes, NAMES)
        for i, size in enumerate(sizes):
            one = {
                name: None if value is None else value[i : i + 1]
                for name, value in vars(detections).items()
            }
            [alone] = make_instances(
                type(detections)(**one), prototypes[i : i + 1], net, [size], NAMES
            )
            assert torch.equal(alone.boxes, together[i].boxes)
            assert torch.equal(alone.masks, together[i].masks)
            torch.testing.assert_close(alone.mask_scores, together[i].mask_scores)
            assert torch.equal(alone.mask_scores, alone.scores) is not rescoring


def test_boxes_are_cut_as_published(make_scene):
    relative = torch.tensor([[[-0.1, 0.2, 0.5, 1.3], [1.1, 0.1, 1.4, 0.2], [0.2, 0.3, 0.4, 0.5]]])
    predictions, anchors = make_scene(relative, torch.tensor([[[0.9], [0.8], [0.7]]]))
    detections = detect(predictions, anchors, DetectionSettings())
    [instances] = make_instances(detections, predictions.prototypes, None, [(100, 200)], ("a",))
    expected = torch.tensor([[0.0, 20, 100, 100], [220, 10, 200, 20], [40, 30, 80, 50]])
    torch.testing.assert_close(instances.boxes, expected)
    areas = instances.regions().areas()
    assert areas[1] == 0, "a box outside the image has no pixels"


@pytest.mark.parametrize("masks", ["prototypes", "fc", "none"])
@pytest.mark.parametrize("size", [(1, 1), (480, 640)])
def test_nothing_found(make_scene, masks, size):
    boxes = torch.tensor([[[0.1, 0.1, 0.2, 0.2]]])
    predictions, anchors = make_scene(boxes, torch.full((1, 1, 3), 0.01), prototypes=256)
    detections = detect(predictions, anchors, DetectionSettings())
    assert not detections.valid.any()
    coefficients = None if masks == "none" else detections.coefficients
    detections = type(detections)(**{**vars(detections), "coefficients": coefficients})
    prototypes = F.interpolate(predictions.prototypes, size=(69, 69))
    [instances] = make_instances(
        detections,
        prototypes if masks == "prototypes" else None,
        MaskIoUNet(3) if masks == "prototypes" else None,
        [size],
        NAMES,
    )
    assert len(instances) == 0 and instances.names == []
    assert instances.boxes.shape == (0, 4)
    assert instances.integer_boxes().shape == (0, 4)
    assert len(instances[torch.zeros(0, dtype=torch.bool)]) == 0
    if masks == "none":
        for use in (instances.regions, instances.label_image, lambda: instances.masks):
            with pytest.raises(ValueError, match="boxes only"):
                use()
    else:
        assert instances.masks.shape == (0, *size)
        assert instances.regions().areas().shape == (0,)
        assert instances.regions().offsets.tolist() == [0]
        assert torch.equal(instances.label_image(), torch.zeros(size, dtype=torch.int32))


@pytest.mark.parametrize(
    "index, expected",
    [
        (2, [2]),
        (-1, [5]),
        ([4, 1], [4, 1]),
        (slice(1, None, 2), [1, 3, 5]),
        (torch.tensor([True, False, False, True, False, False]), [0, 3]),
        (torch.tensor([5, 5]), [5, 5]),
        (torch.tensor(3), [3]),
        (np.int64(2), [2]),
        ([], []),
    ],
    ids=str,
)
def test_choosing_some(index, expected):
    instances = blobs(6, 40, 50)
    chosen = instances[index]
    assert isinstance(chosen, Instances) and len(chosen) == len(expected)
    assert chosen.names == [instances.names[i] for i in expected]
    assert torch.equal(chosen.boxes, instances.boxes[expected])
    assert torch.equal(chosen.masks, instances.masks[expected])


def test_going_through_them():
    instances = blobs(3, 40, 50)
    assert [one.names for one in instances] == [["cat"], ["dog"], ["person"]]
    with pytest.raises(IndexError):
        instances[3]


def test_to_another_device():
    instances = blobs(3, 40, 50)
    moved = instances.to("meta")
    for name in ("boxes", "scores", "mask_scores", "class_ids"):
        assert getattr(moved, name).is_meta
    assert moved.stored_masks.values.is_meta
    with pytest.raises(IndexError):  # by the host: a GPU would be lost to the process
        moved[3]
    assert torch.equal(instances.to("cpu").masks, instances.masks)


def test_masks_are_counted_from_the_end_too():
    regions = blobs(3, 40, 50).regions()
    for i in range(3):
        assert torch.equal(regions.mask(i - 3), regions.mask(i))
    with pytest.raises(IndexError):
        regions.mask(3)


def test_offsets_decode_to_the_boxes_they_encode():
    generator = torch.Generator().manual_seed(0)
    corner, size = torch.rand(2, 50, 2, generator=generator)
    boxes = torch.cat((corner, corner + size + 0.01), dim=1)
    anchors = torch.rand(50, 4, generator=generator) + 0.05
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes)
    # One tenth of a width to the right, and wider by e ** 0.2.
    offsets = torch.tensor([[1.0, 0, 1, 0]])
    box = decode(offsets, torch.tensor([[0.5, 0.5, 0.2, 0.4]]))[0]
    width = 0.2 * torch.e**0.2
    expected = torch.tensor([0.52 - width / 2, 0.3, 0.52 + width / 2, 0.7])
    torch.testing.assert_close(box, expected)


def test_crop_keeps_a_cell_around_the_box():
    """As published: cells whose left and top edges lie in the box, padded by one."""
    rectangle = crop_rectangles(torch.tensor([[0.25, 0.5, 0.4, 0.75]]), 20, 20)
    assert rectangle.tolist() == [[4, 9, 9, 16]]
    masks = crop(torch.ones(1, 20, 20), rectangle)
    assert masks.sum() == 5 * 7 and masks[0, 9:16, 4:9].all()


@pytest.mark.parametrize(
    "box, expected",
    [
        ([0.4, 0.75, 0.25, 0.5], [4, 9, 9, 16]),  # corners in another order
        ([-3.0, -1e30, -2, 1e30], [0, 0, 0, 20]),
        ([1.5, 0, 1.6, 1e9], [20, 0, 20, 20]),
        ([-float("inf"), -float("inf"), float("inf"), float("inf")], [0, 0, 20, 20]),
    ],
)
def test_crop_of_odd_boxes(box, expected):
    assert crop_rectangles(torch.tensor([box]), 20, 20).tolist() == [expected]
