"""Samples small masks at the pixels of the source image, each within its rectangle."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

_IN_CACHE = 1 << 16
"""Number of pixels interpolated at once, which fit into the processor's cache."""


def sample(
    grids: Floats,
    extents: Sequence[Sequence[float]],
    rectangles: Integers,
    image_size: tuple[int, int],
) -> NDArray[np.bool_]:
    """Compute where grids exceed one half after bilinear interpolation.

    Args:
        grids: [n, h, w] in 0..1.
        extents: (x1, y1, x2, y2) for each grid: the area that it covers, in source pixels.
        rectangles: [n, 4] (x1, y1, x2, y2): the pixels to sample, inside the image.
        image_size: (height, width) of the image.

    Returns:
        The pixels of all rectangles, row by row, one rectangle after another.
    """
    ends = (rectangles[:, 2:] - rectangles[:, :2]).prod(axis=1).cumsum().tolist()
    pixels = np.empty(ends[-1] if ends else 0, np.bool_)
    start = 0
    for grid, (left, top, right, bottom), (x1, y1, x2, y2), end in zip(
        grids, extents, rectangles.tolist(), ends, strict=True
    ):
        if start == end:
            continue
        columns = _taps(image_size[1], left, right, grid.shape[1])[x1:x2]
        rows = _taps(image_size[0], top, bottom, grid.shape[0])[y1:y2]
        near = grid[rows.first[0] : rows.second[-1] + 1]
        lines = columns.interpolate(near, axis=1)
        rows = rows.counted_from(rows.first[0])
        out = pixels[start:end].reshape(y2 - y1, x2 - x1)
        step = max(1, _IN_CACHE // (x2 - x1))
        for y in range(0, y2 - y1, step):
            values = rows[y : y + step].interpolate(lines, axis=0)
            np.greater(values, 0.5, out=out[y : y + step])
        start = end
    return pixels


@dataclass(frozen=True)
class _Taps:
    """Linear interpolation along an axis: the two cells around each pixel and their weights."""

    first: Integers
    """[pixels]: index of the cell before the pixel."""
    second: Integers
    """[pixels]: index of the cell after it."""
    share: Floats
    """[pixels]: weight of the second cell, in 0..1."""

    def __getitem__(self, pixels: slice) -> _Taps:
        return _Taps(self.first[pixels], self.second[pixels], self.share[pixels])

    def counted_from(self, cell: np.int64) -> _Taps:
        """Return the taps with indices relative to `cell`."""
        return _Taps(self.first - cell, self.second - cell, self.share)

    def interpolate(self, cells: Floats, axis: int) -> Floats:
        """Interpolate cells [h, w] along `axis`, which becomes the pixels."""
        first, values = cells.take(self.first, axis), cells.take(self.second, axis)
        values -= first
        values *= self.share if axis == 1 else self.share[:, np.newaxis]
        values += first
        return values


@functools.lru_cache(maxsize=8)  # shared by all images of a camera
def _taps(length: int, low: float, high: float, count: int) -> _Taps:
    """Return the taps for `length` pixels of an axis, with `count` cells from `low` to `high`."""
    positions = (np.arange(length) + (0.5 - low)) * (count / max(high - low, 1e-6)) - 0.5
    positions = positions.clip(0, count - 1).astype(np.float32)
    first = positions.astype(np.int64)
    return _Taps(first, np.minimum(first + 1, count - 1), positions - first.astype(np.float32))
