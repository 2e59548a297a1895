"""Encodes and decodes the three mask encodings of `yolact_ros/msg/Mask`, with only NumPy.

`Mask.msg` defines the bytes. Nothing here needs ROS or torch, so a reader of recorded messages can
use it anywhere: `decode` takes any object with the fields of a Mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

ENCODINGS = ("mono8", "bits", "rle")

MAX_PIXELS = 1 << 28
"""Largest rectangle that `decode` makes: a few bytes of run lengths could claim any size."""


class MaskMessage(Protocol):
    """The fields of `yolact_ros/msg/Mask` that the pixels depend on."""

    height: int
    width: int
    encoding: str
    data: Sequence[int]


class PlacedMaskMessage(MaskMessage, Protocol):
    """A Mask with its place in the source image."""

    x_offset: int
    y_offset: int


def encode(mask: NDArray[np.bool_], encoding: str) -> bytes:
    """Encode one mask [h, w], bool. Raises ValueError for an unknown encoding."""
    height, width = mask.shape
    rectangles = np.array([[0, 0, width, height]])
    pixels = np.ascontiguousarray(mask, dtype=np.bool_).reshape(-1)
    return encode_regions(rectangles, pixels, np.array([0, height * width]), encoding)[0]


def encode_regions(
    rectangles: NDArray[np.int64],
    pixels: NDArray[np.bool_],
    offsets: NDArray[np.int64],
    encoding: str,
) -> list[bytes]:
    """Encode n masks that are stored one after another in a flat array.

    Args:
        rectangles: int [n, 4] (x1, y1, x2, y2), x2 and y2 exclusive.
        pixels: bool [sum of h * w], row by row.
        offsets: int [n + 1]; mask i is `pixels[offsets[i]:offsets[i + 1]]`.
        encoding: One of `ENCODINGS`.

    Raises:
        ValueError: For an unknown encoding, or if rectangles and offsets do not match.
    """
    sizes = (rectangles[:, 3] - rectangles[:, 1]) * (rectangles[:, 2] - rectangles[:, 0])
    if not np.array_equal(np.diff(offsets), sizes) or len(pixels) != offsets[-1]:
        raise ValueError(
            f"offsets {offsets.tolist()} and {len(pixels)} pixels do not fit rectangles of "
            f"{sizes.tolist()} pixels"
        )
    if encoding == "rle":
        return _encode_runs(pixels, offsets)
    spans = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    if encoding == "mono8":
        grey = pixels.view(np.uint8) * np.uint8(255)
        return [grey[start:end].tobytes() for start, end in spans]
    if encoding == "bits":
        widths = np.maximum(rectangles[:, 2] - rectangles[:, 0], 1).tolist()
        return [
            np.packbits(pixels[start:end].reshape(-1, width), axis=1).tobytes()
            for (start, end), width in zip(spans, widths, strict=True)
        ]
    raise _unknown(encoding)


def _encode_runs(pixels: NDArray[np.bool_], offsets: NDArray[np.int64]) -> list[bytes]:
    # One pass over the pixels of all masks finds where the value changes; each mask then takes a
    # slice of that list.
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    first = np.searchsorted(changes, offsets[:-1], side="right").tolist()
    last = np.searchsorted(changes, offsets[1:], side="left").tolist()
    encoded = []
    for i, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        if start == end:
            encoded.append(b"")
            continue
        # A mask that starts with a 1 has an empty run of 0s in front.
        head = (start, start) if pixels[start] else (start,)
        edges = np.concatenate((head, changes[first[i] : last[i]], (end,)))
        encoded.append(np.diff(edges).astype("<u4").tobytes())
    return encoded


def decode(mask: MaskMessage) -> NDArray[np.bool_]:
    """Decode one mask to bool [height, width].

    Args:
        mask: A `yolact_ros/msg/Mask` or any object with `height`, `width`, `encoding` and `data`
            (bytes or uint8). One without an encoding (the model gives boxes only) must be empty and
            gives an array without pixels.

    Raises:
        ValueError: For bytes that violate the format; the message says how.
    """
    height, width = int(mask.height), int(mask.width)
    if height < 0 or width < 0 or height * width > MAX_PIXELS:
        raise ValueError(f"a mask of {width} x {height} pixels; at most {MAX_PIXELS} are allowed")
    data = np.frombuffer(bytes(mask.data), np.uint8)
    if mask.encoding == "mono8":
        return _decode_mono8(data, height, width)
    if mask.encoding == "bits":
        return _decode_bits(data, height, width)
    if mask.encoding == "rle":
        return _decode_runs(data, height, width)
    if mask.encoding == "" and height * width == 0 and len(data) == 0:
        return np.zeros((height, width), np.bool_)
    raise _unknown(mask.encoding)


def _decode_mono8(data: NDArray[np.uint8], height: int, width: int) -> NDArray[np.bool_]:
    _check_length("mono8", data, height * width, height, width)
    grey = data.reshape(height, width)
    if ((grey != 0) & (grey != 255)).any():
        raise ValueError("a mono8 mask has bytes that are neither 0 nor 255")
    return grey != 0


def _decode_bits(data: NDArray[np.uint8], height: int, width: int) -> NDArray[np.bool_]:
    row_bytes = (width + 7) // 8
    _check_length("bits", data, height * row_bytes, height, width)
    bits = np.unpackbits(data.reshape(height, row_bytes), axis=1)
    if bits[:, width:].any():
        raise ValueError("a bits mask has unused bits at the end of a row that are not 0")
    return bits[:, :width].astype(np.bool_)


def _decode_runs(data: NDArray[np.uint8], height: int, width: int) -> NDArray[np.bool_]:
    if len(data) % 4:
        raise ValueError(f"an rle mask has {len(data)} bytes; they must be a multiple of 4")
    runs = data.view("<u4").astype(np.int64)
    if runs.sum() != height * width:
        raise ValueError(
            f"the run lengths of an rle mask of {width} x {height} pixels add up to {runs.sum()}; "
            f"they must add up to {height * width}"
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(height, width)


def paste(mask: PlacedMaskMessage, image_height: int, image_width: int) -> NDArray[np.bool_]:
    """Place a mask in the source image, bool [image_height, image_width].

    Raises ValueError as `decode` does, and for a rectangle that exceeds the image.
    """
    pixels = decode(mask)
    top, left = int(mask.y_offset), int(mask.x_offset)
    bottom, right = top + pixels.shape[0], left + pixels.shape[1]
    if top < 0 or left < 0 or bottom > image_height or right > image_width:
        raise ValueError(
            f"the rectangle of the mask, columns {left} to {right} and rows {top} to {bottom}, "
            f"leaves the image of {image_width} x {image_height} pixels"
        )
    image = np.zeros((image_height, image_width), np.bool_)
    image[top:bottom, left:right] = pixels
    return image


def _check_length(
    encoding: str, data: NDArray[np.uint8], expected: int, height: int, width: int
) -> None:
    if len(data) != expected:
        raise ValueError(
            f"a {encoding} mask of {width} x {height} pixels has {len(data)} bytes; "
            f"it must have {expected}"
        )


def _unknown(encoding: str) -> ValueError:
    return ValueError(
        f"unknown mask encoding {encoding!r}; the encodings are {', '.join(ENCODINGS)}"
    )
