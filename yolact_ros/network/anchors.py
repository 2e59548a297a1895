"""Anchors (called priors in the published code)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from yolact_ros.network.config import BASE_IMAGE_SIZE, NetworkConfig


def feature_sizes(image_size: int) -> tuple[int, ...]:
    """Return the sides of the square feature maps P3 to P7, each half the last, rounded up."""
    sizes = [image_size]
    for _ in range(7):
        sizes.append((sizes[-1] + 1) // 2)
    return tuple(sizes[3:])


def scales_in_pixels(config: NetworkConfig) -> tuple[float, ...]:
    """Return the anchor scales of P3 to P7 in input pixels, truncated as in the published code."""
    if config.image_size == BASE_IMAGE_SIZE:
        return config.anchor_scales
    return tuple(int(s / BASE_IMAGE_SIZE * config.image_size) for s in config.anchor_scales)


def make_anchors(config: NetworkConfig) -> Tensor:
    """Make all anchors, float32 [P, 4], as (cx, cy, w, h) relative to the image.

    They are ordered like the head's outputs: by level, row, column, octave and ratio.
    """
    octaves = 2 ** (np.arange(config.anchor_octaves) / 3)
    root_ratios = np.sqrt(np.array(config.anchor_ratios))
    levels = []
    for size, scale in zip(feature_sizes(config.image_size), scales_in_pixels(config), strict=True):
        centres = (np.arange(size) + 0.5) / size
        widths = np.outer(scale * octaves, root_ratios).ravel() / config.image_size
        heights = np.outer(scale * octaves, 1 / root_ratios).ravel() / config.image_size
        level = np.empty((size, size, config.anchors_per_cell, 4))
        level[..., 0] = centres[None, :, None]
        level[..., 1] = centres[:, None, None]
        level[..., 2] = widths
        level[..., 3] = widths if config.square_anchors else heights
        levels.append(level.reshape(-1, 4))
    return torch.from_numpy(np.concatenate(levels).astype(np.float32))
