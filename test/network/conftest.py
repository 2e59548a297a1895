"""Small networks."""

from __future__ import annotations

import pytest

from yolact_ros.network import EMBEDDED, NetworkConfig, Yolact, build

SMALL = EMBEDDED.replace(
    name="small", class_names=("cat", "dog", "person"), image_size=96, fpn_channels=16
)


@pytest.fixture(scope="session")
def small_config() -> NetworkConfig:
    """Three classes, 96 pixels, 3.6 million parameters."""
    return SMALL


@pytest.fixture
def small_net(small_config: NetworkConfig) -> Yolact:
    return build(small_config)
