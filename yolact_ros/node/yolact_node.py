"""The lifecycle node `yolact`: images in, instances out."""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
from collections.abc import Callable
from typing import Any

import torch
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter

from yolact_ros.engine import DeviceLostError, Segmenter
from yolact_ros.engine.device import choose_device
from yolact_ros.node.cameras import Camera
from yolact_ros.node.diagnostics import CameraState, NodeState, diagnostic_array, why_silent
from yolact_ros.node.inputs import Inputs, resolved
from yolact_ros.node.outputs import Outputs
from yolact_ros.node.parameters import PARAMETERS, Parameters, declare
from yolact_ros.node.pipeline import STEADY, Feed, at_most_every, reason_of, warm_up_decoder
from yolact_ros.node.problems import problems_of
from yolact_ros.node.statistics import FrameStatistics, Summary

DIAGNOSTICS_PERIOD = 1.0

SILENCE_LOG_PERIOD = 60.0
"""Seconds between log lines about a camera that sends nothing."""

OFFICIAL_MODELS_HINT = (
    "An official model takes one parameter: weights:=yolact_plus_resnet50 (80 classes of COCO; "
    "downloaded once). `ros2 param describe` of the parameter `model` lists all of them."
)


Transition = Callable[["YolactNode", LifecycleState], TransitionCallbackReturn]


