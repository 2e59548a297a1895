"""A ROS graph to measure: cameras, the node, and this process, which receives the answers."""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile

from yolact_ros.msg import InstanceArray
from yolact_ros.node.cameras import cameras_of
from yolact_ros.node.measure.camera import CameraSettings, beside, show
from yolact_ros.node.processes import Health, started

NAMESPACE = "/yolact_measure"
START_TIMEOUT = 120.0
"""Seconds to wait for the first answer, not counting model loading."""


class MeasureError(Exception):
    """A measurement failed; the message says why."""


@dataclass(frozen=True)
class Answer:
    """The instances of one image, as a subscriber receives them."""

    camera: int
    received: float
    """time.monotonic() in seconds."""
    milliseconds: float
    """Milliseconds from the image's stamp, which the camera sets just before it publishes."""


class Graph:
    """A running graph; `node` is the process of the node."""

    def __init__(self, node: subprocess.Popen[bytes], cameras: Sequence[str]) -> None:
        self.node = node
        self._cameras = len(cameras)
        self._answers: list[Answer] = []
        self._listener = rclpy.create_node("listener")
        for i, camera in enumerate(cameras_of(list(cameras))):
            topic = camera.output("instances").replace("~", f"{NAMESPACE}/yolact", 1)
            # Serialized, to take as little as possible from the measured node.
            keep = partial(self._keep, i)
            self._listener.create_subscription(
                InstanceArray, topic, keep, QoSProfile(depth=5), raw=True
            )
        self._health = Health(self._listener, f"{NAMESPACE}/yolact")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._listener)

    def _keep(self, camera: int, message: bytes) -> None:
        seconds, nanoseconds = struct.unpack_from("<iI", message, 4)
        now = self._listener.get_clock().now().nanoseconds
        latency = now - 10**9 * seconds - nanoseconds
        self._answers.append(Answer(camera, time.monotonic(), latency / 1e6))

    def watch(self, seconds: float) -> list[Answer]:
        """Collect answers for some seconds. Raises MeasureError if the node ends or fails."""
        self._answers = []
        self._spin(time.monotonic() + seconds)
        return self._answers

    def wait(self) -> None:
        """Wait until every camera has been answered."""
        end = time.monotonic() + START_TIMEOUT
        while len({answer.camera for answer in self._answers}) < self._cameras:
            if self._health.is_configuring:
                end = time.monotonic() + START_TIMEOUT
            if time.monotonic() > end:
                raise MeasureError(f"no answer within {START_TIMEOUT:.0f} s")
            self._spin(time.monotonic() + 0.2)

    def close(self) -> None:
        """Leave the graph, before rclpy is shut down."""
        self._executor.shutdown()
        self._listener.destroy_node()

    def _spin(self, end: float) -> None:
        while (left := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=min(left, 0.5))
            if self.node.poll() is not None:
                raise MeasureError(f"the node ended with status {self.node.returncode}; see above")
            if self._health.problem:
                raise MeasureError(self._health.problem)


@contextmanager
def running(
    settings: CameraSettings, cameras: int, ros_arguments: Sequence[str] = ()
) -> Iterator[Graph]:
    """Run a graph with some cameras, once it answers. `ros_arguments` are for the node."""
    topics = [f"{NAMESPACE}/camera{i}/image_raw" for i in range(cameras)]
    arguments = ["-r", f"__ns:={NAMESPACE}"]
    for value in (
        f"image_topic:={','.join(topics)}",
        f"compressed:={str(settings.compressed).lower()}",
        "qos.reliability:=reliable",
    ):
        arguments += ["-p", value]
    rclpy.init(args=[])
    try:
        with ExitStack() as stack:
            node = stack.enter_context(started("yolact_node", [*arguments, *ros_arguments]))
            stack.enter_context(beside(show, settings, topics))
            graph = Graph(node, topics)
            stack.callback(graph.close)
            graph.wait()
            yield graph
    finally:
        rclpy.try_shutdown()
