"""From an image to instances, with the numbers of the published implementation.

Both sides are filled with weights that depend on the official parameter names alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from yolact_ros.detection import (
    Detections,
    DetectionSettings,
    Instances,
    detect,
    make_instances,
)
from yolact_ros.engine import preprocess
from yolact_ros.network import Predictions, build, fold_batch_norm, load_weights

HEIGHT, WIDTH = 427, 640
# The first one's outputs are in this repository, the others' in the shared folder.
MODELS = (
    "yolact_im400",
    "yolact_resnet50",
    "yolact_darknet53",
    "yolact_resnet50_pascal",
    "yolact_plus_resnet50",
)
# As they are, or one of each kind with folded batch norm, as the segmenter runs them.
RUNS = ((MODELS[0], "folded"), *((model,) for model in MODELS[1:-1]), (MODELS[-1], "folded"))


@dataclass(frozen=True)
class Run:
    """Stored outputs of the published implementation, and this one's."""

    published: dict[str, np.ndarray]
    input: torch.Tensor
    anchors: torch.Tensor
    predictions: Predictions
    detections: dict[str, Detections]
    instances: Instances


@pytest.fixture(scope="module", params=RUNS, ids=" ".join)
def run(request: pytest.FixtureRequest, repository, reference_weights: ModuleType) -> Run:
    model, *folded = request.param
    folder = repository / "test" / "reference"
    if model != MODELS[0]:
        folder = request.getfixturevalue("shared") / "reference"
    schema = json.loads((folder / f"{model}.schema.json").read_text())
    net = build(model)
    load_weights(
        net,
        {
            name: torch.from_numpy(reference_weights.fill(name, tuple(shape)))
            for name, shape in schema.items()
        },
    )
    if folded:
        net = fold_batch_norm(net)
    image = torch.from_numpy(reference_weights.image(HEIGHT, WIDTH, seed=7))
    settings = DetectionSettings()
    with torch.no_grad():
        batch = preprocess([image], net.config)
        predictions = net(batch)
        detections = {
            "fast": detect(predictions, net.anchors, settings),
            "cross": detect(predictions, net.anchors, replace(settings, nms_method="cross_class")),
        }
        [instances] = make_instances(
            detections["fast"],
            predictions.prototypes,
            net.mask_iou,
            [(HEIGHT, WIDTH)],
            net.config.class_names,
        )
    published = dict(np.load(folder / f"{model}.npz"))
    return Run(published, batch, net.anchors, predictions, detections, instances)


def assert_relative(ours: torch.Tensor, published: np.ndarray, tolerance: float) -> None:
    assert_allclose(ours.numpy(), published, rtol=0, atol=tolerance * np.abs(published).max())


def partners(
    boxes: np.ndarray, class_ids: np.ndarray, their_boxes: np.ndarray, their_ids: np.ndarray
) -> list[int]:
    """For each of their detections the nearest of ours of its class, each of ours used once."""
    left = list(range(len(boxes)))
    found = []
    for box, class_id in zip(their_boxes, their_ids, strict=True):
        distances = [
            np.abs(boxes[j] - box).max() if class_ids[j] == class_id else np.inf for j in left
        ]
        found.append(left.pop(int(np.argmin(distances))))
    return found


def test_input(run):
    assert float(run.input.abs().mean()) == pytest.approx(
        float(run.published["input_mean_abs"]), rel=1e-4
    )


def test_anchors(run):
    assert len(run.anchors) == run.published["num_priors"]
    assert_allclose(run.anchors[::7].numpy(), run.published["priors"], rtol=1e-4)


def test_network_outputs(run):
    p, published = run.predictions, run.published
    assert_relative(p.box_offsets[0, ::29], published["loc"], 1e-4)
    assert_relative(p.coefficients[0, ::29], published["mask"], 1e-4)
    assert_relative(p.prototypes[0].permute(1, 2, 0)[::6, ::6], published["proto"], 1e-4)
    probabilities = p.class_logits[0, ::29].softmax(dim=-1).numpy()
    rounding = 2.0**-11  # they are stored in half precision
    assert_allclose(probabilities, published["conf"], rtol=rounding + 1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["fast", "cross"])
def test_detections_match_one_to_one(run, method):
    ours, published = run.detections[method], run.published
    valid = ours.valid[0]
    boxes, scores = ours.boxes[0][valid].numpy(), ours.scores[0][valid].numpy()
    class_ids = ours.class_ids[0][valid].numpy()
    assert len(boxes) == len(published[f"{method}_box"])
    order = partners(boxes, class_ids, published[f"{method}_box"], published[f"{method}_class"])
    assert sorted(order) == list(range(len(boxes)))
    assert (class_ids[order] == published[f"{method}_class"]).all()
    assert_allclose(boxes[order], published[f"{method}_box"], rtol=0, atol=1e-3)
    assert_allclose(scores[order], published[f"{method}_score"], rtol=0, atol=1e-4)
    coefficients = ours.coefficients[0][valid].numpy()[order]
    assert_allclose(coefficients, published[f"{method}_coeff"], rtol=0, atol=1e-3)


@pytest.fixture
def matched(run) -> Instances:
    """Our instances in the order of the published ones."""
    found = run.detections["fast"]  # those, not cut at the image's edge
    boxes, class_ids = found.boxes[found.valid].numpy(), found.class_ids[found.valid].numpy()
    order = partners(boxes, class_ids, run.published["fast_box"], run.published["fast_class"])
    return run.instances[order]


def test_integer_boxes_and_mask_areas(run, matched):
    published = run.published
    assert_allclose(matched.integer_boxes().numpy(), published["pixel_box"], rtol=0, atol=1)
    areas = matched.regions().areas().numpy()
    assert_allclose(areas, published["mask_area"], rtol=0.005, atol=1)


def test_masks(run, matched):
    ends = run.published["rle_lengths"].cumsum()
    runs = np.split(run.published["rle_counts"], ends[:-1])
    masks = matched.masks
    for ours, lengths in zip(masks, runs, strict=False):
        values = np.arange(len(lengths)) % 2 == 1
        theirs = np.repeat(values, lengths).reshape(WIDTH, HEIGHT).T
        shared, together = (ours.numpy() & theirs).sum(), (ours.numpy() | theirs).sum()
        assert shared >= 0.995 * together
    assert len(runs) == min(30, len(masks))


def test_mask_scores(run, matched):
    """Predicted mask IoU changes the mask score, not the box score; without it both are one."""
    if "mask_score" not in run.published:
        assert torch.equal(matched.mask_scores, matched.scores)
        return
    ours = torch.stack((matched.scores, matched.mask_scores), dim=1).numpy()
    theirs = np.stack((run.published["box_score"], run.published["mask_score"]), axis=1)
    assert_allclose(ours, theirs, rtol=0, atol=1e-4)
