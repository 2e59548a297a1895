"""A simulated camera of a given size, encoding and rate, in its own process."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import rclpy
from numpy.typing import NDArray
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from yolact_ros.image_files import PHOTOS, read_image
from yolact_ros.msg import InstanceArray
from yolact_ros.node.messages import bgr_image, jpeg_image

NEWEST = QoSProfile(depth=1)
"""Reliable, the default: an image is lost only if a newer one replaces it."""

_COLOURS = {"bgr8": None, "rgb8": cv2.COLOR_BGR2RGB, "mono8": cv2.COLOR_BGR2GRAY}
ENCODINGS = (*_COLOURS, "jpeg")


@dataclass(frozen=True)
class CameraSettings:
    """How a camera publishes the package's photographs."""

    width: int
    height: int
    encoding: str
    """One of `ENCODINGS`."""
    rate: float
    """Images per second."""

    @property
    def compressed(self) -> bool:
        return self.encoding == "jpeg"

    @property
    def kind(self) -> type:
        return CompressedImage if self.compressed else Image

    def topic(self, camera: str) -> str:
        """Return the topic that a camera's images are published on."""
        return f"{camera}/compressed" if self.compressed else camera

    def messages(self) -> list[Any]:
        """Return the photographs as messages."""
        images = [read_image(path) for path in sorted(PHOTOS.glob("*.jpg"))]
        size = (self.width, self.height)
        return [self._message(np.asarray(cv2.resize(each, size), np.uint8)) for each in images]

    def _message(self, image: NDArray[np.uint8]) -> Any:
        if self.compressed:
            return jpeg_image(Header(), image, 90)
        code = _COLOURS[self.encoding]
        pixels = image if code is None else cv2.cvtColor(image, code)
        message = bgr_image(Header(), np.asarray(pixels, np.uint8))
        message.encoding = self.encoding
        return message


@contextmanager
def beside(work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Context manager that runs a function that uses rclpy and never returns in another process."""
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(work, arguments), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _run(work: Callable[..., None], arguments: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    work(*arguments)


def show(settings: CameraSettings, cameras: Sequence[str]) -> None:
    """Publish the same images on the topics of some cameras, in turn, forever."""
    node = rclpy.create_node("measured_camera")
    publishers: list[Publisher] = [
        node.create_publisher(settings.kind, settings.topic(camera), NEWEST) for camera in cameras
    ]
    messages = settings.messages()
    # Space the cameras' images evenly instead of in bursts.
    period = 1 / settings.rate / len(cameras)
    due, count = time.monotonic(), 0
    while True:
        message = messages[count // len(cameras) % len(messages)]
        message.header.stamp = node.get_clock().now().to_msg()
        publishers[count % len(cameras)].publish(message)
        count += 1
        due += period
        time.sleep(max(due - time.monotonic(), 0))


def listen(topic: str) -> None:
    """Receive instances on a topic, forever."""
    node = rclpy.create_node("listener")
    node.create_subscription(InstanceArray, topic, lambda _: None, 5, raw=True)
    rclpy.spin(node)
