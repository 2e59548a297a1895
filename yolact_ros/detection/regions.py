"""Masks at source resolution, stored only within their rectangles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from yolact_ros import kernels
from yolact_ros.detection.sampling import sample

_PACKED_AT_ONCE = 1 << 16
"""Bytes of packed masks that plain PyTorch computes at once; each needs half a kilobyte."""


@dataclass(frozen=True)
class MaskRegions:
    """Binary masks of n instances, each in its own rectangle of the source image."""

    rectangles: Tensor
    """[n, 4] int64 (x1, y1, x2, y2) in source pixels; a mask is empty outside its rectangle."""
    pixels: Tensor
    """Flat bool: the rectangles' pixels, row by row, one rectangle after another."""
    offsets: Tensor
    """[n + 1] int64: mask i is pixels[offsets[i]:offsets[i + 1]] of shape (y2 - y1, x2 - x1)."""

    def __len__(self) -> int:
        return len(self.rectangles)

    def mask(self, i: int) -> Tensor:
        """Return mask i within its rectangle, bool [y2 - y1, x2 - x1], as a view."""
        i = range(len(self))[i]
        x1, y1, x2, y2 = self.rectangles[i].tolist()
        return self.pixels[self.offsets[i] : self.offsets[i + 1]].view(y2 - y1, x2 - x1)

    def window(self, i: int, images: Tensor) -> Tensor:
        """Return the part of images [..., height, width] in the rectangle of mask i, as a view."""
        x1, y1, x2, y2 = self.rectangles[i].tolist()
        return images[..., y1:y2, x1:x2]

    def areas(self) -> Tensor:
        """Return the number of pixels of each mask, [n] int64."""
        counts = [int(self.mask(i).count_nonzero()) for i in range(len(self))]
        return torch.tensor(counts, dtype=torch.int64, device=self.pixels.device)


@dataclass(frozen=True)
class SmallMasks:
    """Masks of n instances, each a small grid that covers a rectangle of the source image."""

    values: Tensor
    """[n, h, w] in 0..1."""
    extents: Tensor
    """[n, 4] float (x1, y1, x2, y2): the area that each grid covers, in source pixels."""
    cells: Tensor
    """[n, 4] int64 (x1, y1, x2, y2): the cells of each grid that may be non-zero."""

    def __getitem__(self, index: Tensor | slice | list[int]) -> SmallMasks:
        return SmallMasks(self.values[index], self.extents[index], self.cells[index])

    def to(self, device: torch.device | str) -> SmallMasks:
        """Copy the masks to another device."""
        return SmallMasks(self.values.to(device), self.extents.to(device), self.cells.to(device))

    def regions(self, height: int, width: int) -> MaskRegions:
        """Sample the masks (bilinear, threshold 0.5) at the pixels of a height x width image."""
        limits = self.extents.new_tensor((width, height))
        rectangles = pixel_rectangles(self.extents, self.cells, self.values, limits)
        areas = (rectangles[:, 2:] - rectangles[:, :2]).prod(dim=1)
        offsets = torch.nn.functional.pad(areas.cumsum(0), (1, 0))
        grids, extents = self.values.cpu().float().numpy(), self.extents.tolist()
        pixels = sample(grids, extents, rectangles.cpu().numpy(), (height, width))
        return MaskRegions(rectangles, torch.from_numpy(pixels).to(self.values.device), offsets)


@dataclass(frozen=True)
class PackedMasks:
    """Binary masks of n instances as bits, already sampled: the form that a GPU returns."""

    rectangles: Tensor
    """[n, 4] int64 (x1, y1, x2, y2) in source pixels; a mask is empty outside its rectangle."""
    starts: Tensor
    """[n] int64: offset of each mask's first byte. Rows are padded to whole bytes; the first pixel
    is the most significant bit."""
    bits: Tensor
    """uint8, flat: the bytes of all masks, possibly among others."""
    image_size: tuple[int, int]
    """(height, width) of the source that the masks were sampled for."""

    def __getitem__(self, index: Tensor | slice | list[int]) -> PackedMasks:
        return PackedMasks(self.rectangles[index], self.starts[index], self.bits, self.image_size)

    def to(self, device: torch.device | str) -> PackedMasks:
        """Copy the masks to another device."""
        rectangles, starts = self.rectangles.to(device), self.starts.to(device)
        return PackedMasks(rectangles, starts, self.bits.to(device), self.image_size)

    def regions(self, height: int, width: int) -> MaskRegions:
        """Unpack the masks to one byte per pixel. Raises ValueError unless the size matches."""
        if (height, width) != self.image_size:
            raise ValueError(
                f"masks of an image of {self.image_size} cannot be had at {(height, width)}"
            )
        sizes = self.rectangles[:, 2:] - self.rectangles[:, :2]
        offsets = torch.nn.functional.pad(sizes.prod(dim=1).cumsum(0), (1, 0))
        bits, pixels = self.bits.cpu().numpy(), np.empty(int(offsets[-1]), np.bool_)
        ends = offsets.tolist()
        for i, ((w, h), start) in enumerate(zip(sizes.tolist(), self.starts.tolist(), strict=True)):
            row_bytes = (w + 7) // 8
            rows = bits[start : start + h * row_bytes].reshape(h, row_bytes)
            unpacked = np.unpackbits(rows, axis=1, count=w)
            pixels[ends[i] : ends[i + 1]] = unpacked.reshape(-1).view(np.bool_)
        flat = torch.from_numpy(pixels).to(self.bits.device)
        return MaskRegions(self.rectangles, flat, offsets)


