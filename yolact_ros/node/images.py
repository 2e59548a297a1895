"""Image messages as BGR uint8 arrays [H, W, 3], views of the message if the encoding allows.

Accepts `sensor_msgs/Image` and `sensor_msgs/CompressedImage`, or any object with their fields.
cv_bridge is not used: it copies even `bgr8`, and supports no colour encoding beyond those here.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_ros.image_files import JPEG_START, PNG_START, Image, is_cut_short

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 1 << 27
MAX_SIDE = 32766
"""Limits on the size of an image; OpenCV addresses pixels of larger ones wrongly."""


class ImageMessage(Protocol):
    """The fields of `sensor_msgs/Image` that matter here."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def encoding(self) -> str: ...
    @property
    def is_bigendian(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def data(self) -> Any: ...


class CompressedImageMessage(Protocol):
    """The fields of `sensor_msgs/CompressedImage` that matter here."""

    @property
    def format(self) -> str: ...
    @property
    def data(self) -> Any: ...


class ImageError(ValueError):
    """A message that is not a valid image.

    `reason` is the category that it is counted under: message, encoding, size, step or data.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Layout:
    """Row layout of an encoding: values per pixel, their type, and the conversion to BGR."""

    channels: int
    dtype: type[np.uint8] | type[np.uint16]
    to_bgr: int | None
    """OpenCV's conversion code; None if the pixels are BGR already."""

    min_side: int = 1
    pixel_group: int = 1
    """Number of neighbouring pixels that share values; a row holds whole groups."""
    chroma_rows: float = 0
    """Chroma rows per luma row, if chroma has its own plane."""

    def row_values(self, width: int) -> int:
        """Least number of values in a row of `width` pixels."""
        return -(-width // self.pixel_group) * self.pixel_group * self.channels

    def rows(self, height: int) -> int:
        """Number of rows of all planes of an image of `height` pixels."""
        return height + math.ceil(height * self.chroma_rows)


def _layouts() -> dict[str, Layout]:
    layouts: dict[str, Layout] = {}
    for bits, dtype in ((8, np.uint8), (16, np.uint16)):
        colours = {
            f"mono{bits}": Layout(1, dtype, cv2.COLOR_GRAY2BGR),
            f"bgr{bits}": Layout(3, dtype, None),
            f"rgb{bits}": Layout(3, dtype, cv2.COLOR_RGB2BGR),
            f"bgra{bits}": Layout(4, dtype, cv2.COLOR_BGRA2BGR),
            f"rgba{bits}": Layout(4, dtype, cv2.COLOR_RGBA2BGR),
        }
        layouts |= colours
        layouts[f"{bits}UC1"] = colours[f"mono{bits}"]
        layouts[f"{bits}UC3"] = colours[f"bgr{bits}"]
        layouts[f"{bits}UC4"] = colours[f"bgra{bits}"]
        # ROS names Bayer patterns after the first two pixels of the first two rows, OpenCV after
        # the second and third pixels of the second row.
        for name, code in (
            ("rggb", cv2.COLOR_BayerBG2BGR),
            ("bggr", cv2.COLOR_BayerRG2BGR),
            ("gbrg", cv2.COLOR_BayerGR2BGR),
            ("grbg", cv2.COLOR_BayerGB2BGR),
        ):
            layouts[f"bayer_{name}{bits}"] = Layout(1, dtype, code, min_side=3)
    uyvy = Layout(2, np.uint8, cv2.COLOR_YUV2BGR_UYVY, pixel_group=2)
    yuyv = Layout(2, np.uint8, cv2.COLOR_YUV2BGR_YUY2, pixel_group=2)
    layouts |= {"yuv422": uyvy, "uyvy": uyvy, "yuv422_yuy2": yuyv, "yuyv": yuyv}
    # A luma plane [H, W], then chroma pairs: one for 2 x 2 pixels, or (nv24) one for each pixel.
    nv12 = Layout(1, np.uint8, cv2.COLOR_YUV2BGR_NV12, pixel_group=2, chroma_rows=0.5)
    layouts |= {
        "nv12": nv12,
        "nv21": replace(nv12, to_bgr=cv2.COLOR_YUV2BGR_NV21),
        "nv24": replace(nv12, pixel_group=1, chroma_rows=2),
    }
    return layouts


_LAYOUTS = _layouts()
ENCODINGS = tuple(_LAYOUTS)


def check(message: ImageMessage) -> None:
    """Raise ImageError for a message that `bgr_of` would reject, without touching its pixels."""
    _checked_rows(message, _layout(message))


def bgr_of(message: ImageMessage) -> Image:
    """Convert a raw image message to BGR uint8 [H, W, 3].

    bgr8 and 8UC3 give a view of the message, which may be strided (padded rows). 16-bit values are
    scaled to 8 bits; 4:2:0 and 4:2:2 encodings are read as BT.601 video range. Raises ImageError.
    """
    layout = _layout(message)
    rows = _checked_rows(message, layout)
    if message.encoding == "nv24":
        return _from_full_planes(rows, message.height, message.width)
    if layout.chroma_rows:
        return _from_planes(rows, message.height, message.width, layout)
    return _from_rows(rows, bool(message.is_bigendian), message.width, layout)


def _layout(message: ImageMessage) -> Layout:
    try:
        return _LAYOUTS[message.encoding]
    except KeyError:
        raise ImageError(
            "encoding", f"unknown encoding {message.encoding!r}; known are {', '.join(ENCODINGS)}"
        ) from None


def _checked_rows(message: ImageMessage, layout: Layout) -> Image:
    """Return the bytes of a valid message as [rows of all planes, step]."""
    _check_size(message.height, message.width)
    if min(message.height, message.width) < layout.min_side:
        raise _too_small(message.encoding, message.height, message.width, layout.min_side)
    item_size = np.dtype(layout.dtype).itemsize
    row_bytes = layout.row_values(message.width) * item_size
    if message.step < row_bytes:
        raise ImageError(
            "step",
            f"a step of {message.step} bytes; a row of {message.width} {message.encoding} pixels "
            f"needs {row_bytes} or more",
        )
    if message.step % item_size:
        raise ImageError("step", f"a step of {message.step} bytes cuts a 16-bit value in two")
    data, rows = np.frombuffer(message.data, np.uint8), layout.rows(message.height)
    if data.size != rows * message.step:
        raise ImageError(
            "data",
            f"{data.size} bytes of data; {message.width} x {message.height} {message.encoding} "
            f"pixels with a step of {message.step} need {rows * message.step}",
        )
    return data.reshape(rows, message.step)


def _from_rows(rows: Image, is_bigendian: bool, width: int, layout: Layout) -> Image:
    values = layout.row_values(width)
    if layout.dtype is np.uint16:
        wide = rows.view(">u2" if is_bigendian else "<u2")[:, :values]
        pixels = cv2.convertScaleAbs(wide.astype(np.uint16), alpha=255 / 65535)
    else:
        pixels = rows[:, :values]
    if layout.channels > 1:
        pixels = pixels.reshape(len(rows), -1, layout.channels)
    if layout.to_bgr is not None:
        pixels = cv2.cvtColor(pixels, layout.to_bgr)
    return np.asarray(pixels[:, :width], np.uint8)


def _from_planes(rows: Image, height: int, width: int, layout: Layout) -> Image:
    even_width = layout.row_values(width)
    luma, chroma = rows[:height, :even_width], rows[height:, :even_width]
    if height % 2:
        luma = np.concatenate((luma, luma[-1:]))
    pairs = chroma.reshape(len(chroma), even_width // 2, 2)
    assert layout.to_bgr is not None
    pixels = cv2.cvtColorTwoPlane(luma, pairs, layout.to_bgr)
    return np.asarray(pixels[:height, :width], np.uint8)


def _from_full_planes(rows: Image, height: int, width: int) -> Image:
    # Convert as nv12 at twice the size, where each 2 x 2 block has its own chroma pair.
    luma = rows[:height, :width].repeat(2, axis=0).repeat(2, axis=1)
    pairs = rows[height:].reshape(height, -1)[:, : 2 * width].reshape(height, width, 2)
    pixels = cv2.cvtColorTwoPlane(luma, pairs, cv2.COLOR_YUV2BGR_NV12)
    return np.ascontiguousarray(pixels[::2, ::2], np.uint8)


def _check_size(height: int, width: int) -> None:
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise ImageError(
            "size",
            f"an image of {width} x {height} pixels; allowed are 1 to {MAX_SIDE} a side and at "
            f"most {MAX_PIXELS} in all",
        )


def _too_small(encoding: str, height: int, width: int, least: int) -> ImageError:
    return ImageError(
        "size",
        f"a {encoding} image of {width} x {height} pixels; it needs at least {least} x {least}",
    )


def check_compressed(message: CompressedImageMessage) -> None:
    """Raise ImageError for bytes that are visibly not a complete JPEG or PNG; does not decode."""
    data = bytes(message.data)
    if data.startswith(JPEG_START):
        kind, size = "JPEG", _jpeg_size(data)
    elif data.startswith(PNG_START):
        kind, size = "PNG", _png_size(data)
    else:
        raise ImageError(
            "encoding",
            f"{len(data)} bytes that are neither JPEG nor PNG (format {message.format!r})",
        )
    # OpenCV would decode whatever arrived and fill the rest with grey.
    if size is None or is_cut_short(data):
        raise ImageError("data", f"a {kind} of {len(data)} bytes that is cut short or broken")
    _check_size(*size)


def bgr_of_compressed(message: CompressedImageMessage) -> Image:
    """Decode a JPEG or PNG message to BGR uint8 [H, W, 3].

    The bytes tell JPEG from PNG; `format` tells whether a grey image is a Bayer mosaic. An EXIF
    orientation tag is ignored, so that pixels stay where the camera has them. Raises ImageError.
    """
    check_compressed(message)
    if pattern := _bayer_pattern(message):
        values = _decoded(message, cv2.IMREAD_UNCHANGED)
        if values.ndim == 2:
            return _from_mosaic(values, pattern)
    return np.asarray(_decoded(message, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION), np.uint8)


def _decoded(message: CompressedImageMessage, flags: int) -> NDArray[Any]:
    data = np.frombuffer(message.data, np.uint8)
    try:
        image = cv2.imdecode(data, flags)
    except cv2.error:
        image = None
    if image is None:
        raise ImageError("data", f"a compressed image of {data.size} bytes that cannot be decoded")
    return image


def _bayer_pattern(message: CompressedImageMessage) -> str:
    """Return the pattern from a format such as "bayer_rggb8; jpeg compressed "; empty if none."""
    encoding = message.format.partition(";")[0].strip()
    return encoding.rstrip("0123456789") if encoding.startswith("bayer_") else ""


def _from_mosaic(values: NDArray[Any], pattern: str) -> Image:
    """Demosaic native values [H, W]; a JPEG has 8 bits, whatever the camera has."""
    height, width = values.shape
    values = np.ascontiguousarray(values)
    layout = _LAYOUTS.get(f"{pattern}{8 * values.itemsize}")
    if layout is None:
        raise ImageError("encoding", f"unknown Bayer pattern {pattern!r}")
    if min(height, width) < layout.min_side:
        raise _too_small(pattern, height, width, layout.min_side)
    return _from_rows(values.view(np.uint8), sys.byteorder == "big", width, layout)


def bgr_on_gpu(message: CompressedImageMessage, device: torch.device) -> torch.Tensor | None:
    """Decode a JPEG message with nvJPEG to BGR uint8 [H, W, 3] on a CUDA device.

    Returns None for images that need the CPU: those that nvJPEG cannot decode, such as a PNG, and
    Bayer mosaics. Raises ImageError.
    """
    import torch

    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:  # future releases drop it
        return None
    check_compressed(message)
    if _bayer_pattern(message):
        return None
    data = torch.from_numpy(np.frombuffer(message.data, np.uint8))
    if device.type == "cuda":
        # nvJPEG writes on its own stream, maybe into memory that is still read on this one.
        torch.cuda.current_stream(device).synchronize()
    try:
        rgb = decode_jpeg(data, ImageReadMode.RGB, device=device)
    except RuntimeError:  # not a JPEG, or a kind that only the CPU can decode
        return None
    return rgb.flip(0).permute(1, 2, 0).contiguous()


def _png_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a PNG; None if its header is truncated."""
    if len(data) < 24:
        return None
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a JPEG from its frame header; None if there is none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes
            at = len(data) - len(data[at:].lstrip(b"\xff")) - 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return (
                int.from_bytes(data[at + 5 : at + 7], "big"),
                int.from_bytes(data[at + 7 : at + 9], "big"),
            )
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
