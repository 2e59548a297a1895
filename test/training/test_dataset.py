"""Images, masks and boxes stay together through augmentation, in an order that repeats."""

import dataclasses
import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from yolact_ros.data import DataError, DataSource
from yolact_ros.training import augmentation
from yolact_ros.training.augmentation import (
    NO_AUGMENTATION,
    AugmentationSettings,
    Sample,
    augment,
    paste,
)
from yolact_ros.training.dataset import (
    Draw,
    InstanceDataset,
    PackedRecords,
    TrainingOrder,
    load_sample,
)


def coloured_sample(crowd=False):
    """Each object has a colour of its own, so that its place can be read from the image."""
    image = torch.zeros(3, 120, 160, dtype=torch.uint8)
    masks = torch.zeros(3, 120, 160, dtype=torch.uint8)
    boxes = torch.tensor([[10, 10, 60, 50], [70, 20, 150, 110], [5, 70, 50, 115]])
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        masks[i, y1:y2, x1:x2] = 1
        image[i, y1:y2, x1:x2] = 200
    return Sample(
        image=tv_tensors.Image(image),
        boxes=tv_tensors.BoundingBoxes(boxes.float(), format="XYXY", canvas_size=(120, 160)),
        masks=tv_tensors.Mask(masks),
        labels=torch.tensor([0, 1, 2]),
        crowd=torch.tensor([False, False, crowd]),
    )


