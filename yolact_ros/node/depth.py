"""3D positions of instances: matches depth images with colour images and projects pixels."""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from yolact_ros.detection import Instances
from yolact_ros.node.images import ImageError, ImageMessage

KEPT_IMAGES = 15
"""Depth images kept for colour images that arrive after them: half a second for most cameras.
As 32FC1 (metres) at 1080p they take 124 MB."""

STALLED = 1.0
"""Seconds without a depth image after which no more are waited for; longer for slower cameras."""

CLOCK_JUMP = 100_000_000
"""Nanoseconds by which a stamp may precede the previous one; more means that the clock was set."""

MILLIMETRE = 0.001
NOISE = 0.05
"""Deviation from an instance's median depth that is always accepted, as a fraction of it."""

Array = NDArray[np.float32]


class NoDepthError(Exception):
    """No depth image or no calibration is available for an image."""


class DepthMessage(ImageMessage, Protocol):
    """An image with its header, which holds the stamp."""

    @property
    def header(self) -> Header: ...


@dataclass(frozen=True)
class Positions:
    """Positions of n instances in metres, in the camera frame (x right, y down, z forward)."""

    valid: NDArray[np.bool_]
    """[n]; false where an instance has no depth."""
    points: Array
    """[n, 3]: the surface point nearest to the per-axis median, which itself may miss the object,
    as with a hole."""
    sizes: Array
    """[n, 3]: extent of the surface points along each axis."""
    middles: Array
    """[n, 3]: centre of that extent."""
    frame_id: str = ""
    """The depth image's; empty if it has none."""


def metres_of(image: ImageMessage) -> Array:
    """Convert a depth image to metres, float32 [H, W], NaN where unknown.

    Accepts 16UC1 and mono16 in millimetres (0: unknown) and 32FC1 in metres. Raises ImageError.
    """
    order = ">" if image.is_bigendian else "<"
    kind = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}.get(image.encoding)
    if kind is None:
        raise ImageError(
            "encoding", f"unknown depth encoding {image.encoding!r}; known are 16UC1, mono16, 32FC1"
        )
    dtype = np.dtype(order + kind)
    data = np.frombuffer(image.data, np.uint8)
    if image.step < image.width * dtype.itemsize or image.step % dtype.itemsize:
        raise ImageError("step", f"a step of {image.step} bytes for {image.width} depth pixels")
    if data.size != image.height * image.step or data.size == 0:
        raise ImageError(
            "data", f"{data.size} bytes of depth; {image.height} rows of {image.step} are needed"
        )
    values = data.reshape(image.height, image.step).view(dtype)[:, : image.width]
    metres = values.astype(np.float32) * np.float32(MILLIMETRE if kind == "u2" else 1)
    metres[~(np.isfinite(metres) & (metres > 0))] = np.nan
    return metres


def locate(instances: Instances, metres: Array, info: CameraInfo) -> Positions:
    """Locate instances with a depth image of the same size and the camera's calibration.

    Points whose depth is more than 3 standard deviations (estimated from the median absolute
    deviation) from the instance's median are background at its edge and are left out. Raises
    ImageError if the sizes differ or the camera is not calibrated.
    """
    fx, fy, cx, cy = _intrinsics(info, *metres.shape)
    if metres.shape != instances.image_size:
        raise ImageError(
            "size",
            f"depth of {metres.shape[1]} x {metres.shape[0]} pixels for an image of "
            f"{instances.image_size[1]} x {instances.image_size[0]}; depth must be registered",
        )
    n = len(instances)
    positions = Positions(np.zeros(n, bool), *np.zeros((3, n, 3), np.float32))
    if not instances.has_masks:
        return positions
    regions = instances.regions()
    for i, (x1, y1, x2, y2) in enumerate(regions.rectangles.tolist()):
        patch = metres[y1:y2, x1:x2]
        rows, columns = np.nonzero(regions.mask(i).numpy() & np.isfinite(patch))
        if len(rows) == 0:
            continue
        z = patch[rows, columns]
        middle = np.median(z)
        deviation = np.abs(z - middle)
        near = deviation <= max(NOISE * middle, 3 * 1.4826 * np.median(deviation))
        x, y, z = columns[near] + x1, rows[near] + y1, z[near]
        points = np.stack(((x - cx) * z / fx, (y - cy) * z / fy, z), axis=1)
        positions.valid[i] = True
        away = points - np.median(points, axis=0)
        positions.points[i] = points[np.argmin((away * away).sum(axis=1))]
        low, high = points.min(axis=0), points.max(axis=0)
        positions.sizes[i], positions.middles[i] = high - low, (low + high) / 2
    return positions


def _intrinsics(info: CameraInfo, height: int, width: int) -> tuple[float, float, float, float]:
    """Return (fx, fy, cx, cy) in pixels of an image of this size, which may be binned or cropped.

    They are those of the rectified image (P), as in depth_image_proc, or of the raw image (K) if
    P is not set. Raises ImageError if the size differs from the calibration's or there is none.
    """
    matrix, columns = (info.k, 3) if info.p[0] == 0 else (info.p, 4)
    fx, fy, cx, cy = (float(matrix[i]) for i in (0, columns + 1, 2, columns + 2))
    if not (np.isfinite((fx, fy, cx, cy)).all() and fx > 0 and fy > 0):
        raise ImageError(
            "data",
            f"the camera_info has fx={fx:g}, fy={fy:g}, cx={cx:g}, cy={cy:g}: the camera is "
            "uncalibrated",
        )
    x_bin, y_bin = max(info.binning_x, 1), max(info.binning_y, 1)
    size = (info.roi.height or info.height) // y_bin, (info.roi.width or info.width) // x_bin
    if all(size) and size != (height, width):
        raise ImageError(
            "size",
            f"the camera_info is for {size[1]} x {size[0]} pixels, depth has {width} x {height}",
        )
    return (
        fx / x_bin,
        fy / y_bin,
        (cx - info.roi.x_offset) / x_bin,
        (cy - info.roi.y_offset) / y_bin,
    )


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
        if self._info is None:
            raise NoDepthError(f"no calibration has come on {self._info_topic}")
        image = self.match(nearest, max_offset, max_wait)
        positions = locate(instances, metres_of(image), self._info)
        return dataclasses.replace(positions, frame_id=image.header.frame_id)


def nanoseconds(stamp: Time) -> int:
    """Convert a stamp to nanoseconds."""
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)
