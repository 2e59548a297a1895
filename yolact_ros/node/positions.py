"""3D positions of instances, from a depth image and the camera's calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo

from yolact_ros.detection import Instances
from yolact_ros.node.images import ImageError, ImageMessage

MILLIMETRE = 0.001
NOISE = 0.05
"""Deviation from an instance's median depth that is always accepted, as a fraction of it."""

Array = NDArray[np.float32]


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
    depth_frame: str = ""
    """The frame id of the depth image; empty if it has none."""
    calibration_frame: str = ""
    """The frame id of its calibration; empty if it has none."""


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
