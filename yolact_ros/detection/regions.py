"""Masks at the resolution of the source image, made only where they can be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Pixels that are sampled at once: bounds the memory that large images take.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class MaskRegions:
    """Binary masks of n instances, each in its own rectangle of the source image."""

    rectangles: Tensor
    """[n, 4] int64 (x1, y1, x2, y2) in source pixels; outside it a mask is empty."""
    pixels: Tensor
    """Flat bool: the rectangles' pixels, row by row, one rectangle after the other."""
    offsets: Tensor
    """[n + 1] int64: mask i is pixels[offsets[i]:offsets[i + 1]] of shape (y2 - y1, x2 - x1)."""

    def mask(self, i: int) -> Tensor:
        """Mask i in its rectangle, bool [y2 - y1, x2 - x1]."""
        x1, y1, x2, y2 = self.rectangles[i].tolist()
        return self.pixels[self.offsets[i] : self.offsets[i + 1]].view(y2 - y1, x2 - x1)

    def areas(self) -> Tensor:
        """Pixels of each mask, [n] int64."""
        total = torch.nn.functional.pad(self.pixels.cumsum(0), (1, 0))
        return total[self.offsets[1:]] - total[self.offsets[:-1]]

    def positions(self, width: int) -> tuple[Tensor, Tensor]:
        """Every set pixel of every mask: its instance and its flat index in an image of `width`."""
        index = self.pixels.nonzero().squeeze(1)
        instance = torch.searchsorted(self.offsets, index, right=True) - 1
        x1, y1, x2, _ = self.rectangles[instance].unbind(1)
        inner = index - self.offsets[instance]
        columns = x2 - x1
        return instance, (y1 + inner // columns) * width + x1 + inner % columns


@dataclass(frozen=True)
class SmallMasks:
    """Masks of n instances, each a small grid that covers a rectangle of the source image."""

    values: Tensor
    """[n, h, w] in 0..1."""
    extents: Tensor
    """[n, 4] float (x1, y1, x2, y2): what each grid covers, in source pixels."""
    cells: Tensor
    """[n, 4] int64 (x1, y1, x2, y2): the cells of each grid that may be other than 0."""

    def __getitem__(self, index: Tensor | slice | list[int]) -> SmallMasks:
        return SmallMasks(self.values[index], self.extents[index], self.cells[index])

    def to(self, device: torch.device | str) -> SmallMasks:
        """The same on another device."""
        return SmallMasks(self.values.to(device), self.extents.to(device), self.cells.to(device))

    def regions(self, height: int, width: int) -> MaskRegions:
        """Sample the masks (bilinear, above one half) at the pixels of a height x width image."""
        rectangles = self._rectangles(height, width)
        areas = (rectangles[:, 2] - rectangles[:, 0]) * (rectangles[:, 3] - rectangles[:, 1])
        offsets = torch.nn.functional.pad(areas.cumsum(0), (1, 0))
        pixels = torch.empty(int(offsets[-1]), dtype=torch.bool, device=self.values.device)
        for start, end in _chunks(offsets.tolist()):
            part = slice(start, end)
            pixels[offsets[start] : offsets[end]] = _sample(
                self.values[part], self.extents[part], rectangles[part]
            )
        return MaskRegions(rectangles, pixels, offsets)

    def _rectangles(self, height: int, width: int) -> Tensor:
        """Source pixels [n, 4] outside of which no sample can exceed one half.

        A sample does only within half a cell of a cell's centre: inside the cells themselves.
        """
        h, w = self.values.shape[1:]
        cell = (self.extents[:, 2:] - self.extents[:, :2]) / self.extents.new_tensor((w, h))
        low = (self.extents[:, :2] + self.cells[:, :2] * cell).floor()
        high = (self.extents[:, :2] + self.cells[:, 2:] * cell).ceil()
        limit = self.extents.new_tensor((width, height))
        low = torch.minimum(low.clamp(min=0), limit)
        high = torch.maximum(torch.minimum(high, limit), low)
        return torch.cat((low, high), dim=1).long()


def _chunks(offsets: list[int]) -> list[tuple[int, int]]:
    """Runs of instances whose pixels together stay below the chunk, or single instances."""
    runs, start = [], 0
    for end in range(1, len(offsets)):
        if end - start > 1 and offsets[end] - offsets[start] > _CHUNK:
            runs.append((start, end - 1))
            start = end - 1
    if len(offsets) > 1:
        runs.append((start, len(offsets) - 1))
    return runs


def _sample(values: Tensor, extents: Tensor, rectangles: Tensor) -> Tensor:
    """Flat bool pixels of all rectangles: interpolated down the rows first, then along them."""
    n, h, w = values.shape
    x1, y1, x2, y2 = rectangles.unbind(1)
    row_instance, row_y = _ranges(y1, y2)
    top, bottom, share = _neighbours(row_y, extents[row_instance, 1], extents[row_instance, 3], h)
    flat = values.reshape(n * h, w)
    base = row_instance * h
    rows = torch.lerp(flat[base + top], flat[base + bottom], share.unsqueeze(1))  # [R, w]

    column_instance, column_x = _ranges(x1, x2)
    left, right, share = _neighbours(
        column_x, extents[column_instance, 0], extents[column_instance, 2], w
    )
    widths = x2 - x1
    first_column = widths.cumsum(0) - widths
    pixel_row, column = _ranges(
        first_column[row_instance], first_column[row_instance] + widths[row_instance]
    )
    row_start = pixel_row * w
    rows = rows.flatten()
    pixels = torch.lerp(
        rows[row_start + left[column]], rows[row_start + right[column]], share[column]
    )
    return pixels > 0.5


def _ranges(starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """All integers of many ranges: the number of the range and the integer, [sum of lengths]."""
    lengths = ends - starts
    which = torch.repeat_interleave(lengths)
    before = lengths.cumsum(0) - lengths
    return which, torch.arange(len(which), device=starts.device) + (starts - before)[which]


def _neighbours(
    pixel: Tensor, low: Tensor, high: Tensor, cells: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The two cells between whose centres a pixel's centre lies, and the second one's share."""
    position = ((pixel + 0.5 - low) * (cells / (high - low)) - 0.5).clamp_(0, cells - 1)
    first = position.floor()
    return first.long(), (first + 1).clamp_(max=cells - 1).long(), position - first
