"""Random weights do the work of trained ones."""

import pytest
import torch

from yolact_ros.benchmark.weights import CANDIDATES, random_network
from yolact_ros.engine import Segmenter, preprocess
from yolact_ros.network import EMBEDDED


def candidates(net, batch):
    scores = net(batch).class_logits.softmax(-1)[..., 1:].amax(-1)
    return int((scores > 0.05).sum())


def test_so_many_candidates_as_promised(small_net, image):
    batch = preprocess([torch.from_numpy(image)], small_net.config)
    with torch.no_grad():
        assert candidates(small_net, batch) == pytest.approx(CANDIDATES, abs=2)


def test_one_class_and_another_backbone(image):
    config = EMBEDDED.replace(image_size=128, mask_rescoring=False)
    batch = preprocess([torch.from_numpy(image)], config)
    net = random_network(config, batch)
    with torch.no_grad():
        assert candidates(net, batch) == pytest.approx(CANDIDATES, abs=2)
        predictions = net(batch)
    assert predictions.box_offsets.std() == pytest.approx(0.5, rel=0.1)
    assert 0.1 < predictions.coefficients.std() < 0.9


def test_instances_have_masks(small_weights, image):
    found = Segmenter(weights=small_weights, backend="torch", score_threshold=0)(image)
    assert len(found) == 100
    assert (found.masks.flatten(1).sum(1) > 0).sum() > 50


def test_rounding_stays_small_through_deformable_layers(small_net, image):
    """Otherwise no two implementations would find the same."""
    batch = preprocess([torch.from_numpy(image)], small_net.config)
    with torch.no_grad():
        plain, moved = small_net(batch), small_net(batch + 1e-6 * torch.randn_like(batch))
    assert (plain.class_logits - moved.class_logits).abs().max() < 0.05


def test_the_weights_are_the_same_each_time(image):
    config = EMBEDDED.replace(image_size=128, mask_rescoring=False)
    batch = preprocess([torch.from_numpy(image)], config)
    state = torch.get_rng_state()
    a, b = (random_network(config, batch).head.boxes.weight for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)
