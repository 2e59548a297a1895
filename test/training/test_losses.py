"""The losses agree with those of the published implementation."""

import dataclasses
import importlib.util
import json
import math

import pytest
import torch
import torch.nn.functional as F

from yolact_ros.detection.masks import crop, crop_rectangles
from yolact_ros.engine.preprocess import preprocess
from yolact_ros.network import EMBEDDED, build, official_name
from yolact_ros.training.convolution import use_matrix_gradients
from yolact_ros.training.losses import (
    LossSettings,
    class_loss,
    compute_losses,
    mask_loss,
    pool_masks,
)
from yolact_ros.training.matching import Matching, match
from yolact_ros.training.targets import Target

LETTERS = {"boxes": "B", "masks": "M", "classes": "C", "semantic": "S", "mask_iou": "I"}
SMALL = EMBEDDED.replace(fpn_channels=16, mask_rescoring=False)
STORED = ("yolact_resnet50", "yolact_plus_resnet50")


@pytest.fixture(scope="module")
def reference(shared):
    path = shared / "reference" / "reference_weights.py"
    spec = importlib.util.spec_from_file_location("reference_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference_target(reference, config, seed, crowd):
    size = config.image_size
    boxes, labels, masks = map(
        torch.from_numpy, reference.targets(size, size, seed, num_classes=config.num_classes)
    )
    last = len(labels) - crowd
    return Target(boxes[:last], labels[:last], masks[:last], boxes[last:])


@pytest.mark.parametrize("name", STORED)
def test_losses_and_gradients_are_the_published_ones(shared, reference, name):
    wanted = json.loads((shared / "reference" / f"{name}.losses.json").read_text())
    net = build(name)
    use_matrix_gradients(net)
    with torch.no_grad():
        for key, value in [*net.named_parameters(), *net.named_buffers()]:
            if key != "anchors":
                official = official_name(key)
                value.copy_(torch.from_numpy(reference.fill(official, tuple(value.shape))))
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    size = net.config.image_size
    images = [torch.from_numpy(reference.image(size, size, seed)) for seed in (7, 8)]
    targets = [reference_target(reference, net.config, seed, seed == 8) for seed in (7, 8)]

    for key, parameter in net.named_parameters():  # the others' would take as long
        parameter.requires_grad_(official_name(key) in wanted["gradient_norms"])
    losses = compute_losses(net, net(preprocess(images, net.config)), targets)
    losses.total.backward()

    ours = {LETTERS[key]: loss.item() for key, loss in losses.items().items()}
    assert ours == pytest.approx(wanted["losses"], rel=1e-3)
    gradients = {official_name(key): p.grad for key, p in net.named_parameters()}
    norms = {key: gradients[key].norm().item() for key in wanted["gradient_norms"]}
    assert norms == pytest.approx(wanted["gradient_norms"], rel=1e-3)


def test_only_the_hardest_negatives_count():
    labels = torch.tensor([2, 0, 0, 0, 0, 0, -1])
    logits = torch.zeros(1, 7, 3)
    logits[0, :, 1] = torch.tensor([0.0, 1.0, 5.0, 2.0, 4.0, 3.0, 9.0])
    matching = Matching(labels, torch.zeros_like(labels))
    chosen = [0, 2, 4, 5]  # the positive one and the three least sure of background
    wanted = F.cross_entropy(logits[0, chosen], labels[chosen], reduction="sum")
    assert class_loss(logits, [matching]).item() == pytest.approx(wanted.item())


def test_images_without_objects_teach_background_when_asked():
    logits = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(0))
    matching = Matching(torch.zeros(20, dtype=torch.int64), torch.zeros(20, dtype=torch.int64))
    assert class_loss(logits, [matching]).item() == 0
    settings = LossSettings(negatives_without_objects=4)
    per_anchor = F.cross_entropy(logits[0], matching.labels, reduction="none")
    wanted = per_anchor.topk(4).values.sum().item()
    assert class_loss(logits, [matching], settings).item() == pytest.approx(wanted)


def test_mask_loss_is_the_sum_over_the_image_by_the_area_of_the_box():
    """Pixels of the object out of its box, where the mask is cut off, cost 100 and move nothing."""
    box = torch.tensor([[0.25, 0.5, 0.75, 1.0]])
    inside = torch.zeros(1, 8, 8)
    inside[0, 4:, 2:6] = 1
    uncropped = torch.full((1, 8, 8), 0.5, requires_grad=True)
    masks = uncropped * inside
    assert mask_loss(masks, inside, box).item() == pytest.approx(math.log(2))
    truth = inside.clone()
    truth[0, 4:, 6:] = 1  # eight pixels more
    loss = mask_loss(masks, truth, box)
    assert loss.item() == pytest.approx(math.log(2) + 8 * 100 / 16)
    loss.backward()
    torch.testing.assert_close(uncropped.grad, -inside / 0.5 / 16)


