"""Picture files: one way to read them, one to write them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt


class PictureError(ValueError):
    """A picture that cannot be read or written; the message names the file."""


def read_picture(path: Path, as_stored: bool = False) -> npt.NDArray[np.uint8]:
    """A picture as BGR uint8 [H, W, 3], turned as its EXIF orientation says unless `as_stored`.

    Raises PictureError when it is missing or no picture.
    """
    flags = cv2.IMREAD_COLOR | (cv2.IMREAD_IGNORE_ORIENTATION if as_stored else 0)
    try:
        picture = cv2.imread(str(path), flags)
    except cv2.error as error:  # such as too many pixels
        raise PictureError(f"{path} cannot be read: {error}") from error
    if picture is None:
        raise PictureError(f"{path} is missing or is not a picture that can be read")
    return np.asarray(picture, np.uint8)


def write_picture(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Write a BGR picture in the format that the name's ending says, and make its folder.

    Raises PictureError when that cannot be done.
    """
    if not cv2.haveImageWriter(str(path)):
        raise PictureError(f"{path} cannot be written: its ending is of no format, such as .png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PictureError(f"{path} cannot be written: {error}") from error
    if not cv2.imwrite(str(path), picture):
        raise PictureError(f"{path} cannot be written")
