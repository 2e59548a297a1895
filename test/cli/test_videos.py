"""Videos are read to their ends, or there is an error that says where they end."""

import os

import cv2
import numpy as np
import pytest

from yolact_ros.cli.videos import Video
from yolact_ros.image_files import UnreadableError


class Capture:
    """A capture of some frames, at the milliseconds `times`, of a file that says it has `total`."""

    def __init__(self, total, rate, times):
        self.values = {cv2.CAP_PROP_FRAME_COUNT: total, cv2.CAP_PROP_FPS: rate}
        self.times = iter(times)
        self.isOpened = lambda: True
        self.released = False

    def get(self, name):
        return self.values[name]

    def read(self):
        time = next(self.times, None)
        self.values[cv2.CAP_PROP_POS_MSEC] = time or 0.0
        return time is not None, np.zeros((2, 2, 3), np.uint8)

    def release(self):
        self.released = True


@pytest.fixture
def capture(monkeypatch):
    """A function: what OpenCV opens from now on."""

    def of(*arguments):
        fake = Capture(*arguments)
        monkeypatch.setattr(cv2, "VideoCapture", lambda path: fake)
        return fake

    return of


def evenly(count, milliseconds):
    return [i * milliseconds for i in range(count)]


@pytest.mark.parametrize(
    ("total", "rate", "times"),
    [
        (20, 10, evenly(20, 100)),
        (20, 10, evenly(19, 100)),
        (1000, 10, evenly(985, 100)),
        (0, 10, evenly(7, 100)),
        (-9e18, 10, evenly(7, 100)),
        # A browser's film: thousandths of seconds for frames, which come at times of their own.
        (10_000, 1000, evenly(200, 50)),
    ],
)
def test_whole_videos(capture, tmp_path, total, rate, times):
    capture(total, rate, times)
    with Video(tmp_path / "a.webm") as video:
        assert len(list(video)) == len(times)


@pytest.mark.parametrize(
    ("total", "rate", "times", "message"),
    [
        (20, 10, evenly(10, 100), "a.avi ends after 10 of 20 frames"),
        (3, 10, evenly(1, 100), "a.avi ends after 1 of 3 frames"),
        (1000, 10, evenly(970, 100), "a.avi ends after 970 of 1000 frames"),
        (10_000, 1000, evenly(100, 50), "a.avi ends after 100 of 10000 frames"),
        (0, 10, [], "a.avi ends after 0 frames"),
    ],
)
def test_videos_that_end_early(capture, tmp_path, total, rate, times, message):
    fake = capture(total, rate, times)
    frames = []
    with pytest.raises(UnreadableError, match=message), Video(tmp_path / "a.avi") as video:
        frames.extend(iter(video))
    assert fake.released


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / os.fsdecode(b"bad\xff.mp4")
    path.touch()
    with pytest.raises(UnreadableError, match="not UTF-8"):
        Video(path)


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "a.mp4").write_text("text")
    with pytest.raises(UnreadableError, match=r"a\.mp4 is not a video"):
        Video(tmp_path / "a.mp4")
