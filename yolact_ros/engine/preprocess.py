"""Preprocessing: images to the network's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact_ros import kernels
from yolact_ros.network.config import NetworkConfig

# Mean and standard deviation of the channels in BGR order, as used to train each backbone.
_IMAGENET_BGR = ((103.94, 116.78, 123.68), (57.38, 57.12, 58.40))
NORMALISATION = {
    "resnet50": _IMAGENET_BGR,
    "resnet101": _IMAGENET_BGR,
    "darknet53": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    "efficientnet_lite0": ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
}


def preprocess(
    images: Sequence[Tensor] | Tensor,
    config: NetworkConfig,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Resize to S x S, normalise, reorder to RGB and stack.

    `images` are uint8 [H, W, 3] in BGR order, of any sizes, on one device, or one tensor
    [B, H, W, 3]. Returns `dtype` [B, 3, S, S] on that device, in channels-last memory format; it
    is written to `out` if given.
    """
    if kernels.usable(images[0], "resize_and_normalise", dtype):
        with kernels.attempt(images[0], "resize_and_normalise", dtype):
            from yolact_ros.kernels.preprocess import resize_and_normalise

            batches = [images] if isinstance(images, Tensor) else [image[None] for image in images]
            if out is None:
                shape = (len(images), 3, config.image_size, config.image_size)
                where, order = images[0].device, torch.channels_last
                out = torch.empty(shape, dtype=dtype, device=where, memory_format=order)
            for batch, part in zip(batches, out.split(len(batches[0])), strict=True):
                resize_and_normalise(batch, part, *NORMALISATION[config.backbone])
            return out
    plain = normalise(resize(images, config.image_size), config)
    return plain.to(dtype) if out is None else out.copy_(plain)


def resize(images: Sequence[Tensor] | Tensor, side: int) -> Tensor:
    """Resize images [H, W, 3] to float32 [B, 3, side, side] in the same range."""
    return torch.cat(
        [
            F.interpolate(
                image.permute(2, 0, 1)[None].float(),
                size=(side, side),
                mode="bilinear",
                align_corners=False,
            )
            for image in images
        ]
    )


def normalise(images: Tensor, config: NetworkConfig) -> Tensor:
    """Convert float BGR images [B, 3, S, S] in 0..255 to the network's normalised RGB input."""
    result = torch.empty_like(images, memory_format=torch.channels_last)
    for channel, (mean, std) in enumerate(zip(*NORMALISATION[config.backbone], strict=True)):
        torch.div(images[:, channel] - mean, std, out=result[:, 2 - channel])
    return result
