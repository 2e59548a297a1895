"""A camera that publishes the images of a folder, for demos.

Node `camera`, topic `~/image_raw`. `header.frame_id` is the image's file name.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from yolact_ros.image_files import read_image
from yolact_ros.node.messages import bgr_image


class FolderCamera(Node):
    """Publishes the images of a folder one after another, in a loop, as bgr8.

    Raises ValueError if the folder has no readable images.
    """

    def __init__(self) -> None:
        super().__init__("camera")
        folder = self._parameter("folder", "", "Folder of JPEG and PNG files.")
        rate = self._parameter("rate", 2.0, "Images a second.")
        if not 0 < rate <= 1000:
            raise ValueError(f"rate={rate} is not allowed: it must be above 0 and at most 1000")
        self._messages = read_images(Path(folder).expanduser())
        self._next: list[str] = []
        self._publisher = self.create_publisher(Image, "~/image_raw", 10)
        self.create_timer(1.0 / rate, self._show_next)

    def _parameter(self, name: str, default: object, description: str) -> Any:
        descriptor = ParameterDescriptor(description=description)
        return self.declare_parameter(name, default, descriptor).value

    def _show_next(self) -> None:
        if not self._next:
            # A new order each time: a node that processes every second frame must not keep missing
            # the same half of the images.
            self._next = random.sample(sorted(self._messages), len(self._messages))
        name = self._next.pop()
        message = self._messages[name]
        message.header.stamp = self.get_clock().now().to_msg()
        self._publisher.publish(message)


def read_images(folder: Path) -> dict[str, Image]:
    """Return the images in `folder` as messages by file name. Raises ValueError if none."""
    messages = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            continue
        messages[path.name] = bgr_image(Header(frame_id=path.name), read_image(path))
    if not messages:
        raise ValueError(f"there are no .jpg or .png files in the folder {str(folder)!r}")
    return messages


def main() -> int:
    try:
        rclpy.init()
    except RuntimeError as error:  # bad arguments or a bad parameter file
        print(f"camera: {error!r}", file=sys.stderr)
        return 1
    try:
        rclpy.spin(FolderCamera())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except rclpy_implementation.RCLError:
        # A signal may shut down the context while an image is being published.
        if rclpy.ok():
            raise
    except (ValueError, ParameterException) as error:
        print(f"camera: {error}", file=sys.stderr)
        return 1
    return 0