def test_fc_masks_learn_what_adaptive_pooling_shows_of_the_predicted_box():
    """The published loss of the baseline, object by object: table 2c."""
    torch.manual_seed(0)
    masks = (torch.rand(3, 90, 90) > 0.4).to(torch.uint8)
    windows = torch.rand(40, 4) * 1.4 - 0.2
    windows[0], windows[1] = torch.tensor([1.0, 1, 1, 1]), torch.tensor([0.3, 0.3, 0.3, 0.3])
    windows, objects = windows.clamp(0, 1), torch.randint(0, 3, (40,))
    found = pool_masks(masks, objects, windows, 16)
    for window, index, ours in zip(windows * 90, objects, found, strict=True):
        low = torch.minimum(window[:2], window[2:]).long().clamp(max=89)
        high = torch.maximum(torch.maximum(window[:2], window[2:]).long(), low + 1)
        part = masks[index, low[1] : high[1], low[0] : high[0]].double()
        assert torch.equal(ours, F.adaptive_avg_pool2d(part[None], 16)[0] > 0.5)

    net = build(SMALL, image_size=64, mask_branch="fc").train()
    target = Target(
        boxes=torch.tensor([[0.2, 0.1, 0.9, 0.9]]),
        labels=torch.tensor([0]),
        masks=torch.ones(1, 64, 64, dtype=torch.uint8),
        crowd_boxes=torch.zeros(0, 4),
    )
    predictions = net(torch.randn(1, 3, 64, 64))
    positive = match(net.anchors, target).positive
    logits = predictions.coefficients[0, positive]
    wanted = 0.4 / 256 * 140**2 * F.softplus(-logits).sum() / positive.sum()
    loss = compute_losses(net, predictions, [target]).masks
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_mask_loss_draws_some_of_many_positive_anchors(monkeypatch):
    """100 of an image as published, 300 of a large one; those left out count as these do."""
    assert [LossSettings().masks_at(size) for size in (550, 699, 700)] == [100, 100, 300]
    assert LossSettings(masks_per_image=7).masks_at(700) == 7
    costs = []

    def note(*arguments):
        costs.append(mask_loss(*arguments))
        return costs[-1]

    monkeypatch.setattr("yolact_ros.training.losses.mask_loss", note)
    torch.manual_seed(0)
    net = build(SMALL, image_size=256).train()
    corners = torch.tensor([0.0, 0.2, 0.4, 0.6])[:, None]  # each object has an anchor at least
    target = Target(
        boxes=torch.cat((corners, corners, corners + 0.3, corners + 0.4), dim=1),
        labels=torch.zeros(4, dtype=torch.int64),
        masks=torch.ones(4, 256, 256, dtype=torch.uint8),
        crowd_boxes=torch.zeros(0, 4),
    )
    predictions = net(torch.randn(1, 3, 256, 256))
    assert match(net.anchors, target).positive.sum() > 3
    settings = LossSettings(masks_per_image=3)
    loss = compute_losses(net, predictions, [target], settings).masks
    (few,) = costs
    assert len(few) == 3
    assert loss.item() == pytest.approx(6.125 * few.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, {"masks"}),
        ({"mask_rescoring": True}, {"masks", "mask_iou"}),
        ({"mask_branch": "fc"}, {"masks"}),
        ({"mask_branch": "none"}, set()),
    ],
    ids=["prototypes", "rescoring", "fc", "boxes"],
)
def test_every_mask_branch_learns_and_takes_empty_images(changes, parts):
    torch.manual_seed(0)
    net = build(SMALL, image_size=256, **changes).train()
    target = Target(
        boxes=torch.tensor([[0.2, 0.1, 0.9, 0.9]]),
        labels=torch.tensor([0]),
        masks=torch.zeros(1, 256, 256, dtype=torch.uint8),
        crowd_boxes=torch.zeros(0, 4),
    )
    target.masks[0, 30:230, 54:230] = 1
    empty = Target(*(getattr(target, f.name)[:0] for f in dataclasses.fields(Target)))
    for batch in ([target, empty], [empty, empty]):
        net.zero_grad()
        losses = compute_losses(net, net(torch.randn(2, 3, 256, 256)), batch)
        losses.total.backward()
        assert set(losses.items()) == {"classes", "boxes", "semantic"} | parts
        # Distributed training needs a gradient for every parameter in every process.
        assert [name for name, p in net.named_parameters() if p.grad is None] == []
        assert all(p.grad.isfinite().all() for p in net.parameters())
    assert losses.classes == losses.boxes == 0


@pytest.mark.parametrize("objects", [(1, 3), (0, 1), (0, 0)], ids=str)
def test_shares_of_a_batch_average_to_the_whole_batch(objects):
    """What distributed training relies on."""
    torch.manual_seed(0)
    net = build(SMALL, image_size=96).train()
    images = torch.randn(2, 3, 96, 96)
    targets = []
    for count in objects:
        boxes = torch.rand(count, 2).repeat(1, 2) * 0.5
        boxes[:, 2:] += 0.3
        masks = crop(torch.ones(count, 96, 96), crop_rectangles(boxes, 96, 96)).to(torch.uint8)
        labels = torch.zeros(count, dtype=torch.int64)
        targets.append(Target(boxes, labels, masks, torch.zeros(0, 4)))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    settings = LossSettings(negatives_without_objects=5)
    whole = compute_losses(net, net(images), targets, settings)
    counts = [match(net.anchors, target).positive.sum() for target in targets]
    mean = (sum(counts) / 2).clamp(min=1 / 2)
    shares = [
        compute_losses(net, net(images[i : i + 1]), targets[i : i + 1], settings, lambda _: mean)
        for i in range(2)
    ]
    for name, loss in whole.items().items():
        ours = sum(share.items()[name] for share in shares) / 2
        assert ours.item() == pytest.approx(loss.item(), rel=1e-4)
