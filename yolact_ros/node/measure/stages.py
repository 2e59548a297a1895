"""Time of the node's own work for one image and of the network, stage by stage."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import rclpy
from rclpy.lifecycle import LifecycleNode

from yolact_ros.engine import Segmenter
from yolact_ros.node.cameras import Camera
from yolact_ros.node.executor import NodeExecutor
from yolact_ros.node.measure.camera import NEWEST, CameraSettings, beside, listen, show
from yolact_ros.node.measure.graph import NAMESPACE, START_TIMEOUT, MeasureError
from yolact_ros.node.outputs import Outputs
from yolact_ros.node.parameters import Parameters
from yolact_ros.node.pipeline import image_of, read_message
from yolact_ros.node.statistics import Latency

OWN = ("receive", "check", "decode", "publish")
"""The node's own stages: receiving in the executor (with rclpy's copy of the message), parsing and
checking the message, decoding it to BGR, and publishing (masks, message and rclpy)."""
NETWORK = ("preprocessing", "network", "detection")
"""The stages of the segmenter."""

CAMERA = f"{NAMESPACE}/camera0"
WARM_UP = 5
"""Images that are not measured."""


def measure(
    settings: CameraSettings, segmenter: Segmenter, instances: int, encoding: str, frames: int
) -> dict[str, Latency]:
    """Measure all stages for `frames` images with exactly `instances` instances each.

    The setup is real: a camera and a subscriber in their own processes, the node's executor and
    the node's own functions. Raises MeasureError.
    """
    _let_find(segmenter, instances)
    rclpy.init(args=[])
    try:
        chain = _Chain(settings, segmenter, encoding)
        with beside(show, settings, [CAMERA]), beside(listen, f"{NAMESPACE}/yolact/instances"):
            rows = [chain.process_image() for _ in range(WARM_UP + frames)][WARM_UP:]
    finally:
        rclpy.try_shutdown()
    times = dict(zip((*OWN, *NETWORK), zip(*rows, strict=True), strict=True))
    times["own work"] = tuple(map(sum, zip(*(times[name] for name in OWN), strict=True)))
    return {name: Latency.of(row) for name, row in times.items()}


def _let_find(segmenter: Segmenter, instances: int) -> None:
    """Change the settings so that `instances` instances are found in any image, if possible."""
    # Without thresholds and with many candidates, NMS keeps enough distinct boxes. A detection
    # stage inside an exported graph may find fewer.
    wanted: dict[str, Any] = {
        "score_threshold": 0.0,
        "confidence_threshold": 0.0,
        "nms_top_k": max(segmenter.settings.nms_top_k, 2000 // len(segmenter.class_names)),
    }
    fixed = segmenter.runtime.header.fixed_settings
    free = {name: value for name, value in wanted.items() if name not in fixed}
    segmenter.settings = replace(segmenter.settings, top_k=instances, **free)


class _Chain:
    """The node's functions from a camera's message to its own, called one after another."""

    def __init__(self, settings: CameraSettings, segmenter: Segmenter, encoding: str) -> None:
        self._settings, self._segmenter = settings, segmenter
        self._parameters = Parameters(mask_encoding=encoding, overlay_enabled=False)
        topic = settings.topic(CAMERA)
        node = LifecycleNode("yolact", namespace=NAMESPACE)
        camera = Camera(topic, "")
        self._outputs = Outputs(node, camera, node.resolve_topic_name, with_markers=False)
        node.trigger_configure()
        node.trigger_activate()
        self._received: list[bytes] = []
        node.create_subscription(settings.kind, topic, self._received.append, NEWEST, raw=True)
        self._executor = NodeExecutor()
        self._executor.add_node(node)

    def process_image(self) -> tuple[float, ...]:
        """Return the milliseconds of `OWN` and `NETWORK` for the next image."""
        started, serialized = self._receive()
        received = time.perf_counter()
        message = read_message(serialized, self._settings.compressed)
        checked = time.perf_counter()
        image = image_of(message, self._segmenter.device)
        decoded = time.perf_counter()
        (found,), network = self._segmenter.submit([image]).result()
        if len(found) != (wanted := self._segmenter.settings.top_k):
            raise MeasureError(f"the model finds {len(found)} instances, not {wanted}")
        segmented = time.perf_counter()
        self._outputs.publish(message.header, image, found, None, self._parameters)
        published = time.perf_counter()
        return (
            1e3 * (received - started),
            1e3 * (checked - received),
            1e3 * (decoded - checked),
            1e3 * (published - segmented),
            network.preprocess,
            network.network,
            network.detection,
        )

    def _receive(self) -> tuple[float, bytes]:
        """Let an image arrive, then take it. Returns the time when taking it began, and the
        message."""
        end = time.monotonic() + START_TIMEOUT
        time.sleep(2 / self._settings.rate)  # the image is now waiting in the middleware
        while time.monotonic() < end:
            started = time.perf_counter()
            self._executor.spin_once(timeout_sec=0)
            if self._received:  # else another callback ran
                return started, self._received.pop()
        raise MeasureError(f"no image within {START_TIMEOUT:.0f} s")
