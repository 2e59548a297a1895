"""Preprocessing: images to the network's input in one pass."""

from __future__ import annotations

from inspect import signature
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

Triple = tuple[float, float, float]
_BLOCK = 256

# One specialisation for all memory alignments too: another would be compiled during a live frame.
# Triton has this option since 3.2.
_ALIGNMENT = "do_not_specialize_on_alignment"
_ANY_ALIGNMENT: dict[str, Any] = (
    {_ALIGNMENT: ["images", "out"]} if _ALIGNMENT in signature(triton.jit).parameters else {}
)


def resize_and_normalise(images: Tensor, out: Tensor, mean: Triple, std: Triple) -> None:
    """Resize (bilinear, like `F.interpolate` without antialiasing), normalise, reorder to RGB.

    Args:
        images: uint8 [B, H, W, 3] in BGR order, with any row stride.
        out: The result [B, 3, height, width], in channels-last memory format.
        mean: Mean of the channels, in BGR order.
        std: Standard deviation of the channels, in BGR order.
    """
    batch, in_height, in_width, _ = images.shape
    height, width = out.shape[-2:]
    if images.stride()[2:] != (3, 1):
        images = images.contiguous()
    grid = (triton.cdiv(height * width, _BLOCK), batch)
    _resize_and_normalise[grid](
        images,
        out,
        images.stride(0),
        images.stride(1),
        in_height,
        in_width,
        height,
        width,
        in_height / height,
        in_width / width,
        *mean,
        *(1 / value for value in std),
        BLOCK=_BLOCK,
        enable_fp_fusion=True,
    )


@triton.jit(
    do_not_specialize=["image_stride", "row_stride", "in_height", "in_width"], **_ANY_ALIGNMENT
)
def _resize_and_normalise(
    images,  # uint8 [B, H, W, 3], BGR
    out,  # [B, height, width, 3], RGB
    image_stride,
    row_stride,
    in_height,
    in_width,
    height,
    width,
    y_step,
    x_step,
    b_mean,
    g_mean,
    r_mean,
    b_factor,
    g_factor,
    r_factor,
    BLOCK: tl.constexpr,
):
    # One program: BLOCK pixels of one result, all three channels.
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    image = tl.program_id(1).to(tl.int64)
    inside = pixel < height * width
    y = tl.maximum((pixel // width + 0.5) * y_step - 0.5, 0.0)
    x = tl.maximum((pixel % width + 0.5) * x_step - 0.5, 0.0)
    top, left = y.to(tl.int32), x.to(tl.int32)
    below, right = y - top, x - left  # weights of the lower row and of the right column
    bottom = tl.minimum(top + 1, in_height - 1)
    top_row = images + image * image_stride + top.to(tl.int64) * row_stride
    bottom_row = images + image * image_stride + bottom.to(tl.int64) * row_stride
    left_bytes, right_bytes = left * 3, tl.minimum(left + 1, in_width - 1) * 3
    target = out + (image * height * width + pixel) * 3
    for channel in tl.static_range(3):
        a = tl.load(top_row + left_bytes + channel, mask=inside, other=0).to(tl.float32)
        b = tl.load(top_row + right_bytes + channel, mask=inside, other=0).to(tl.float32)
        c = tl.load(bottom_row + left_bytes + channel, mask=inside, other=0).to(tl.float32)
        d = tl.load(bottom_row + right_bytes + channel, mask=inside, other=0).to(tl.float32)
        upper, lower = a + (b - a) * right, c + (d - c) * right
        value = upper + (lower - upper) * below
        if channel == 0:
            value = (value - b_mean) * b_factor
        elif channel == 1:
            value = (value - g_mean) * g_factor
        else:
            value = (value - r_mean) * r_factor
        tl.store(target + 2 - channel, value.to(out.dtype.element_ty), mask=inside)
