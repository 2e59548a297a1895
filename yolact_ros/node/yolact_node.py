"""The lifecycle node `yolact`: images in, instances out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from yolact_ros.detection import Instances
from yolact_ros.engine import Segmenter
from yolact_ros.node import images
from yolact_ros.node.depth import DepthImages, Positions
from yolact_ros.node.diagnostics import NodeState, diagnostic_array
from yolact_ros.node.images import ImageError
from yolact_ros.node.outputs import Outputs
from yolact_ros.node.parameters import Parameters, declare, table
from yolact_ros.node.statistics import FrameStatistics
from yolact_ros.node.worker import Worker

DIAGNOSTICS_PERIOD = 1.0
LOG_PERIOD = 1.0
"""Seconds between log lines of one kind about images."""

OFFICIAL_MODELS_HINT = (
    "An official model takes one parameter: weights:=yolact_plus_resnet50 (80 classes of COCO; "
    "downloaded once). `ros2 param describe` of the parameter `model` lists all of them."
)


@dataclass(frozen=True)
class Frame:
    """An image message on its way to the network."""

    message: Any
    arrived: float
    """time.monotonic() in seconds."""


class YolactNode(LifecycleNodeMixin, Node):
    """Segments the newest image of a camera; `Parameters` says what can be changed.

    The executor's threads take images, parameters and transitions; the network runs in a thread of
    its own. Raises ValueError or a ParameterException for parameters that are not allowed.
    """

    def __init__(self, **options: Any) -> None:
        Node.__init__(self, "yolact", **options)
        # In a group of their own, so that parameters and diagnostics answer while a model loads.
        transitions = ReentrantCallbackGroup()
        LifecycleNodeMixin.__init__(self, callback_group=transitions)
        self._wanted = declare(self)
        self._configured = self._wanted  # the values that the node was last configured with
        self._state = "unconfigured"
        self._problem = ""
        self._segmenter: Segmenter | None = None
        self._outputs: Outputs | None = None
        self._worker: Worker[Frame] | None = None
        self._depth: DepthImages | None = None
        self._inputs: list[Subscription[Any]] = []
        self._statistics = FrameStatistics()
        self._settings_lock = threading.Lock()
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Timers of the steady clock: simulated time may stand still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(
            DIAGNOSTICS_PERIOD,
            self._publish_diagnostics,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=steady,
        )
        if self._wanted.autostart:
            self._autostart_timer = self.create_timer(
                0.0, self._autostart, callback_group=transitions, clock=steady
            )

    @property
    def is_configuring(self) -> bool:
        """Whether a model is being loaded, or downloaded, at the moment."""
        return self._state == "configuring"

    def close(self) -> None:
        """Stop working, in whatever state: to be called before the node is destroyed."""
        self._stop_receiving()

    # Lifecycle

    def _autostart(self) -> None:
        self._autostart_timer.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and create the publishers; on failure stay unconfigured."""
        self._state, self._problem = "configuring", ""
        self._configured = parameters = self._wanted
        try:
            segmenter = self._load(parameters)
            with self._settings_lock:
                settings = self._wanted.detection_settings(segmenter.class_names)
                segmenter.settings = settings
                self._segmenter = segmenter
            self._outputs = Outputs(self, with_markers=bool(parameters.depth_topic))
        except Exception as error:  # whatever is wrong with a model must not end the node
            self._segmenter, self._state = None, "unconfigured"
            self._problem = _reason(error)
            self.get_logger().error(f"The node stays unconfigured: {self._problem}")
            return TransitionCallbackReturn.FAILURE
        self._state = "inactive"
        return super().on_configure(state)

    def _load(self, parameters: Parameters) -> Segmenter:
        asked_for = parameters.weights or parameters.model or "the embedded model"
        self.get_logger().info(f"Loading {asked_for}")
        segmenter = Segmenter(
            parameters.model,
            parameters.weights,
            device=parameters.device,
            precision=parameters.precision,
            backbone=parameters.backbone,
            dcn_variant=parameters.dcn_variant,
        )
        # The first image takes longer than others, and shows whether there is memory enough.
        segmenter(np.zeros((480, 640, 3), np.uint8))
        self.get_logger().info(f"Running {segmenter.description}")
        if not parameters.weights and not parameters.model:
            self.get_logger().info(OFFICIAL_MODELS_HINT)
        return segmenter

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the camera and start the thread of the network; on failure stay inactive."""
        self._statistics = FrameStatistics()
        self._worker = Worker(self._process, "network")
        try:
            topic = self._start_receiving(self._configured)
        except Exception as error:  # rclpy would swallow it
            self._stop_receiving()
            self._problem = _reason(error)
            self.get_logger().error(f"The node stays inactive: {self._problem}")
            return TransitionCallbackReturn.FAILURE
        self.get_logger().info(f"Waiting for images on {topic}")
        self._state, self._problem = "active", ""
        return super().on_activate(state)

    def _start_receiving(self, parameters: Parameters) -> str:
        """Subscribe to images, and to depth if wanted. Returns the full topic of the images."""
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=parameters.qos_depth,
            reliability=ReliabilityPolicy[parameters.qos_reliability.upper()],
        )
        kind = CompressedImage if parameters.compressed else Image
        topic = parameters.image_subscription_topic()
        self._subscribe(kind, topic, self._on_image, qos)
        depth_topic, info_topic = parameters.depth_topics()
        if depth_topic:
            self._depth = DepthImages()
            self._subscribe(Image, depth_topic, self._depth.put, qos_profile_sensor_data)
            self._subscribe(CameraInfo, info_topic, self._depth.put_info, qos_profile_sensor_data)
        return self.resolve_topic_name(topic)

    def _subscribe(
        self, kind: type, topic: str, callback: Callable[[Any], None], qos: QoSProfile
    ) -> None:
        group = MutuallyExclusiveCallbackGroup()
        made = self.create_subscription(kind, topic, callback, qos, callback_group=group)
        self._inputs.append(made)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; the image in work is finished first."""
        self._stop_receiving()
        if self._outputs is not None:
            self._outputs.clear()
        self._state = "inactive"
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give up the model and the publishers."""
        self._release()
        self._state = "unconfigured"
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give up everything, from any state."""
        self._release()
        self._state = "finalized"
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an unforeseen error in a transition: back to unconfigured."""
        self._release()
        self._state, self._problem = "unconfigured", "a transition failed; see the log"
        return super().on_error(state)

    def _stop_receiving(self) -> None:
        while self._inputs:
            self.destroy_subscription(self._inputs.pop())
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        self._depth = None

    def _release(self) -> None:
        self._stop_receiving()
        if self._outputs is not None:
            self._outputs.destroy()
            self._outputs = None
        self._segmenter = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # Parameters

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        later = [new.name for new in changes if _change(new.name) == "configure"]
        with self._settings_lock:
            try:
                parameters = self._wanted.with_values(changes)
                if later:
                    parameters.check_model()
                if self._segmenter is not None:
                    settings = parameters.detection_settings(self._segmenter.class_names)
                    self._segmenter.settings = settings
            except ValueError as error:
                return SetParametersResult(successful=False, reason=str(error))
            self._wanted = parameters
        if later and self._state != "unconfigured":
            self.get_logger().info(
                f"{', '.join(later)}: takes effect when the node is next configured "
                "(lifecycle: deactivate, cleanup, configure, activate)"
            )
        return SetParametersResult(successful=True)

    # Images

    def _on_image(self, message: Any) -> None:
        arrived = time.monotonic()
        self._statistics.arrived()
        try:
            if self._configured.compressed:
                images.check_compressed(message)
            else:
                images.check(message)
        except ImageError as error:
            self._refuse(error)
            return
        worker = self._worker
        if worker is not None and worker.put(Frame(message, arrived)) is not None:
            self._statistics.passed_over()

    def _refuse(self, error: ImageError) -> None:
        count = self._statistics.refused(error.reason)
        self.get_logger().warning(
            f"Malformed image dropped: {error} ({count} so far)",
            throttle_duration_sec=LOG_PERIOD,
        )

    def _process(self, frame: Frame) -> None:
        """Work of the network's thread: one image, whatever it holds."""
        try:
            self._statistics.processed(self._segment(frame))
        except ImageError as error:
            self._refuse(error)
        except Exception as error:  # one image must not end the node
            self._statistics.failed()
            self.get_logger().error(
                f"An image could not be processed: {_reason(error)}",
                throttle_duration_sec=LOG_PERIOD,
            )

    def _segment(self, frame: Frame) -> dict[str, float]:
        """Segment and publish. Returns the latencies of the stages in milliseconds."""
        segmenter, outputs, parameters = self._segmenter, self._outputs, self._wanted
        assert segmenter is not None and outputs is not None
        started = time.monotonic()
        decode = images.bgr_of_compressed if self._configured.compressed else images.bgr_of
        picture = decode(frame.message)
        decoded = time.monotonic()
        instances = segmenter(picture)
        segmented = time.monotonic()
        header = frame.message.header
        positions = self._locate(header, instances)
        located = time.monotonic()
        outputs.publish(header, picture, instances, positions, parameters)
        published = time.monotonic()
        stages = segmenter.stages
        return {
            "waiting": 1e3 * (started - frame.arrived),
            "decoding": 1e3 * (decoded - started),
            "preprocessing": stages.preprocess,
            "network": stages.network,
            "detection": stages.detection,
            "locating": 1e3 * (located - segmented),
            "publishing": 1e3 * (published - located),
            "total": 1e3 * (published - frame.arrived),
        }

    def _locate(self, header: Header, instances: Instances) -> Positions | None:
        depth, parameters = self._depth, self._wanted
        if depth is None:
            return None
        try:
            offset, wait = parameters.depth_max_offset, parameters.depth_max_wait
            return depth.locate(header.stamp, instances, offset, wait)
        except ImageError as error:
            self._statistics.refused("depth")
            self.get_logger().warning(f"Depth not used: {error}", throttle_duration_sec=LOG_PERIOD)
            return None

    # Diagnostics

    def _publish_diagnostics(self) -> None:
        segmenter, parameters = self._segmenter, self._configured
        state = NodeState(
            node=self.get_fully_qualified_name(),
            state=self._state,
            problem=self._problem,
            model="" if segmenter is None else segmenter.description,
            device="" if segmenter is None else str(segmenter.device),
            topic=self.resolve_topic_name(parameters.image_subscription_topic()),
            image_timeout=self._wanted.image_timeout,
        )
        stamp = self.get_clock().now()
        self._diagnostics.publish(diagnostic_array(stamp, state, self._statistics.summary()))


def _change(name: str) -> str:
    """When a parameter takes effect; empty for one that is not this node's own."""
    info = table().get(name)
    return info[0].change if info else ""


def _reason(error: Exception) -> str:
    """What went wrong, for people: errors that were not foreseen with their type."""
    foreseen = isinstance(error, ValueError | RuntimeError | OSError) and str(error)
    return str(error) if foreseen else f"{type(error).__name__}: {error}"
