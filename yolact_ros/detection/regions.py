"""Masks at the resolution of the source image, made only where they can be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskRegions:
    """Binary masks of n instances, each in its own rectangle of the source image."""

    rectangles: Tensor
    """[n, 4] int64 (x1, y1, x2, y2) in source pixels; outside it a mask is empty."""
    pixels: Tensor
    """Flat bool: the rectangles' pixels, row by row, one rectangle after the other."""
    offsets: Tensor
    """[n + 1] int64: mask i is pixels[offsets[i]:offsets[i + 1]] of shape (y2 - y1, x2 - x1)."""

    def __len__(self) -> int:
        return len(self.rectangles)

    def mask(self, i: int) -> Tensor:
        """Mask i in its rectangle, bool [y2 - y1, x2 - x1]."""
        x1, y1, x2, y2 = self.rectangles[i].tolist()
        return self.pixels[self.offsets[i] : self.offsets[i + 1]].view(y2 - y1, x2 - x1)

    def window(self, i: int, images: Tensor) -> Tensor:
        """The part of images [..., height, width] that the rectangle of mask i covers, a view."""
        x1, y1, x2, y2 = self.rectangles[i].tolist()
        return images[..., y1:y2, x1:x2]

    def areas(self) -> Tensor:
        """Pixels of each mask, [n] int64."""
        counts = [int(self.mask(i).count_nonzero()) for i in range(len(self))]
        return torch.tensor(counts, dtype=torch.int64, device=self.pixels.device)


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
        regions = MaskRegions(rectangles, pixels, offsets)
        for i in range(len(self.values)):
            rectangle, cells = rectangles[i].tolist(), self.cells[i].tolist()
            values = _sample(self.values[i], self.extents[i].tolist(), rectangle, cells)
            torch.gt(values, 0.5, out=regions.mask(i))
        return regions

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


def _sample(grid: Tensor, extent: list[float], rectangle: list[int], cells: list[int]) -> Tensor:
    """Values of a grid [h, w] over `extent`, interpolated at the pixels of `rectangle`.

    Cells but `cells` are 0. Bilinear interpolation is linear along each axis: two matrix products.
    """
    (h, w), (x1, y1, x2, y2) = grid.shape, cells
    rows = _weights(rectangle[1::2], extent[1::2], h, [y1, y2]).to(grid)
    columns = _weights(rectangle[::2], extent[::2], w, [x1, x2]).to(grid)
    return rows @ grid[y1:y2, x1:x2] @ columns.mT


def _weights(pixels: list[int], extent: list[float], count: int, cells: list[int]) -> Tensor:
    """Weights [pixels, cells] at a range of pixels of a range of the `count` cells of an axis.

    A cell's weight is 1 at its centre and falls to 0 at the centres beside it.
    """
    low, high = extent
    scale = count / max(high - low, 1e-6)
    positions = ((torch.arange(*pixels) + (0.5 - low)) * scale - 0.5).clamp_(0, count - 1)
    distances = positions.unsqueeze(1) - torch.arange(*cells)
    return (1 - distances.abs_()).clamp_(min=0)
