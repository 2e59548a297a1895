"""Deformable convolution, 3x3 with padding 1: sampling and matrix product in one pass.

The samples are never written to memory: each tile of them is interpolated in registers and
multiplied right away (implicit GEMM, [pixels, 9 * inputs] x [9 * inputs, outputs]).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from yolact_ros.kernels import multiprocessors


@dataclass(frozen=True)
class Tiles:
    """How the work is tiled; every choice gives the same result up to rounding."""

    pixels: int
    outputs: int
    inputs: int
    splits: int
    """1, 3 or 9: number of programs that share the nine taps (split-K), for small images."""
    warps: int = 8


def choose_tiles(
    pixels: int, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device
) -> Tiles:
    """Choose tiles large enough to reuse loaded data, and enough programs to fill the device.

    The largest, 64 x 128 x 32 in half precision and 64 x 128 x 16 in float32, fit into the
    registers and the 99 KiB of shared memory of every GPU since Ampere, which a test checks.
    """
    block_outputs = min(128, max(16, triton.next_power_of_2(outputs)))
    block_inputs = min(64 // dtype.itemsize, max(16, triton.next_power_of_2(inputs)))
    block_pixels = 64 if pixels >= 64 else 16
    programs = triton.cdiv(pixels, block_pixels) * triton.cdiv(outputs, block_outputs)
    wanted = multiprocessors(device)
    splits = next((n for n in (1, 3) if programs * n >= wanted), 9)
    return Tiles(block_pixels, block_outputs, block_inputs, splits)


def deform_conv2d(
    x: Tensor,
    learned: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    modulated: bool = True,
    tiles: Tiles | None = None,
) -> Tensor:
    """Compute a 3x3 deformable convolution with padding 1, [B, O, Ho, Wo] in channels-last format.

    All tensors have one data type, float16, bfloat16 or float32; sums are float32.

    Args:
        x: [B, C, H, W].
        learned: [B, 27, Ho, Wo]: the offset (y, x) of each tap, then the nine factors before the
            sigmoid; [B, 18, Ho, Wo] if not `modulated`.
        weight: [O, C, 3, 3]. Tensors that are not in channels-last format are copied to it.
        bias: [O].
        stride: The convolution's stride.
        modulated: Whether each sample is weighted by its learned factor.
        tiles: Replaces the result of `choose_tiles`.
    """
    x, learned, weight = (
        tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, learned, weight)
    )
    batch, inputs, height, width = x.shape
    outputs, (out_height, out_width) = len(weight), learned.shape[-2:]
    pixels = batch * out_height * out_width
    if max(x.numel(), pixels * outputs) >= 2**31:
        raise MemoryError(f"a batch of {batch} is too large for the kernel")  # smaller ones fit
    tiles = tiles or choose_tiles(pixels, inputs, outputs, x.dtype, x.device)
    parts = x.new_empty(
        (tiles.splits, batch, out_height, out_width, outputs),
        dtype=x.dtype if tiles.splits == 1 else torch.float32,
    )
    grid = (triton.cdiv(pixels, tiles.pixels), triton.cdiv(outputs, tiles.outputs), tiles.splits)
    _deform_conv2d[grid](
        x,
        learned,
        weight,
        bias,
        parts,
        pixels,
        height,
        width,
        out_height,
        out_width,
        inputs,
        outputs,
        STRIDE=stride,
        MODULATED=modulated,
        SPLITS=tiles.splits,
        BLOCK_PIXELS=tiles.pixels,
        BLOCK_OUTPUTS=tiles.outputs,
        BLOCK_INPUTS=tiles.inputs,
        num_warps=tiles.warps,
        enable_fp_fusion=True,
    )
    result = parts[0] if tiles.splits == 1 else (parts.sum(dim=0) + bias).to(x.dtype)
    return result.permute(0, 3, 1, 2)


# One specialisation for all image sizes: each takes seconds to compile.
@triton.jit(do_not_specialize=["pixels", "height", "width", "out_height", "out_width"])
def _deform_conv2d(
    x,  # [B, H, W, C]
    learned,  # [B, Ho, Wo, 27], or 18 without modulation
    weight,  # [O, 9, C]
    bias,  # [O]
    out,  # [splits, B, Ho, Wo, O]
    pixels,
    height,
    width,
    out_height,
    out_width,
    inputs,
    outputs,
    STRIDE: tl.constexpr,
    MODULATED: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    # One program: [BLOCK_PIXELS, BLOCK_OUTPUTS] of the result, from 9 / SPLITS of the taps.
    pixel = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)  # [M]
    output = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)  # [N]
    split = tl.program_id(2)
    inside, known = pixel < pixels, output < outputs
    image = pixel // (out_height * out_width) * (height * width)  # its first pixel in x
    row = pixel // out_width % out_height * STRIDE - 1
    column = pixel % out_width * STRIDE - 1
    LEARNED: tl.constexpr = 27 if MODULATED else 18
    sums = tl.zeros((BLOCK_PIXELS, BLOCK_OUTPUTS), dtype=tl.float32)
    for tap in range(split * (9 // SPLITS), (split + 1) * (9 // SPLITS)):
        told = learned + pixel * LEARNED
        dy = tl.load(told + 2 * tap, mask=inside, other=0.0).to(tl.float32)
        dx = tl.load(told + 2 * tap + 1, mask=inside, other=0.0).to(tl.float32)
        factor = tl.full((BLOCK_PIXELS,), 1.0, dtype=tl.float32)
        if MODULATED:
            factor = tl.sigmoid(tl.load(told + 18 + tap, mask=inside, other=0.0).to(tl.float32))
        # More than one pixel outside the image all samples are zero: clamp to avoid overflow.
        y = tl.minimum(tl.maximum(row + tap // 3 + dy, -2.0), height + 1.0)
        x_ = tl.minimum(tl.maximum(column + tap % 3 + dx, -2.0), width + 1.0)
        top, left = tl.floor(y), tl.floor(x_)
        below, right = y - top, x_ - left
        y0, x0 = top.to(tl.int32), left.to(tl.int32)
        up = inside & (y0 >= 0) & (y0 < height)
        down = inside & (y0 >= -1) & (y0 < height - 1)
        west, east = (x0 >= 0) & (x0 < width), (x0 >= -1) & (x0 < width - 1)
        corner = (image + y0 * width + x0) * inputs  # [M]: the upper left of the four
        w00 = ((1 - below) * (1 - right) * factor)[:, None]
        w01 = ((1 - below) * right * factor)[:, None]
        w10 = (below * (1 - right) * factor)[:, None]
        w11 = (below * right * factor)[:, None]
        for first in range(0, inputs, BLOCK_INPUTS):
            channel = first + tl.arange(0, BLOCK_INPUTS)  # [K]
            exists = channel < inputs
            at = x + corner[:, None] + channel[None, :]  # [M, K]
            row_step = width * inputs
            a = tl.load(at, mask=(up & west)[:, None] & exists[None, :], other=0.0)
            b = tl.load(at + inputs, mask=(up & east)[:, None] & exists[None, :], other=0.0)
            c = tl.load(at + row_step, mask=(down & west)[:, None] & exists[None, :], other=0.0)
            d = tl.load(
                at + row_step + inputs, mask=(down & east)[:, None] & exists[None, :], other=0.0
            )
            samples = a * w00 + b * w01 + c * w10 + d * w11  # float32
            kernel = tl.load(
                weight + output[None, :] * (9 * inputs) + tap * inputs + channel[:, None],
                mask=known[None, :] & exists[:, None],
                other=0.0,
            )  # [K, N]
            sums = tl.dot(samples.to(kernel.dtype), kernel, sums, input_precision="ieee")
    if SPLITS == 1:
        sums += tl.load(bias + output, mask=known, other=0.0).to(tl.float32)[None, :]
    at = (split * pixels + pixel[:, None]).to(tl.int64) * outputs + output[None, :]
    tl.store(out + at, sums.to(out.dtype.element_ty), mask=inside[:, None] & known[None, :])
