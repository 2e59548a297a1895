"""A camera that publishes the images of a folder, for demos.

Node `camera`, topic `~/image_raw`. `header.frame_id` is the image's file name.
"""

from __future__ import annotations

import os
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

from yolact_ros.image_files import UnreadableError, read_image
from yolact_ros.node.messages import bgr_image


class FolderCamera(Node):
    """Publishes the images of a folder one after another, in a loop, as bgr8.

    Images are read when they are due, since a folder may be larger than the memory. Raises
    ValueError if there is none, or if the first cannot be read.
    """

    def __init__(self) -> None:
        super().__init__("camera")
        folder = self._parameter("folder", "", "Folder of JPEG and PNG files.")
        rate = self._parameter("rate", 2.0, "Images a second.")
        if not 0.001 <= rate <= 1000:
            raise ValueError(f"rate={rate} is not allowed: it must be 0.001 to 1000")
        self._paths = find_images(folder)
        self._next: list[Path] = []
        read_image(self._paths[0])
        self._publisher = self.create_publisher(Image, "~/image_raw", 10)
        self.create_timer(1.0 / rate, self._show_next)
        self.get_logger().info(
            f"Publishing {len(self._paths)} images from {folder} on {self._publisher.topic_name}, "
            f"{rate:g} per second"
        )

    def _parameter(self, name: str, default: object, description: str) -> Any:
        descriptor = ParameterDescriptor(description=description, read_only=True)
        return self.declare_parameter(name, default, descriptor).value

    def _show_next(self) -> None:
        if not self._next:
            # A new order each time: a node that processes every second frame must not keep missing
            # the same half of the images.
            self._next = random.sample(self._paths, len(self._paths))
        path = self._next.pop()
        try:
            image = read_image(path)
        except UnreadableError as error:
            self.get_logger().warning(f"Passed over: {error}")
            return
        name = os.fsencode(path.name).decode(errors="replace")  # messages have UTF-8
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=name)
        self._publisher.publish(bgr_image(header, image))


def find_images(folder: str) -> list[Path]:
    """Return the JPEG and PNG files in `folder`, which may begin with ~. Raises ValueError."""
    try:
        path = Path(folder).expanduser()
        names = path.iterdir() if path.is_dir() else iter(())
        found = sorted(each for each in names if each.suffix.lower() in (".jpg", ".jpeg", ".png"))
    except (OSError, RuntimeError) as error:  # no permission, an unknown user ...
        raise ValueError(f"folder={folder!r} cannot be read: {error}") from error
    if not found:
        raise ValueError(f"there are no .jpg or .png files in the folder {str(path)!r}")
    return found


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
