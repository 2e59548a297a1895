"""Small networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from yolact_ros.network import EMBEDDED, NetworkConfig, Yolact, build, official_name

SMALL = EMBEDDED.replace(
    name="small",
    class_names=("cat", "dog", "person"),
    image_size=96,
    fpn_channels=16,
    mask_rescoring=False,
)


@pytest.fixture(scope="session")
def small_config() -> NetworkConfig:
    """Three classes, 96 pixels, 3.6 million parameters."""
    return SMALL


@pytest.fixture
def small_net(small_config: NetworkConfig) -> Yolact:
    return build(small_config)


@pytest.fixture
def official_shapes() -> Callable[[str], dict[str, torch.Tensor]]:
    """A function: zeros under the official names of a model, in no memory."""

    def zeros(model: str) -> dict[str, torch.Tensor]:
        with torch.device("meta"):
            state = build(model).state_dict()
        return {
            official_name(name): torch.zeros((), dtype=value.dtype).expand(value.shape)
            for name, value in state.items()
        }

    return zeros
