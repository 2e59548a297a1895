"""Reading and writing image files."""

from __future__ import annotations

import re
from mmap import mmap
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
"""BGR, [H, W, 3]."""
PHOTOS = Path(__file__).parent / "demo" / "photos"
"""The photographs that come with the package."""

JPEG_START, PNG_START = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
# Neither end marker can occur within the pixel data.
_JPEG_END, _PNG_END = b"\xff\xd9", b"IEND\xae\x42\x60\x82"
_JPEG_MARKER, _JPEG_SCAN = re.compile(rb"\xff[\x01-\xfe]"), b"\xff\xda"


class ImageFileError(ValueError):
    """An image that cannot be read or written; the message names the file."""


class UnreadableError(ImageFileError):
    """An image or video that is missing, truncated or unreadable."""


def read_image(path: Path, as_stored: bool = False) -> Image:
    """Read an image as BGR uint8 [H, W, 3], with its EXIF orientation applied unless `as_stored`.

    Raises UnreadableError if it is missing, truncated or not an image.
    """
    flags = cv2.IMREAD_COLOR | (cv2.IMREAD_IGNORE_ORIENTATION if as_stored else 0)
    try:
        data = path.read_bytes()
        if is_cut_short(data):  # some decoders would fill the rest with grey
            raise UnreadableError(f"{path} is cut short")
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except FileNotFoundError as error:
        raise UnreadableError(f"{path} is missing") from error
    except (OSError, cv2.error) as error:  # such as a folder, or too many pixels
        raise UnreadableError(f"{path} cannot be read: {error}") from error
    if image is None:
        raise UnreadableError(f"{path} is not an image that can be read")
    return np.asarray(image, np.uint8)


def is_cut_short(data: bytes | mmap) -> bool:
    """Whether a JPEG or PNG lacks its end marker; trailing bytes are ignored. Else False."""
    if data[: len(JPEG_START)] == JPEG_START:
        whole = data[-len(_JPEG_END) :] == _JPEG_END
        return not whole and data.find(_JPEG_END, _first_scan(data)) < 0
    if data[: len(PNG_START)] == PNG_START:
        return data.rfind(_PNG_END) < 0
    return False


def _first_scan(data: bytes | mmap) -> int:
    """Return where a JPEG's pixels begin: segments before them may hold a thumbnail JPEG."""
    at = 2
    while found := _JPEG_MARKER.search(data, at):
        at = found.end()
        if found[0] == _JPEG_SCAN:
            return at
        at += int.from_bytes(data[at : at + 2], "big")
    return len(data)


def write_image(path: Path, image: Image) -> None:
    """Write a BGR image, uint8 [H, W, 3], in the format of the suffix; create its folder.

    Raises ImageFileError if that fails.
    """
    ending = path.suffix.encode("ascii", "replace").decode()
    if not cv2.haveImageWriter(f"image{ending}"):
        raise ImageFileError(f"{path} cannot be written: its ending is of no format, such as .png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # With names that are not UTF-8, OpenCV would abort the process.
        path.write_bytes(cv2.imencode(ending, image)[1].tobytes())
    except (OSError, cv2.error) as error:
        raise ImageFileError(f"{path} cannot be written: {error}") from error
