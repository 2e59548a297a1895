"""Predictions made by hand, for networks that need not exist."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yolact_ros.detection.boxes import encode
from yolact_ros.network import Predictions

Scene = tuple[Predictions, Tensor]


def scene(boxes: Tensor, scores: Tensor, prototypes: int = 4, seed: int = 0) -> Scene:
    """Predictions and anchors that decode to these boxes and scores.

    boxes [B, P, 4] (x1, y1, x2, y2) relative to the image; scores [B, P, C], of sums below 1.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, count = boxes.shape[:2]
    anchors = torch.cat(
        (torch.rand(count, 2, generator=generator), torch.full((count, 2), 0.25)), dim=1
    )
    background = 1 - scores.sum(dim=-1, keepdim=True)
    return (
        Predictions(
            class_logits=torch.cat((background, scores), dim=-1).log(),
            box_offsets=encode(boxes, anchors),
            coefficients=torch.rand(batch, count, prototypes, generator=generator) * 2 - 1,
            prototypes=torch.rand(batch, prototypes, 20, 24, generator=generator) * 3,
        ),
        anchors,
    )


@pytest.fixture(scope="session")
def make_scene():
    return scene


@pytest.fixture(scope="session")
def random_scene():
    """A function: crowded random predictions for images, anchors and classes."""

    def make(batch: int, count: int, classes: int, seed: int = 0) -> Scene:
        generator = torch.Generator().manual_seed(seed)
        places = torch.rand(8, 2, generator=generator)  # few places, so that boxes overlap
        centres = places[torch.randint(8, (batch, count), generator=generator)]
        centres = centres + 0.05 * torch.randn(batch, count, 2, generator=generator)
        sizes = 0.1 + 0.3 * torch.rand(batch, count, 2, generator=generator)
        scores = torch.rand(batch, count, classes, generator=generator) ** 3 / (classes + 1)
        boxes = torch.cat((centres - sizes / 2, centres + sizes / 2), dim=-1)
        return scene(boxes, scores, seed=seed)

    return make