@pytest.mark.parametrize("seed", range(20))
def test_masks_and_boxes_follow_the_image(seed):
    torch.manual_seed(seed)
    settings = AugmentationSettings(photometric=False)
    sample = augment(coloured_sample(), 128, settings)
    assert sample.image.shape == (3, 128, 128) and sample.masks.shape[1:] == (128, 128)
    target = sample.target()
    assert len(target) == len(target.boxes) == len(target.masks) >= 1
    for label, mask, box in zip(target.labels, target.masks, target.boxes * 128, strict=True):
        painted = sample.image[label] > 150  # the fill of expanded images is darker
        wrong = (painted != mask.bool()).sum().item()
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        edge = 2 * (len(rows) + len(columns))
        assert wrong <= 1.2 * edge + 4, "all but one pixel along the edge agree"
        tight = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert (box - tight).abs().max() <= 1.5


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("side", [137, 550])
def test_masks_are_not_moved(side, mirror):
    """Against their boxes: not even by half a pixel, as torchvision would move them."""
    settings = dataclasses.replace(NO_AUGMENTATION, mirror=mirror)
    shifts = []
    for seed in range(4):
        torch.manual_seed(seed)
        target = augment(coloured_sample(), side, settings).target()
        for mask, box in zip(target.masks, target.boxes * side, strict=True):
            rows, columns = mask.nonzero().float().add(0.5).mean(dim=0)
            shifts.append(torch.stack([columns, rows]) - (box[:2] + box[2:]) / 2)
    assert torch.stack(shifts).mean(dim=0).abs().max() < 0.2


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 1.5])
def test_saturation_is_that_of_hsv(factor, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    hsv = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = (hsv[..., 1] * factor).clip(0, 1)
    expected = 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    monkeypatch.setattr(Tensor, "uniform_", lambda self, low, high: self.fill_(factor))
    changed = augmentation._saturate(tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)))
    assert np.abs(changed.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_nothing_changes_without_augmentation():
    sample = augment(coloured_sample(), 160, NO_AUGMENTATION)
    assert sample.labels.tolist() == [0, 1, 2]
    expected = torch.tensor([10 / 160, 10 / 120, 60 / 160, 50 / 120])
    torch.testing.assert_close(sample.target().boxes[0], expected)


def test_small_boxes_are_dropped():
    settings = dataclasses.replace(NO_AUGMENTATION, smallest_box=30)
    sample = augment(coloured_sample(), 80, settings)  # boxes of 25 x 27, 40 x 60 and 22 x 30
    assert sample.labels.tolist() == [1]


def test_crowds_are_boxes_alone():
    target = augment(coloured_sample(crowd=True), 160, NO_AUGMENTATION).target()
    assert target.labels.tolist() == [0, 1]
    torch.testing.assert_close(
        target.crowd_boxes, torch.tensor([[5 / 160, 70 / 120, 50 / 160, 115 / 120]])
    )


@pytest.mark.parametrize("size", [400, 416, 550])
@pytest.mark.parametrize("over", [0, 0.5])
def test_objects_at_the_edges_stay(size, over):
    """Widths for which width * (size / width) is rounded up, and boxes half a pixel outside."""
    masks = torch.zeros(4, 90, 170, dtype=torch.uint8)
    masks[0, :, :60], masks[1, :40], masks[2, :, 100:], masks[3, 50:] = 1, 1, 1, 1
    boxes = [[0, 0, 60, 90], [0, 0, 170, 40], [100, 0, 170, 90], [0, 50, 170, 90]]
    outwards = torch.tensor([[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) * over
    sample = Sample(
        image=tv_tensors.Image(torch.zeros(3, 90, 170, dtype=torch.uint8)),
        boxes=tv_tensors.BoundingBoxes(
            torch.tensor(boxes) + outwards, format="XYXY", canvas_size=(90, 170)
        ),
        masks=tv_tensors.Mask(masks),
        labels=torch.arange(4),
        crowd=torch.zeros(4, dtype=torch.bool),
    )
    target = augment(sample, size, NO_AUGMENTATION).target()
    assert target.labels.tolist() == [0, 1, 2, 3]
    assert target.boxes.min() == 0 and target.boxes.max() == 1


def test_a_crop_holds_an_object_and_not_just_a_crowd():
    sample = coloured_sample(crowd=True)
    sample.boxes[2] = torch.tensor([0.0, 0, 160, 120])
    sample = dataclasses.replace(
        sample,
        boxes=tv_tensors.wrap(sample.boxes[[0, 2]], like=sample.boxes),
        masks=tv_tensors.Mask(sample.masks[[0, 2]]),
        labels=sample.labels[[0, 2]],
        crowd=sample.crowd[[0, 2]],
    )
    settings = AugmentationSettings(photometric=False, expand=1)
    for seed in range(60):
        torch.manual_seed(seed)
        assert len(augment(sample, 128, settings).target()) == 1
    alone = dataclasses.replace(sample, crowd=torch.tensor([True, True]))
    assert torch.equal(augment(alone, 128, settings).crowd, alone.crowd), "there is nothing to hold"


def test_what_pasting_leaves_of_an_object_is_not_too_small():
    sample, donor = coloured_sample(), coloured_sample()
    left = donor.masks.clone()
    left[0, :, 58:60] = 0  # two columns of the object below remain
    donor = dataclasses.replace(donor, masks=tv_tensors.Mask(left))
    settings = dataclasses.replace(NO_AUGMENTATION, smallest_box=4)
    counts = set()
    for seed in range(8):
        torch.manual_seed(seed)
        sizes = augment(sample, 160, settings, donor).target().boxes * 160
        counts.add(len(sizes))
        assert (sizes[:, 2:] - sizes[:, :2]).min() >= 4
    assert counts == {3}


def test_pasted_objects_hide_what_is_below():
    sample, donor = coloured_sample(), coloured_sample()
    donor = Sample(**{**vars(donor), "labels": torch.tensor([7, 7, 7])})
    torch.manual_seed(1)
    result = paste(sample, donor)
    pasted = result.labels == 7
    assert 0 < pasted.sum() < 3
    total = result.masks.as_subclass(torch.Tensor).sum(dim=0)
    assert total.max() == 1, "no pixel belongs to two objects"
    # The donor's objects lie where the image's own were: those are hidden entirely.
    assert len(result.target()) == 3


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"expand=0\.5"):
        AugmentationSettings(expand=0.5)


def test_an_image_of_another_size_is_refused(shapes):
    record = DataSource.parse(str(shapes)).read().records(["disc"])[0]
    with pytest.raises(DataError, match="its entry says 97 x 96"):
        load_sample(dataclasses.replace(record, width=97))


def test_images_much_larger_than_the_input_are_shrunk_with_their_objects(shapes):
    record = DataSource.parse(str(shapes)).read().records(["disc", "square"])[0]
    whole, same, small = (load_sample(record, largest) for largest in (None, 96, 36))
    assert all(torch.equal(value, vars(same)[name]) for name, value in vars(whole).items())
    assert small.image.shape == (3, 36, 36) and small.masks.shape == (2, 36, 36)
    assert small.boxes.canvas_size == (36, 36)
    torch.testing.assert_close(small.boxes * 96 / 36, whole.boxes)
    for mask, box in zip(small.masks, small.boxes, strict=True):
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        tight = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert mask.max() == 1 and (box.as_subclass(torch.Tensor) - tight).abs().max() <= 1


def test_the_seed_alone_decides(shapes):
    records = DataSource.parse(str(shapes)).read().records(["disc", "square"])
    data = InstanceDataset(records, 64, AugmentationSettings(copy_paste=0.5))
    torch.manual_seed(0)
    first, target, path = data[Draw(2, 11)]
    torch.manual_seed(1)
    again, same, _ = data[Draw(2, 11)]
    assert torch.equal(first, again) and torch.equal(target.boxes, same.boxes)
    assert not torch.equal(first, data[Draw(2, 12)][0])
    plain = InstanceDataset(records, 96, NO_AUGMENTATION)[Draw(2, 0)][0]
    assert np.array_equal(plain.numpy(), cv2.imread(str(path))), "BGR, as stored"


def test_packed_records_are_the_records(shapes):
    records = DataSource.parse(str(shapes)).read().records(["disc", "square"])
    packed = PackedRecords(records)
    assert len(packed) == len(records) and list(packed) == records
    assert packed[len(records) - 1] == records[-1]
    with pytest.raises(IndexError):
        packed[len(records)]
    assert len(PackedRecords([])) == 0


@pytest.mark.parametrize("most", [2.0, 4.0])
def test_half_of_the_images_are_put_on_a_canvas(most):
    """As large as the settings say at most, and the object of 80 of 160 columns with it."""
    settings = dataclasses.replace(NO_AUGMENTATION, expand=most, smallest_box=1)
    times = []
    for seed in range(100):
        torch.manual_seed(seed)
        left, _, right, _ = augment(coloured_sample(), 256, settings).boxes[1].tolist()
        times.append(128 / (right - left))
    assert 30 <= sum(each > 1.001 for each in times) <= 70
    assert 0.9 * most < max(times) < 1.02 * most, "rounded to whole pixels"


def test_every_image_comes_once_an_epoch():
    order = [draw for batch in TrainingOrder(10, 4, steps=5) for draw in batch]
    images = [draw.image for draw in order]
    assert sorted(images[:10]) == sorted(images[10:]) == list(range(10))
    assert images[:10] != images[10:]
    assert len({draw.seed for draw in order}) == 20


def test_the_last_images_are_plain(shapes):
    batches = list(TrainingOrder(10, 2, steps=5, plain_from=3))
    assert [draw.plain for batch in batches for draw in batch] == [False] * 6 + [True] * 4
    records = DataSource.parse(str(shapes)).read().records(["disc", "square"])
    settings = dataclasses.replace(NO_AUGMENTATION, expand=4, copy_paste=1)
    data = InstanceDataset(records, 96, settings)
    for seed in range(5):
        image, target, path = data[Draw(1, seed, plain=True)]
        assert np.array_equal(image.numpy(), cv2.imread(str(path))) and len(target) == 2


def test_the_order_resumes_and_is_shared_out():
    whole = list(TrainingOrder(10, 4, steps=9, seed=3))
    assert list(TrainingOrder(10, 4, steps=9, seed=3, start=5)) == whole[5:]
    shares = [list(TrainingOrder(10, 4, 9, seed=3, rank=i, world_size=2)) for i in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(parts[0] + parts[1]) == sorted(batch)
    with pytest.raises(ValueError, match="batch_size=5"):
        TrainingOrder(10, 5, 9, world_size=2)


def one_object(side, height=240, width=320):
    """A grey image with a square object in its middle."""
    masks = torch.zeros(1, height, width, dtype=torch.uint8)
    x, y = width // 2, height // 2
    masks[0, y : y + side, x : x + side] = 1
    box = torch.tensor([[x, y, x + side, y + side]], dtype=torch.float32)
    return Sample(
        image=tv_tensors.Image(torch.full((3, height, width), 100, dtype=torch.uint8)),
        boxes=tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=(height, width)),
        masks=tv_tensors.Mask(masks),
        labels=torch.tensor([0]),
        crowd=torch.tensor([False]),
    )


@pytest.mark.parametrize("side", [10, 100])
def test_crops_are_the_published_ones(side):
    """One image in six stays whole, whatever the object's size; so small ones are enlarged."""
    settings = dataclasses.replace(NO_AUGMENTATION, crop=True, smallest_box=1)
    enlarged = []
    for seed in range(300):
        torch.manual_seed(seed)
        (x1, y1, x2, y2) = augment(one_object(side), 64, settings).target().boxes[0].tolist()
        enlarged.append((x2 - x1) * (y2 - y1) * 320 * 240 / side**2)
    assert 0.1 < sum(abs(each - 1) < 1e-3 for each in enlarged) / 300 < 0.25
    assert np.median(enlarged) > 1.4


def test_crowds_do_not_keep_images_whole():
    """Crops without an object are drawn again; whether to crop is not."""
    sample = one_object(12, height=120, width=160)
    crowd = torch.tensor([[30.0, 20, 158, 118]])
    boxes = torch.cat([torch.tensor([[2.0, 2, 14, 14]]), crowd])
    sample = dataclasses.replace(
        sample,
        boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(120, 160)),
        masks=tv_tensors.Mask(torch.ones(2, 120, 160, dtype=torch.uint8)),
        labels=torch.tensor([0, 0]),
        crowd=torch.tensor([False, True]),
    )
    settings, whole = dataclasses.replace(NO_AUGMENTATION, crop=True, smallest_box=1), 0
    for seed in range(200):
        torch.manual_seed(seed)
        target = augment(sample, 64, settings).target()
        (x1, _, x2, _) = target.boxes[0].tolist()
        whole += abs((x2 - x1) * 160 - 12) < 0.01
    assert 0.08 < whole / 200 < 0.27


@pytest.mark.parametrize("width", [640, 3000])
def test_objects_of_less_than_a_pixel_are_no_reason_to_search_for_a_crop(width):
    sample = one_object(1, height=240, width=width)
    boxes = sample.boxes.as_subclass(torch.Tensor) - torch.tensor([0, 0, 0.5, 0])
    canvas = {"format": "XYXY", "canvas_size": (240, width)}
    sample = dataclasses.replace(sample, boxes=tv_tensors.BoundingBoxes(boxes, **canvas))
    settings = dataclasses.replace(NO_AUGMENTATION, crop=True)
    for seed in range(10):
        torch.manual_seed(seed)
        assert len(augment(sample, 64, settings).target()) == 0


def test_brightness_and_contrast_change_what_a_camera_would():
    """SSD adds up to 32 and multiplies by 0.5 to 1.5, each for half of the images."""
    settings = dataclasses.replace(NO_AUGMENTATION, photometric=True)
    means = []
    for seed in range(200):
        torch.manual_seed(seed)
        means.append(augment(one_object(50), 64, settings).image.float().mean().item())
    assert sum(abs(mean - 100) < 0.5 for mean in means) > 30
    assert min(means) < 55 and max(means) > 150 and 15 < np.std(means) < 35


def test_flat_images_stay_whole():
    sample = one_object(1, height=3, width=200)
    for seed in range(40):
        torch.manual_seed(seed)
        assert augment(sample, 64, AugmentationSettings()).image.shape == (3, 64, 64)


def test_half_of_the_images_are_mirrored():
    settings, left = dataclasses.replace(NO_AUGMENTATION, mirror=True), []
    for seed in range(100):
        torch.manual_seed(seed)
        left.append(round(augment(coloured_sample(), 160, settings).boxes[0, 0].item()))
    assert set(left) == {10, 100} and 30 <= left.count(100) <= 70


def test_hue_and_saturation_change():
    image = torch.tensor([150, 110, 90], dtype=torch.uint8).view(3, 1, 1).expand(3, 120, 160)
    sample = dataclasses.replace(coloured_sample(), image=tv_tensors.Image(image.clone()))
    settings = dataclasses.replace(NO_AUGMENTATION, photometric=True)
    hues, chromas = [], []
    for seed in range(200):
        torch.manual_seed(seed)
        r, g, b = augment(sample, 64, settings).image[:, 32, 32].tolist()
        chroma = max(r, g, b) - min(r, g, b)
        hues.append((g - b) / max(chroma, 1) if r == max(r, g, b) else math.inf)
        chromas.append(chroma)
    changed = (np.abs(np.array(hues) - 1 / 3) > 0.08).mean()
    assert 0.2 < changed < 0.7, "half of them, and not all by much"
    assert min(chromas) < 0.4 * 60 and max(chromas) > 1.7 * 60


def test_objects_are_pasted_into_the_share_of_images_that_was_asked_for(shapes):
    records = DataSource.parse(str(shapes)).read().records(["disc", "square"])

    def share(probability):
        settings = dataclasses.replace(NO_AUGMENTATION, copy_paste=probability)
        data = InstanceDataset(records, 96, settings)
        plain = data[Draw(1, 0, plain=True)][0]
        return np.mean([not torch.equal(data[Draw(1, seed)][0], plain) for seed in range(60)])

    never, half, always = (share(each) for each in (0, 0.5, 1))
    assert never == 0 and 0.15 < half < 0.6 < always
