"""Instances and images as ROS messages."""

from __future__ import annotations

import array
import sys
from typing import TYPE_CHECKING

import cv2
import numpy as np
from geometry_msgs.msg import Point, Vector3
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from yolact_ros import masks
from yolact_ros.msg import Instance, InstanceArray, Mask

if TYPE_CHECKING:  # the measurement's camera process should not have to import torch
    from yolact_ros.detection import Instances
    from yolact_ros.node.positions import Positions


def instance_array(
    header: Header, instances: Instances, encoding: str, positions: Positions | None = None
) -> InstanceArray:
    """Convert all instances of one image, with masks in the given encoding (see Mask.msg)."""
    height, width = instances.image_size
    message = InstanceArray(header=header, height=height, width=width)
    boxes = _box_messages(instances)
    mask_messages = _mask_messages(instances, encoding)
    numbers = zip(
        instances.class_ids.tolist(),
        instances.names,
        instances.scores.tolist(),
        instances.mask_scores.tolist(),
        boxes,
        mask_messages,
        strict=True,
    )
    message.instances = [
        Instance(
            class_id=i, class_name=name, score=score, mask_score=mask_score, box=box, mask=mask
        )
        for i, name, score, mask_score, box, mask in numbers
    ]
    if positions is not None:
        _add_positions(message.instances, positions)
    return message


def _add_positions(found: list[Instance], positions: Positions) -> None:
    for i in positions.valid.nonzero()[0].tolist():
        found[i].position_valid = True
        x, y, z = positions.points[i].tolist()
        found[i].position = Point(x=x, y=y, z=z)
        x, y, z = positions.sizes[i].tolist()
        found[i].size = Vector3(x=x, y=y, z=z)


def _box_messages(instances: Instances) -> list[RegionOfInterest]:
    height, width = instances.image_size
    found = []
    for x1, y1, x2, y2 in instances.integer_boxes().tolist():
        x, y = min(max(x1, 0), width), min(max(y1, 0), height)
        right, bottom = min(x2, width), min(y2, height)
        found.append(
            RegionOfInterest(
                x_offset=x, y_offset=y, width=max(right - x, 0), height=max(bottom - y, 0)
            )
        )
    return found


def _mask_messages(instances: Instances, encoding: str) -> list[Mask]:
    if not instances.has_masks:
        return [Mask() for _ in range(len(instances))]
    regions = instances.regions()
    rectangles = regions.rectangles.numpy()
    data = masks.encode_regions(
        rectangles, regions.pixels.numpy(), regions.offsets.numpy(), encoding
    )
    return [
        Mask(
            x_offset=x1,
            y_offset=y1,
            width=x2 - x1,
            height=y2 - y1,
            encoding=encoding,
            data=array.array("B", each),
        )
        for (x1, y1, x2, y2), each in zip(rectangles.tolist(), data, strict=True)
    ]


def bgr_image(header: Header, image: NDArray[np.uint8]) -> Image:
    """Convert a BGR image [H, W, 3] to a bgr8 message."""
    return _image(header, image, "bgr8")


def label_image(header: Header, instances: Instances) -> Image:
    """Make a mono16 image: 0 is background, i + 1 is instances[i]; the highest score wins."""
    if not instances.has_masks:
        labels = np.zeros(instances.image_size, np.uint16)
    else:
        labels = instances.label_image().numpy().astype(np.uint16)
    return _image(header, labels, "mono16")


def _image(header: Header, pixels: NDArray[np.uint8] | NDArray[np.uint16], encoding: str) -> Image:
    return Image(
        header=header,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=sys.byteorder == "big",
        step=pixels.nbytes // pixels.shape[0],
        data=array.array("B", pixels.tobytes()),
    )


def jpeg_image(header: Header, image: NDArray[np.uint8], quality: int) -> CompressedImage:
    """Encode a BGR image [H, W, 3] as JPEG, quality 1 to 100, with image_transport's format."""
    _, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return CompressedImage(
        header=header, format="bgr8; jpeg compressed bgr8", data=array.array("B", data.tobytes())
    )