def pixel_rectangles(extents: Tensor, cells: Tensor, grids: Tensor, limits: Tensor) -> Tensor:
    """Return rectangles [..., 4] int64 of source pixels that contain all samples above one half.

    A sample exceeds one half only within half a cell of a non-zero cell's centre, that is, inside
    the cell. `extents` and `cells` [..., 4] as in `SmallMasks`, `grids` [..., h, w]; `limits`
    [..., 2] are (width, height) of the image.
    """
    h, w = grids.shape[-2:]
    size = extents[..., 2:] - extents[..., :2]
    cell = torch.stack((size[..., 0] / w, size[..., 1] / h), dim=-1)
    low = (extents[..., :2] + cells[..., :2] * cell).floor()
    high = (extents[..., :2] + cells[..., 2:] * cell).ceil()
    low = torch.minimum(low.clamp(min=0), limits)
    high = torch.maximum(torch.minimum(high, limits), low)
    return torch.cat((low, high), dim=-1).long()


def packed_sizes(rectangles: Tensor) -> Tensor:
    """Return the bytes [...] of bit masks in rectangles [..., 4], rows padded to whole bytes."""
    widths, heights = (rectangles[..., 2:] - rectangles[..., :2]).unbind(-1)
    return (widths + 7).div(8, rounding_mode="floor") * heights


def pack(values: Tensor, extents: Tensor, rectangles: Tensor, ends: Tensor, out: Tensor) -> None:
    """Sample masks as `SmallMasks.regions` does, but to bits, without data-dependent shapes.

    Args:
        values: [n, h, w] grids in 0..1, n >= 1.
        extents: float32 [n, 4] (x1, y1, x2, y2): the area that each grid covers, in source pixels.
        rectangles: int64 [n, 4] (x1, y1, x2, y2): the source pixels to sample for each mask.
        ends: int64 [n]: where each mask's bytes end in `out`: cumulative `packed_sizes`.
        out: uint8, of any length. Bytes beyond its end are dropped.
    """
    if kernels.usable(values, "pack"):
        with kernels.attempt(values, "pack"):
            from yolact_ros.kernels import masks

            return masks.pack(values, extents, rectangles, ends, out)
    pack_plain(values, extents, rectangles, ends, out)


@torch.no_grad()
def packs_by_kernel(device: torch.device, dtype: torch.dtype, masks: int) -> bool:
    """Whether `pack` uses the kernel for `masks` masks of this type; tries it with empty ones."""
    values = torch.zeros((masks, 1, 1), dtype=dtype, device=device)
    rectangles = torch.ones((masks, 4), dtype=torch.int64, device=device)  # empty
    ends = packed_sizes(rectangles).cumsum(0)
    out = torch.empty(1, dtype=torch.uint8, device=device)
    pack(values, rectangles.float(), rectangles, ends, out)
    return kernels.usable(values, "pack")


def pack_plain(
    values: Tensor, extents: Tensor, rectangles: Tensor, ends: Tensor, out: Tensor
) -> None:
    """`pack` in plain PyTorch, for every device."""
    for start in range(0, len(out), _PACKED_AT_ONCE):
        _pack_part(values, extents, rectangles, ends, start, out[start : start + _PACKED_AT_ONCE])


def _pack_part(
    values: Tensor, extents: Tensor, rectangles: Tensor, ends: Tensor, start: int, out: Tensor
) -> None:
    """Compute the len(out) bytes of packed masks that begin at offset `start`."""
    n, height, width = values.shape
    byte = torch.arange(start, start + len(out), device=out.device)
    mask = torch.searchsorted(ends, byte, right=True).clamp_(max=n - 1)
    x1, y1, x2, _ = rectangles[mask].unbind(1)
    place = byte - (ends - packed_sizes(rectangles))[mask]
    row_bytes = ((x2 - x1 + 7) // 8).clamp_(min=1)
    bit = torch.arange(8, device=out.device)
    x = (x1 + place % row_bytes * 8).unsqueeze(1) + bit  # [bytes, 8]
    y = (y1 + place // row_bytes).unsqueeze(1)
    left, top, right, bottom = extents[mask].unsqueeze(2).unbind(1)
    column = (x + (0.5 - left)) * (width / (right - left).clamp_(min=1e-6)) - 0.5
    row = (y + (0.5 - top)) * (height / (bottom - top).clamp_(min=1e-6)) - 0.5
    column, row = column.clamp_(0, width - 1), row.clamp_(0, height - 1)
    column0, row0 = column.long(), row.long()
    column1, row1 = (column0 + 1).clamp_(max=width - 1), (row0 + 1).clamp_(max=height - 1)
    flat, first = values.flatten(), mask.unsqueeze(1) * (height * width)
    weight = column - column0
    above = torch.lerp(
        flat[first + row0 * width + column0].float(),
        flat[first + row0 * width + column1].float(),
        weight,
    )
    beneath = torch.lerp(
        flat[first + row1 * width + column0].float(),
        flat[first + row1 * width + column1].float(),
        weight,
    )
    inside = (byte < ends[-1]).unsqueeze(1) & (x < x2.unsqueeze(1))
    value = torch.lerp(above, beneath, row - row0)
    out.copy_((((value > 0.5) & inside).long() << (7 - bit)).sum(dim=1))
