"""One real image, and one small network, for all tests of the benchmark."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from yolact_ros.benchmark.weights import random_network
from yolact_ros.engine import preprocess
from yolact_ros.network import PUBLISHED, save_weights


@pytest.fixture(scope="session")
def image(repository):
    """A photograph, uint8 [96, 128, 3]."""
    image = cv2.imread(str(repository / "yolact_ros" / "demo" / "photos" / "riders.jpg"))
    return np.asarray(cv2.resize(image, (128, 96)), np.uint8)


@pytest.fixture(scope="session")
def small_net(image):
    """A YOLACT++ ResNet-50 of 256 x 256 pixels, of random weights that find things."""
    config = PUBLISHED["yolact_plus_resnet50"].replace(name="small", image_size=256)
    return random_network(config, preprocess([torch.from_numpy(image)], config))


@pytest.fixture(scope="session")
def small_weights(small_net, tmp_path_factory):
    """Its file."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(small_net, path)
    return path
