"""Video files, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from yolact_ros.image_files import UnreadableError

# Number or fraction of frames that may be missing: some files only estimate their number.
_FEW, _SHARE = 1, 0.02


class Video:
    """An open video file, used as a context manager; iterating yields its frames once.

    Raises UnreadableError for a file that is not a video.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            str(path).encode()
        except UnicodeEncodeError as error:  # OpenCV would end the process
            raise UnreadableError(f"{path} has a name that is not UTF-8: rename it") from error
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise UnreadableError(f"{path} is not a video that can be read, or was cut short")
        self.rate = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        """Frames per second."""
        self.frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        """Number of frames according to the file; 0 if unknown."""

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *error: object) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield frames, BGR [H, W, 3]. Raises UnreadableError at the end of a truncated file."""
        count, reached = 0, 0.0
        while True:
            good, frame = self._capture.read()
            if not good:
                break
            count += 1
            # With a variable frame rate, the number of frames is an estimate, but not the time.
            reached = 1 + self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 * self.rate
            yield np.asarray(frame, np.uint8)
        missing = self.frames - max(count, reached)
        if not count or missing > max(_FEW, _SHARE * self.frames):
            of = f" of {self.frames}" if self.frames else ""
            raise UnreadableError(f"{self.path} ends after {count}{of} frames")
