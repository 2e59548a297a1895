"""Latency of the middleware between two processes."""

from __future__ import annotations

import time

import rclpy
from rclpy.time import Time

from yolact_ros.node.measure.camera import NEWEST, CameraSettings, beside, show
from yolact_ros.node.measure.graph import NAMESPACE, START_TIMEOUT, MeasureError
from yolact_ros.node.measure.stages import CAMERA, WARM_UP
from yolact_ros.node.pipeline import read_message
from yolact_ros.node.statistics import Latency


def transport(settings: CameraSettings, frames: int) -> Latency:
    """Measure from the stamp, just before `publish`, until a subscriber here has the bytes.

    Raises MeasureError if images do not arrive.
    """
    rclpy.init(args=[])
    try:
        node = rclpy.create_node("receiver", namespace=NAMESPACE)
        taken: list[float] = []

        def take(message: bytes) -> None:
            now = node.get_clock().now()
            stamp = Time.from_msg(read_message(message, settings.compressed).header.stamp)
            taken.append((now.nanoseconds - stamp.nanoseconds) / 1e6)

        node.create_subscription(settings.kind, settings.topic(CAMERA), take, NEWEST, raw=True)
        with beside(show, settings, [CAMERA]):
            end = time.monotonic() + START_TIMEOUT + 2 * (frames + WARM_UP) / settings.rate
            while len(taken) < frames + WARM_UP:
                rclpy.spin_once(node, timeout_sec=1)
                if time.monotonic() > end:
                    raise MeasureError(f"only {len(taken)} images arrived; the others were lost")
    finally:
        rclpy.try_shutdown()
    return Latency.of(taken[WARM_UP:])
