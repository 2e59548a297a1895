"""Small masks at the pixels of the source image, each in its own rectangle."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

_IN_CACHE = 1 << 16
"""Pixels that are interpolated at once, for which the processor's cache has room."""


def sample(
    grids: Floats,
    extents: Sequence[Sequence[float]],
    rectangles: Integers,
    image_size: tuple[int, int],
) -> NDArray[np.bool_]:
    """Where grids, interpolated (bilinear), exceed one half.

    Args:
        grids: [n, h, w] in 0..1.
        extents: (x1, y1, x2, y2) of each: what it covers, in source pixels.
        rectangles: [n, 4] (x1, y1, x2, y2): the pixels wanted of each, inside the image.
        image_size: (height, width) of the image.

    Returns:
        The pixels of all rectangles, row by row, one rectangle after the other.
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
    """Linear interpolation along an axis: the two cells that each pixel lies between."""

    first: Integers
    """[pixels]: index of the cell before."""
    second: Integers
    """[pixels]: of the cell behind."""
    share: Floats
    """[pixels]: of the second, in 0..1."""

    def __getitem__(self, pixels: slice) -> _Taps:
        return _Taps(self.first[pixels], self.second[pixels], self.share[pixels])

    def counted_from(self, cell: np.int64) -> _Taps:
        """The same, where that cell is the first one."""
        return _Taps(self.first - cell, self.second - cell, self.share)

    def interpolate(self, cells: Floats, axis: int) -> Floats:
        """The pixels, in place of that axis of cells [h, w]."""
        first, values = cells.take(self.first, axis), cells.take(self.second, axis)
        values -= first
        values *= self.share if axis == 1 else self.share[:, np.newaxis]
        values += first
        return values


@functools.lru_cache(maxsize=8)  # a camera's images have them in common
def _taps(length: int, low: float, high: float, count: int) -> _Taps:
    """For `length` pixels of an axis; `count` cells divide those from `low` to `high`."""
    positions = (np.arange(length) + (0.5 - low)) * (count / max(high - low, 1e-6)) - 0.5
    positions = positions.clip(0, count - 1).astype(np.float32)
    first = positions.astype(np.int64)
    return _Taps(first, np.minimum(first + 1, count - 1), positions - first.astype(np.float32))
