"""Deterministic weights for comparing two implementations of the same network.

The values depend on nothing but a parameter's official name and shape, so any implementation that
can load an official checkpoint can be filled with them and compared with the stored outputs.
"""

import zlib

import numpy as np


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the float32 array that stands for the official parameter `name` of `shape`."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    if name.endswith("running_var"):
        return rng.uniform(0.6, 1.4, shape).astype(np.float32)
    if name.endswith("running_mean"):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    if len(shape) == 1:
        if name.endswith(
            ".weight"
        ):  # a batch norm's scale; small on the last one of a residual block
            scale = 0.25 if ".bn3." in name or name.endswith("conv2.1.weight") else 1.0
            return (scale * rng.uniform(0.6, 1.4, shape)).astype(np.float32)
        return (0.05 * rng.standard_normal(shape)).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    gain = 2.0
    if "conv_offset_mask" in name:  # offsets of about a pixel, so that deformation matters
        gain = 0.3
    elif "conf_layer" in name:  # spread the class scores out, so that some pass the threshold
        gain = 0.12
    elif "bbox_layer" in name:
        gain = 0.02
    elif "mask_layer" in name:
        gain = 0.05
    return (np.sqrt(gain / fan_in) * rng.standard_normal(shape)).astype(np.float32)


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a smooth, colourful uint8 BGR test image [height, width, 3] made of `seed` alone."""
    rng = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.zeros((height, width, 3))
    for channel in range(3):
        for _ in range(12):
            fx, fy, phase = rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05), rng.uniform(0, 6.28)
            out[..., channel] += np.sin(fx * x + fy * y + phase)
    for _ in range(25):  # flat discs give the image edges
        cy, cx, r = (
            rng.uniform(0, height),
            rng.uniform(0, width),
            rng.uniform(8, 0.15 * min(height, width)),
        )
        out[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = rng.uniform(-4, 4, 3)
    out = (out - out.min()) / (out.max() - out.min())
    return np.round(out * 255).astype(np.uint8)


def targets(height: int, width: int, seed: int = 0, count: int = 4, num_classes: int = 80):
    """Return ground truth for one image: boxes, 0-based labels and elliptical masks.

    boxes [count, 4] float32 as (x1, y1, x2, y2) relative to the image, labels [count] int64,
    masks [count, height, width] uint8.
    """
    rng = np.random.Generator(np.random.PCG64(1000 + seed))
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    boxes, labels, masks = [], [], []
    for _ in range(count):
        cy, cx = rng.uniform(0.25, 0.75) * height, rng.uniform(0.25, 0.75) * width
        ry, rx = rng.uniform(0.05, 0.22) * height, rng.uniform(0.05, 0.22) * width
        mask = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append(
            [cols[0] / width, rows[0] / height, (cols[-1] + 1) / width, (rows[-1] + 1) / height]
        )
        labels.append(int(rng.integers(num_classes)))
        masks.append(mask)
    return np.array(boxes, np.float32), np.array(labels, np.int64), np.stack(masks).astype(np.uint8)
