"""Time of the node's own work for one image and of the network, stage by stage."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
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

WARM_UP = 5
"""Images that are not measured."""


def measure(
    settings: CameraSettings, segmenter: Segmenter, instances: int, encoding: str, frames: int
) -> dict[str, Latency]:
    """Measure all stages for `frames` images with exactly `instances` instances each.

    The setup is real: a camera and a subscriber in their own processes, the node's executor and
    the node's own functions. Raises MeasureError.
    """
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
    topic = settings.topic(f"{NAMESPACE}/camera0")
    parameters = Parameters(mask_encoding=encoding, overlay_enabled=False)
    rclpy.init(args=[])
    try:
        node = LifecycleNode("yolact", namespace=NAMESPACE)
        outputs = Outputs(node, Camera(topic, ""), node.resolve_topic_name, with_markers=False)
        node.trigger_configure()
        node.trigger_activate()
        received: list[bytes] = []
        node.create_subscription(settings.kind, topic, received.append, NEWEST, raw=True)
        executor = NodeExecutor()
        executor.add_node(node)
        times: dict[str, list[float]] = {name: [] for name in (*OWN, *NETWORK)}
        with (
            beside(show, settings, [f"{NAMESPACE}/camera0"]),
            beside(listen, f"{NAMESPACE}/yolact/instances"),
        ):
            for frame in range(-WARM_UP, frames):
                started, serialized = _receive(executor, received, 2 / settings.rate)
                clock = [started, time.perf_counter()]
                message = read_message(serialized, settings.compressed)
                clock.append(time.perf_counter())
                image = image_of(message, segmenter.device)
                clock.append(time.perf_counter())
                (found,), network = segmenter.submit([image]).result()
                if len(found) != instances:
                    raise MeasureError(f"the model finds {len(found)} instances, not {instances}")
                clock.append(time.perf_counter())
                outputs.publish(message.header, image, found, None, parameters)
                clock.append(time.perf_counter())
                if frame < 0:
                    continue
                spent = 1e3 * np.diff(clock)
                for name, value in zip(
                    (*OWN, *NETWORK),
                    (*spent[:3], spent[4], network.preprocess, network.network, network.detection),
                    strict=True,
                ):
                    times[name].append(value)
    finally:
        rclpy.try_shutdown()
    own = np.sum([times[name] for name in OWN], axis=0)
    rows = {**times, "own work": own}
    return {name: Latency.of(row) for name, row in rows.items()}


def _receive(executor: NodeExecutor, received: list[bytes], pause: float) -> tuple[float, bytes]:
    """Let an image arrive, then take it. Returns the time when taking it began, and the message."""
    end = time.monotonic() + START_TIMEOUT
    time.sleep(pause)  # the image is now waiting in the middleware
    while time.monotonic() < end:
        started = time.perf_counter()
        executor.spin_once(timeout_sec=0)
        if received:  # else another callback ran
            return started, received.pop()
    raise MeasureError(f"no image within {START_TIMEOUT:.0f} s")
