"""Small masks at the pixels of the source image, those of all instances in few steps.

Few pixels need arithmetic: where the rows of a grid above and beneath a pixel are on the same side
of one half, so is the pixel. NumPy is called seldom, since a call takes longer than most of the
work that there is for one mask.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]


def sample(
    grids: Floats,
    extents: Sequence[Sequence[float]],
    rectangles: Integers,
    image_size: tuple[int, int],
) -> Bools:
    """Where grids, interpolated (bilinear), exceed one half.

    Args:
        grids: [n, h, w] in 0..1.
        extents: (x1, y1, x2, y2) of each: what it covers, in source pixels.
        rectangles: [n, 4] (x1, y1, x2, y2): the pixels wanted of each, inside the image.
        image_size: (height, width) of the image.

    Returns:
        The pixels of all rectangles, row by row, one rectangle after the other.
    """
    shown = np.flatnonzero((rectangles[:, :2] < rectangles[:, 2:]).all(axis=1))
    if not len(shown):
        return np.empty(0, np.bool_)
    if len(shown) < len(grids):
        some = [extents[i] for i in shown.tolist()]
        return sample(grids[shown], some, rectangles[shown], image_size)
    windows = _Windows.of(grids, extents, rectangles, image_size)
    pixels = np.empty(int(windows.pixel_ends[-1]), np.bool_)
    lines = np.empty(int(windows.line_ends[-1]), np.float32)
    edges = np.zeros(len(lines), np.bool_)
    _fill(windows, grids, lines, edges, pixels)
    _refine(windows, lines, edges, pixels)
    return pixels


@dataclass(frozen=True)
class _Taps:
    """Linear interpolation along one axis, for each of e extents: the two cells that each pixel
    lies between."""

    first: Integers
    """[e, pixels]"""
    second: Integers
    """[e, pixels]"""
    fraction: Floats
    """[e, pixels]: share of the second cell, in 0..1."""
    begin: Integers
    """[e, cells + 1]: the first pixel whose first cell is this one or a later one."""

    @classmethod
    @functools.lru_cache(maxsize=4)  # a camera's images have them all in common
    def of(cls, length: int, extents: tuple[tuple[float, float], ...], count: int) -> _Taps:
        """For `length` pixels of an axis, of which `count` cells divide each extent."""
        low, high = np.array(extents).T[..., np.newaxis]
        scale = count / np.maximum(high - low, 1e-6)
        positions = (np.arange(length) + (0.5 - low)) * scale - 0.5
        positions = positions.clip(0, count - 1).astype(np.float32)
        first = positions.astype(np.int64)
        cells = np.arange(count + 1)
        return cls(
            first=first,
            second=np.minimum(first + 1, count - 1),
            fraction=positions - first.astype(np.float32),
            begin=np.stack([np.searchsorted(each, cells) for each in first]),
        )


@dataclass(frozen=True)
class _Windows:
    """Where n masks get their pixels from.

    A mask has a line for each row of its grid that its pixels lie between: that row, interpolated
    for the columns of its rectangle.
    """

    rectangles: Integers
    """[n, 4]"""
    tap: Integers
    """[n]: index of its extent. Masks of prototypes all have the same, the whole image."""
    columns: _Taps
    rows: _Taps
    top: Integers
    """[n]: row of the grid that is its first line."""
    line_ends: Integers
    """[n]: where its lines end, one mask's after the other's."""
    pixel_ends: Integers
    """[n]: where its pixels end."""

    @classmethod
    def of(
        cls,
        grids: Floats,
        extents: Sequence[Sequence[float]],
        rectangles: Integers,
        image_size: tuple[int, int],
    ) -> _Windows:
        covered = [tuple(extent) for extent in extents]
        distinct = list(dict.fromkeys(covered))
        tap = np.array([distinct.index(extent) for extent in covered])
        (height, width), (_, grid_height, grid_width) = image_size, grids.shape
        columns = _Taps.of(width, tuple((x1, x2) for x1, _, x2, _ in distinct), grid_width)
        rows = _Taps.of(height, tuple((y1, y2) for _, y1, _, y2 in distinct), grid_height)
        x1, y1, x2, y2 = rectangles.T
        top, bottom = rows.first[tap, y1], rows.second[tap, y2 - 1] + 1
        return cls(
            rectangles=rectangles,
            tap=tap,
            columns=columns,
            rows=rows,
            top=top,
            line_ends=((x2 - x1) * (bottom - top)).cumsum(),
            pixel_ends=((x2 - x1) * (y2 - y1)).cumsum(),
        )


def _fill(windows: _Windows, grids: Floats, lines: Floats, edges: Bools, pixels: Bools) -> None:
    """Write the lines; of those that exceed one half, the pixels that take them for their own; and
    at which columns a line and the next are on different sides."""
    columns, rows = windows.columns, windows.rows
    line_start = pixel_start = 0
    for grid, tap, (x1, y1, x2, y2), top, line_end, pixel_end in zip(
        grids,
        windows.tap.tolist(),
        windows.rectangles.tolist(),
        windows.top.tolist(),
        windows.line_ends.tolist(),
        windows.pixel_ends.tolist(),
        strict=True,
    ):
        width = x2 - x1
        own = lines[line_start:line_end].reshape(-1, width)
        near = grid[top : top + len(own)]
        near.take(columns.first[tap, x1:x2], axis=1, out=own, mode="clip")
        rise = near.take(columns.second[tap, x1:x2], axis=1, mode="clip")
        rise -= own
        rise *= columns.fraction[tap, x1:x2]
        own += rise
        inside = own > 0.5
        line_of_row = rows.first[tap, y1:y2] - top
        out = pixels[pixel_start:pixel_end].reshape(-1, width)
        inside.take(line_of_row, axis=0, out=out, mode="clip")
        changes = edges[line_start : line_end - width].reshape(-1, width)
        np.not_equal(inside[1:], inside[:-1], out=changes)
        line_start, pixel_start = line_end, pixel_end


def _refine(windows: _Windows, lines: Floats, edges: Bools, pixels: Bools) -> None:
    """Interpolate the pixels between lines that are on different sides of one half."""
    rows = windows.rows
    x1, y1, x2, y2 = windows.rectangles.T
    found = np.flatnonzero(edges)
    mask = np.searchsorted(windows.line_ends, found, side="right")
    width = (x2 - x1)[mask]
    starts = np.concatenate(([0], windows.line_ends[:-1]))
    line, column = np.divmod(found - starts[mask], width)
    # The rows of pixels between the two.
    tap, cell = windows.tap[mask], windows.top[mask] + line
    begin = np.maximum(rows.begin[tap, cell], y1[mask])
    counts = np.minimum(rows.begin[tap, cell + 1], y2[mask]) - begin
    each = np.repeat(np.arange(len(found)), counts)
    y = np.arange(len(each)) + np.repeat(begin - (counts.cumsum() - counts), counts)
    upper = lines[found]
    rise = lines[found + width] - upper
    value = upper[each] + rise[each] * rows.fraction[tap[each], y]
    corner = np.concatenate(([0], windows.pixel_ends[:-1])) - y1 * (x2 - x1)
    pixels[(corner[mask] + column)[each] + y * width[each]] = value > 0.5