def _logging_errors(transition: Transition) -> Transition:
    """Log what a transition raises: rclpy enters error processing without saying why."""

    @functools.wraps(transition)
    def logged(node: YolactNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception as error:
            node.get_logger().error(f"{transition.__name__} failed: {reason_of(error)}")
            raise

    return logged


class YolactNode(LifecycleNodeMixin, Node):
    """Segments the newest image of each camera; see `Parameters` for what can be configured.

    The executor's threads handle images, parameters and transitions. The network runs in its own
    thread, which notifies them only of a lost device (see docs/architecture.md). `options` are
    those of `rclpy.node.Node`. Raises ValueError or ParameterException for invalid parameters.
    """

    def __init__(self, node_name: str = "yolact", **options: Any) -> None:
        # Set first: rclpy calls `destroy_node`, which releases these, if construction fails.
        self._segmenter: Segmenter | None = None
        self._inputs: Inputs | None = None
        self._outputs: dict[Camera, Outputs] = {}
        self._lost_devices: set[torch.device] = set()  # only a new process can use them again
        self._kept_from_lost_devices: list[Segmenter] = []
        self._stopping, self._settings_lock = threading.Lock(), threading.Lock()
        Node.__init__(self, node_name, **options)
        # In their own group, so that parameters and diagnostics are served while a model loads.
        transitions = ReentrantCallbackGroup()
        LifecycleNodeMixin.__init__(self, callback_group=transitions)
        self._wanted = declare(self)
        self._configured = self._wanted  # the values that the node was last configured with
        # A node that is about to configure itself must not look as if it were left unconfigured.
        self._state = "configuring" if self._wanted.autostart else "unconfigured"
        self._problem = ""
        self._device_lost = False  # since the node was last configured
        self._fixed_by_file: dict[str, Any] = {}
        self._loggers: dict[Camera, RcutilsLogger] = {}
        self._statistics = self._new_statistics()
        self._give_up = self.create_guard_condition(self._deactivate, transitions)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_timer(
            DIAGNOSTICS_PERIOD,
            self._publish_diagnostics,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=STEADY,
        )
        if self._wanted.autostart:
            self._autostart_timer = self.create_timer(
                0.0, self._autostart, MutuallyExclusiveCallbackGroup(), clock=STEADY
            )

    @property
    def is_configuring(self) -> bool:
        """Whether a model is being loaded or downloaded."""
        return self._state == "configuring"

    def destroy_node(self) -> None:
        """Stop in any state and release all resources."""
        self._release()
        super().destroy_node()

    # Lifecycle

    def _autostart(self) -> None:
        self._autostart_timer.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and create the publishers; on failure stay unconfigured."""
        self._state, self._problem, self._device_lost = "configuring", "", False
        self._forget_what_a_file_fixed()
        self._configured = self._wanted
        self._statistics = self._new_statistics()
        problem = ""
        try:
            self._set_up(self._configured)
        except Exception as error:  # a bad model must not end the node
            problem = reason_of(error)
        if problem:  # outside `except`, where the traceback would keep the model alive
            self._release()
            self._state, self._problem = "unconfigured", problem
            self.get_logger().error(f"The node stays unconfigured: {self._problem}")
            return TransitionCallbackReturn.FAILURE
        self._state = "inactive"
        return super().on_configure(state)

    def _set_up(self, parameters: Parameters) -> None:
        segmenter = self._load(parameters)
        with self._settings_lock:
            segmenter.settings = self._wanted.detection_settings(
                segmenter.settings, segmenter.class_names
            )
            self._segmenter = segmenter
        with_markers = bool(parameters.depth_topic)
        for camera in parameters.cameras():
            self._outputs[camera] = Outputs(
                self, camera, functools.partial(resolved, self), with_markers
            )

    def _load(self, parameters: Parameters) -> Segmenter:
        asked_for = parameters.weights or parameters.model or "the embedded model"
        self.get_logger().info(f"Loading {asked_for}")
        device = choose_device(parameters.device)
        if device in self._lost_devices:
            raise DeviceLostError(f"{device} is lost; restart the node to use it again")
        segmenter = Segmenter(
            parameters.model,
            parameters.weights,
            device=parameters.device,
            precision=parameters.precision,
            backend=parameters.backend,
            backbone=parameters.backbone,
            dcn_variant=parameters.dcn_variant,
        )
        self._follow_file(segmenter, parameters, asked_for)
        self._warm_up(segmenter, parameters)
        self.get_logger().info(f"Running {segmenter.description}")
        if not parameters.weights and not parameters.model:
            self.get_logger().info(OFFICIAL_MODELS_HINT)
        return segmenter

    def _follow_file(self, segmenter: Segmenter, parameters: Parameters, file: str) -> None:
        """Set parameters left at their defaults to the values of a file's detection stage.

        Raises ValueError for parameters that the segmenter does not support.
        """
        fixed = segmenter.runtime.header.fixed_settings
        taken = [
            Parameter(info.name, value=type(info.default)(fixed[info.field]))
            for info in PARAMETERS.values()
            if info.field in fixed and getattr(parameters, info.field) == info.default
        ]
        parameters = parameters.with_values(taken)
        segmenter.settings = parameters.detection_settings(
            segmenter.settings, segmenter.class_names
        )
        if taken:
            self.set_parameters(taken)
            self._fixed_by_file = {each.name: each.value for each in taken}
            values = ", ".join(f"{each.name}={each.value}" for each in taken)
            self.get_logger().info(f"Fixed by the detection stage inside {file}: {values}")

    def _warm_up(self, segmenter: Segmenter, parameters: Parameters) -> None:
        """Run the slow first images, which also shows whether the memory suffices."""
        most = parameters.batch_limit(segmenter.device.type)
        try:
            segmenter.warm_up(batch_sizes=range(1, most + 1))
            if parameters.compressed:
                warm_up_decoder(segmenter.device)
        except DeviceLostError:
            self._lost_devices.add(segmenter.device)
            self._kept_from_lost_devices.append(segmenter)
            raise

    def _forget_what_a_file_fixed(self) -> None:
        """Reset parameters set by `_follow_file` to their defaults."""
        self.set_parameters(
            [
                Parameter(name, value=PARAMETERS[name].default)
                for name, value in self._fixed_by_file.items()
                if self.get_parameter(name).value == value  # otherwise a user has set it since
            ]
        )
        self._fixed_by_file = {}

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the cameras and start the network thread; on failure stay inactive."""
        self._problem = ""
        self._statistics = self._new_statistics()
        try:
            topics = self._start_receiving(self._configured)
        except Exception as error:  # rclpy would swallow it
            self._stop_receiving()
            self._problem = reason_of(error)
            self.get_logger().error(f"The node stays inactive: {self._problem}")
            return TransitionCallbackReturn.FAILURE
        self.get_logger().info(f"Waiting for images on {', '.join(topics)}")
        self._state = "active"
        return super().on_activate(state)

    def _new_statistics(self) -> dict[Camera, FrameStatistics]:
        return {camera: FrameStatistics() for camera in self._configured.cameras()}

    def _start_receiving(self, parameters: Parameters) -> list[str]:
        """Subscribe to images, and to depth if configured. Returns the full topic names."""
        assert self._segmenter is not None
        feeds = [
            Feed(
                self._full_topic(camera),
                camera,
                outputs,
                self._statistics[camera],
                self._logger_of(camera),
            )
            for camera, outputs in self._outputs.items()
        ]
        self._inputs = Inputs(
            self,
            self._segmenter,
            feeds,
            parameters,
            lambda: self._wanted,
            self._on_device_lost,
        )
        self._inputs.subscribe()
        return self._inputs.topics

    def _logger_of(self, camera: Camera) -> RcutilsLogger:
        if camera not in self._loggers:  # throttling is per logger
            whole = self.get_logger()
            self._loggers[camera] = whole.get_child(camera.name) if camera.name else whole
        return self._loggers[camera]

    def _given_topic(self, camera: Camera) -> str:
        """The topic as rclpy is given it, which remaps it."""
        return self._configured.subscription_topic(camera, functools.partial(resolved, self))

    def _full_topic(self, camera: Camera) -> str:
        return resolved(self, self._given_topic(camera))

    @_logging_errors
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; images in progress are finished first."""
        self._stop_receiving()
        if self._device_lost:
            return TransitionCallbackReturn.ERROR
        self._state = "inactive"
        return super().on_deactivate(state)

    def _deactivate(self) -> None:
        self.trigger_deactivate()

    def _on_device_lost(self, error: DeviceLostError) -> None:
        """Trigger error processing, from the network thread, which the transition will join."""
        if self._segmenter is not None:
            self._lost_devices.add(self._segmenter.device)
        self._problem = f"{error}; restart the node to use it again"
        if not self._device_lost:
            self.get_logger().fatal(self._problem)
        self._device_lost = True
        self._give_up.trigger()  # no effect during activation; the next image triggers it again

    @_logging_errors
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the model and the publishers."""
        self._release()
        self._forget_what_a_file_fixed()
        self._state, self._problem = "unconfigured", ""
        return super().on_cleanup(state)

    @_logging_errors
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything, from any state."""
        self._release()
        self._state, self._problem = "finalized", ""
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to unconfigured after a lost device or an unexpected error in a transition."""
        self._state = "unconfigured"
        if not self._device_lost:
            self._problem = "a transition failed; see the log"
        self._release()
        return super().on_error(state)

    def _stop_receiving(self) -> None:
        with self._stopping:  # a shutdown signal may arrive while a transition does this
            if self._inputs is not None:
                self._inputs.stop()
                self._inputs = None
                for outputs in self._outputs.values() if self.context.ok() else ():
                    outputs.clear()

    def _release(self) -> None:
        self._stop_receiving()
        while self._outputs:
            self._outputs.popitem()[1].destroy()
        with self._settings_lock:
            segmenter, self._segmenter = self._segmenter, None
        if segmenter is not None and segmenter.device in self._lost_devices:
            # Older releases of PyTorch abort when memory of a lost device is freed.
            self._kept_from_lost_devices.append(segmenter)
        del segmenter
        gc.collect()  # a network may hold reference cycles
        if torch.cuda.is_available() and not self._lost_devices:
            with contextlib.suppress(RuntimeError):  # a device may just have been lost
                torch.cuda.empty_cache()

    # Parameters

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        known = [PARAMETERS[new.name] for new in changes if new.name in PARAMETERS]
        later = [info.name for info in known if info.change == "configure"]
        with self._settings_lock:
            try:
                parameters = self._wanted.with_values(changes)
                # Ignore existing problems, so that they can be fixed one by one.
                if later and (new := set(problems_of(parameters)) - set(problems_of(self._wanted))):
                    raise ValueError("; ".join(sorted(new)))
                if (segmenter := self._segmenter) is not None:
                    segmenter.settings = parameters.detection_settings(
                        segmenter.settings, segmenter.class_names
                    )
            except Exception as error:  # otherwise rclpy would not answer the caller
                return SetParametersResult(successful=False, reason=reason_of(error))
            self._wanted = parameters
        if later and self._state != "unconfigured":
            self.get_logger().info(
                f"{', '.join(later)}: takes effect when the node is next configured "
                "(lifecycle: deactivate, cleanup, configure, activate)"
            )
        return SetParametersResult(successful=True)

    # Diagnostics

    def _publish_diagnostics(self) -> None:
        segmenter = self._segmenter
        state = NodeState(
            node=self.get_fully_qualified_name(),
            state=self._state,
            problem=self._problem,
            model="" if segmenter is None else segmenter.description,
            device="" if segmenter is None or self._device_lost else str(segmenter.device),
            image_timeout=self._wanted.image_timeout,
        )
        cameras = [
            self._camera_state(camera, statistics.summary())
            for camera, statistics in self._statistics.items()
        ]
        self._diagnostics.publish(diagnostic_array(self.get_clock().now(), state, cameras))

    def _camera_state(self, camera: Camera, frames: Summary) -> CameraState:
        topic = self._full_topic(camera)
        if self._state != "active" or frames.silence <= self._wanted.image_timeout:
            return CameraState(camera.name, topic, frames)
        publishers = self.get_publishers_info_by_topic(self._given_topic(camera))
        published = [each.topic_type for each in publishers]
        kind = "CompressedImage" if self._configured.compressed else "Image"
        silence = why_silent(published, f"sensor_msgs/msg/{kind}")
        self._logger_of(camera).warning(
            f"No image on {topic} for {frames.silence:.0f} s: {silence}",
            **at_most_every(SILENCE_LOG_PERIOD),
        )
        return CameraState(camera.name, topic, frames, silence)
