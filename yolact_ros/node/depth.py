"""Matches depth images with colour images."""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
import time
import weakref
from collections import deque
from typing import Protocol

from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from yolact_ros.detection import Instances
from yolact_ros.node.images import ImageMessage
from yolact_ros.node.positions import Positions, locate, metres_of

KEPT_IMAGES = 15
"""Depth images kept for colour images that arrive after them: half a second for most cameras.
As 32FC1 (metres) at 1080p they take 124 MB."""

STALLED = 1.0
"""Seconds without a depth image after which no more are waited for; longer for slower cameras."""

CLOCK_JUMP = 100_000_000
"""Nanoseconds by which a stamp may precede the previous one; more means that the clock was set."""


class NoDepthError(Exception):
    """No depth image or no calibration is available for an image."""


class DepthMessage(ImageMessage, Protocol):
    """An image with its header, which holds the stamp."""

    @property
    def header(self) -> Header: ...


class NearestDepth:
    """The depth image nearest to a stamp, among those kept and all that arrive during its lifetime.

    An image therefore finds its depth however long the network takes.
    """

    def __init__(self, stamp: int) -> None:
        self.stamp = stamp
        """In nanoseconds."""
        self.found: tuple[int, DepthMessage] | None = None
        """The depth image and its stamp in nanoseconds."""

    def offer(self, at: int, image: DepthMessage) -> None:
        """Take the image if it is nearer, or equally near and newer."""
        if self.found is None or abs(at - self.stamp) <= abs(self.found[0] - self.stamp):
            self.found = at, image


class DepthImages:
    """The newest depth images and the camera's calibration; thread-safe."""

    def __init__(self, topic: str = "depth", info_topic: str = "camera_info") -> None:
        self._topic, self._info_topic = topic, info_topic
        self._images: deque[tuple[int, DepthMessage]] = deque(maxlen=KEPT_IMAGES)
        self._sought: weakref.WeakSet[NearestDepth] = weakref.WeakSet()
        self._info: CameraInfo | None = None
        self._closed = False
        self._last_arrival = -math.inf  # time.monotonic()
        self._arrived = threading.Condition()

    def put(self, image: DepthMessage) -> None:
        """Keep a depth image; drop earlier ones if time jumps back, as when a bag loops."""
        at = nanoseconds(image.header.stamp)
        with self._arrived:
            if self._images and at < self._images[-1][0] - CLOCK_JUMP:
                self._images.clear()
            self._images.append((at, image))
            for nearest in self._sought:
                nearest.offer(at, image)
            self._last_arrival = time.monotonic()
            self._arrived.notify_all()

    def put_info(self, info: CameraInfo) -> None:
        """Keep the calibration."""
        self._info = info

    def close(self) -> None:
        """Wake all waiting threads and stop further waiting."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()

    def nearest(self, stamp: Time) -> NearestDepth:
        """Start looking for the depth image nearest to a stamp."""
        nearest = NearestDepth(nanoseconds(stamp))
        with self._arrived:
            for at, image in self._images:
                nearest.offer(at, image)
            self._sought.add(nearest)
        return nearest

    def match(self, nearest: NearestDepth, max_offset: float, max_wait: float) -> DepthMessage:
        """Return the depth image that was found, at most `max_offset` seconds away.

        Waits up to `max_wait` seconds while a nearer one may still arrive. Raises NoDepthError.
        """
        wanted, end = nearest.stamp, time.monotonic() + max_wait
        with self._arrived:
            while self._nearer_may_come(wanted, round(max_offset * 1e9)):
                if not self._arrived.wait(max(end - time.monotonic(), 0)):
                    break
            found = nearest.found
        if found is None:
            raise NoDepthError(f"no depth image has come on {self._topic}")
        offset = (found[0] - wanted) / 1e9
        if abs(offset) > max_offset:
            raise NoDepthError(
                f"no depth image within {max_offset} s of an image's stamp; the nearest is "
                f"{abs(offset):.3f} s {'later' if offset > 0 else 'earlier'}"
            )
        return found[1]

    def _nearer_may_come(self, wanted: int, max_offset: int) -> bool:
        """Whether depth is still arriving and its next image may be nearer than those kept."""
        stamps = sorted(at for at, _ in self._images)
        steps = [after - before for before, after in itertools.pairwise(stamps) if after > before]
        # The smallest step: images in between may have been lost.
        step = min(steps, default=0)
        patience = max(STALLED, 2 * step / 1e9)
        if self._closed or time.monotonic() > self._last_arrival + patience:
            return False
        beyond = wanted - stamps[-1]
        if beyond > patience * 1e9:  # another clock
            return False
        if step and step * 3 / 4 - beyond > max_offset:  # the next is too late, even if it is early
            return False
        return beyond > 0 and (beyond > max_offset or beyond > step / 2)

    def locate(
        self, nearest: NearestDepth, instances: Instances, max_offset: float, max_wait: float
    ) -> Positions:
        """Locate the instances of the image that `nearest` was created for.

        Raises NoDepthError if it has no depth, ImageError as `metres_of` and `locate` do.
        """
        if (info := self._info) is None:
            raise NoDepthError(f"no calibration has come on {self._info_topic}")
        image = self.match(nearest, max_offset, max_wait)
        return dataclasses.replace(
            locate(instances, metres_of(image), info),
            depth_frame=image.header.frame_id,
            calibration_frame=info.header.frame_id,
        )


def nanoseconds(stamp: Time) -> int:
    """Convert a stamp to nanoseconds."""
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)
