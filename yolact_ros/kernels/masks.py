"""Masks: assembly at prototype resolution, and packing to bits at image resolution."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from yolact_ros.kernels import multiprocessors

_BLOCK_BYTES = 128
_BLOCK_MASKS, _BLOCK_CELLS = 32, 128
_PROGRAMS = 8  # for each multiprocessor


def assemble(coefficients: Tensor, prototypes: Tensor, cells: Tensor) -> Tensor:
    """Assemble cropped masks [B, K, Hp, Wp] in 0..1: matrix product, sigmoid and crop in one pass.

    Args:
        coefficients: [B, K, k].
        prototypes: [B, k, Hp, Wp], in any memory order.
        cells: int [B, K, 4] (x1, y1, x2, y2): cells that are kept.
    """
    batch, count, k = coefficients.shape
    height, width = prototypes.shape[-2:]
    out = torch.empty(
        (batch, count, height, width), dtype=prototypes.dtype, device=prototypes.device
    )
    grid = (triton.cdiv(height * width, _BLOCK_CELLS), triton.cdiv(count, _BLOCK_MASKS), batch)
    _assemble[grid](
        coefficients.contiguous(),
        prototypes,
        cells.contiguous(),
        out,
        count,
        k,
        height * width,
        width,
        *prototypes.stride(),
        BLOCK_K=max(16, triton.next_power_of_2(k)),
        BLOCK_MASKS=_BLOCK_MASKS,
        BLOCK_CELLS=_BLOCK_CELLS,
        enable_fp_fusion=True,
    )
    return out


# One specialisation for all mask counts: another would be compiled during a live frame.
@triton.jit(do_not_specialize=["count"])
def _assemble(
    coefficients,  # [B, K, k]
    prototypes,  # [B, k, Hp, Wp]
    cells,  # [B, K, 4]
    out,  # [B, K, Hp * Wp]
    count,
    k,
    area,
    width,
    batch_stride,
    k_stride,
    row_stride,
    column_stride,
    BLOCK_K: tl.constexpr,
    BLOCK_MASKS: tl.constexpr,
    BLOCK_CELLS: tl.constexpr,
):
    # One program: BLOCK_CELLS cells of BLOCK_MASKS masks of one image.
    cell = tl.program_id(0) * BLOCK_CELLS + tl.arange(0, BLOCK_CELLS)  # [N]
    mask = tl.program_id(1) * BLOCK_MASKS + tl.arange(0, BLOCK_MASKS)  # [M]
    image = tl.program_id(2).to(tl.int64)
    row, column = cell // width, cell % width
    there, known = cell < area, mask < count
    summed = tl.arange(0, BLOCK_K)  # [K]
    a = tl.load(
        coefficients + (image * count + mask[:, None]) * k + summed[None, :],
        mask=known[:, None] & (summed[None, :] < k),
        other=0.0,
    )
    b = tl.load(
        prototypes
        + image * batch_stride
        + summed[:, None] * k_stride
        + (row * row_stride + column * column_stride)[None, :],
        mask=there[None, :] & (summed[:, None] < k),
        other=0.0,
    )
    values = tl.sigmoid(tl.dot(a, b, input_precision="ieee"))  # [M, N] float32
    corners = cells + (image * count + mask) * 4
    x1 = tl.load(corners, mask=known, other=0)[:, None]
    y1 = tl.load(corners + 1, mask=known, other=0)[:, None]
    x2 = tl.load(corners + 2, mask=known, other=0)[:, None]
    y2 = tl.load(corners + 3, mask=known, other=0)[:, None]
    x, y = column[None, :], row[None, :]
    values = tl.where((x >= x1) & (x < x2) & (y >= y1) & (y < y2), values, 0.0)
    tl.store(
        out + (image * count + mask[:, None]) * area + cell[None, :],
        values.to(out.dtype.element_ty),
        mask=known[:, None] & there[None, :],
    )


def pack(values: Tensor, extents: Tensor, rectangles: Tensor, ends: Tensor, out: Tensor) -> None:
    """Sample masks (bilinear, threshold 0.5) at the pixels of their rectangles, as bits.

    Args:
        values: [n, h, w] grids in 0..1.
        extents: float32 [n, 4] (x1, y1, x2, y2): the area that each grid covers, in source pixels.
        rectangles: int64 [n, 4] (x1, y1, x2, y2): the source pixels to sample for each mask.
        ends: int64 [n]: where each mask's bytes end in `out`; the first mask starts at 0. Rows are
            padded to whole bytes; the first pixel is the most significant bit.
        out: uint8, of any length: bytes beyond its end are not written.
    """
    count, height, width = values.shape
    # `out` is far larger than most images need: programs loop until the masks end.
    programs = min(triton.cdiv(len(out), _BLOCK_BYTES), _PROGRAMS * multiprocessors(out.device))
    _pack[(programs,)](
        values.contiguous(),
        extents.contiguous(),
        rectangles.contiguous(),
        ends,
        out,
        count,
        len(out),
        height,
        width,
        SEARCH_STEPS=count.bit_length(),
        BLOCK=_BLOCK_BYTES,
        enable_fp_fusion=True,
    )


@triton.jit(do_not_specialize=["count", "length", "height", "width"])
def _pack(
    values,  # [n, h, w]
    extents,  # [n, 4]
    rectangles,  # [n, 4]
    ends,  # [n]
    out,  # uint8 [bytes]
    count,
    length,
    height,
    width,
    SEARCH_STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program: every n-th block of BLOCK bytes, whatever masks they belong to. This spreads the
    # work evenly without knowing its amount in advance.
    used = tl.minimum(tl.load(ends + count - 1), length)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    for first in range(start, used, tl.num_programs(0) * BLOCK):
        byte = first + tl.arange(0, BLOCK)  # [BLOCK]
        inside = byte < used
        # Binary search: the first mask that ends beyond the byte.
        low = tl.zeros((BLOCK,), dtype=tl.int32)
        high = low + count
        for _ in tl.static_range(SEARCH_STEPS):
            middle = (low + high) // 2
            before = tl.load(ends + middle, mask=middle < count, other=length) <= byte
            open_ = low < high
            low = tl.where(open_ & before, middle + 1, low)
            high = tl.where(open_ & ~before, middle, high)
        mask = tl.minimum(low, count - 1)

        x1 = tl.load(rectangles + mask * 4).to(tl.int32)
        y1 = tl.load(rectangles + mask * 4 + 1).to(tl.int32)
        x2 = tl.load(rectangles + mask * 4 + 2).to(tl.int32)
        begin = tl.load(ends + mask - 1, mask=mask > 0, other=0)
        place = (byte - begin).to(tl.int32)
        row_bytes = tl.maximum((x2 - x1 + 7) // 8, 1)
        bit = tl.arange(0, 8)[None, :]
        x = (x1 + place % row_bytes * 8)[:, None] + bit  # [BLOCK, 8]
        y = y1 + place // row_bytes  # [BLOCK]

        left = tl.load(extents + mask * 4)
        top = tl.load(extents + mask * 4 + 1)
        x_scale = width / tl.maximum(tl.load(extents + mask * 4 + 2) - left, 1e-6)
        y_scale = height / tl.maximum(tl.load(extents + mask * 4 + 3) - top, 1e-6)
        column = (x + (0.5 - left)[:, None]) * x_scale[:, None] - 0.5
        column = tl.minimum(tl.maximum(column, 0.0), width - 1.0)
        row = tl.minimum(tl.maximum((y + (0.5 - top)) * y_scale - 0.5, 0.0), height - 1.0)
        column0, row0 = column.to(tl.int32), row.to(tl.int32)
        right, below = column - column0, (row - row0)[:, None]
        column1, row1 = tl.minimum(column0 + 1, width - 1), tl.minimum(row0 + 1, height - 1)
        grid = values + mask.to(tl.int64) * (height * width)
        upper, lower = (grid + row0 * width)[:, None], (grid + row1 * width)[:, None]
        wanted = inside[:, None] & (x < x2[:, None])
        a = tl.load(upper + column0, mask=wanted, other=0.0).to(tl.float32)
        b = tl.load(upper + column1, mask=wanted, other=0.0).to(tl.float32)
        c = tl.load(lower + column0, mask=wanted, other=0.0).to(tl.float32)
        d = tl.load(lower + column1, mask=wanted, other=0.0).to(tl.float32)
        above = a + (b - a) * right
        value = above + (c + (d - c) * right - above) * below  # [BLOCK, 8]
        bits = tl.where(value > 0.5, 1, 0) << (7 - bit)
        tl.store(out + byte, tl.sum(bits, axis=1).to(tl.uint8), mask=inside)
