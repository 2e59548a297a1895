"""Images of data sets, in the orientation that their annotations refer to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from yolact_ros.data.problems import DataError
from yolact_ros.image_files import ImageFileError, read_image

_EXIF_ORIENTATION = 0x0112
_ON_ITS_SIDE = range(5, 9)


def image_path(folder: Path, name: str) -> Path:
    """Return the path of the image `name`. Its backslashes are those of Windows (Label Studio),
    unless there is a file of that name."""
    path = folder / name
    if "\\" not in name or is_there(path):
        return path
    return folder / name.replace("\\", "/")


def is_there(path: Path) -> bool:
    """Whether a file exists; False if its name is too long for one."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_annotated_image(path: Path, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """Read an image as BGR uint8 [H, W, 3].

    With the `size` (height, width) of its annotations, the image is read in the orientation that
    fits them, see `fits_as_stored`; otherwise as displayed. Raises DataError for a missing or
    unreadable image, or one of another size.
    """
    try:
        if size is None:
            return read_image(path)
        with Image.open(path) as header:
            as_stored = fits_as_stored(header, path, size)
        image = read_image(path, as_stored)
    except ImageFileError as error:
        raise DataError(str(error)) from error
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if image.shape[:2] != size:  # Pillow and OpenCV may disagree on the orientation
        height, width = image.shape[:2]
        raise DataError(
            f"{path} is read as {width} x {height} pixels, its entry says {size[1]} x {size[0]}: "
            "store it as it is displayed, without an EXIF orientation"
        )
    return image


def fits_as_stored(header: Image.Image, path: Path, size: tuple[int, int]) -> bool:
    """Whether an image has the `size` (height, width) as stored; otherwise it has it as displayed.

    Cameras may store images rotated and record that in the EXIF orientation. Annotations may
    refer to either; their size tells which. Raises DataError if neither has that size.
    """
    stored = header.height, header.width
    if stored == size:
        return True
    if stored == size[::-1] and header.getexif().get(_EXIF_ORIENTATION) in _ON_ITS_SIDE:
        return False
    raise DataError(
        f"{path} has {header.width} x {header.height} pixels, its entry says {size[1]} x {size[0]}"
    )
