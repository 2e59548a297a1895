"""The node's parameters: one frozen data class whose fields also define the ROS parameters."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rclpy.exceptions import InvalidTopicNameException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.validate_topic_name import validate_topic_name

from yolact_ros import masks
from yolact_ros.detection import DetectionSettings, NmsMethod
from yolact_ros.engine.runtimes import BACKENDS
from yolact_ros.network import CONFIGS
from yolact_ros.network.config import Backbone, DcnVariant
from yolact_ros.node.cameras import Camera, cameras_of
from yolact_ros.node.parameter_info import infos, parameter

Resolve = Callable[[str], str]
"""Returns the full name of a topic that a user gave."""


@dataclass(frozen=True)
class Parameters:
    """The value of every parameter of the node."""

    weights: str = parameter(
        "",
        "Weights to run: a file, the name of a published model (downloaded once, but "
        "for yolact_im400 and yolact_resnet50_pascal), or 'random' to measure speed. Empty: the "
        "published weights of `model`, or without `model` the embedded one, which finds people.",
        "configure",
    )
    model: str = parameter(
        "",
        "Network to build. Empty: the one that the weights are for; only old .pth files that "
        "were renamed do not say which.",
        "configure",
        choices=("", *CONFIGS),
    )
    backbone: str = parameter(
        "",
        "Replaces the model's backbone. Empty: the model's own.",
        "configure",
        choices=("", *typing.get_args(Backbone)),
    )
    dcn_variant: str = parameter(
        "",
        "Replaces the model's placement of deformable convolutions. Empty: the model's own.",
        "configure",
        choices=("", *typing.get_args(DcnVariant)),
    )
    device: str = parameter(
        "auto",
        "Where the network runs: cpu, cuda, cuda:0 and so on; auto is CUDA if there is a GPU.",
        "configure",
    )
    precision: str = parameter(
        "auto",
        "Data type that the network computes in. auto is float16 on a GPU and float32 on a CPU; a "
        "CPU also supports bfloat16 (faster if it has instructions for it), but not float16.",
        "configure",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    backend: str = parameter(
        "auto",
        "What runs the network. auto is PyTorch; on a CPU with OpenVINO installed it is OpenVINO "
        "for the backbone efficientnet_lite0, and for bfloat16 if the processor supports it. "
        "inductor is torch.compile, which needs g++ and takes up to minutes to configure; "
        "openvino and onnxruntime are extras for a CPU. An exported file brings its own.",
        "configure",
        choices=BACKENDS,
    )
    autostart: bool = parameter(
        True,
        "Configure and activate by itself at the start; otherwise wait for lifecycle transitions.",
        "start",
    )
    image_topic: str | tuple[str, ...] = parameter(
        "image_raw",
        "Topic of the camera's images (sensor_msgs/Image); for several cameras a list of "
        "topics, or one string separated by commas.",
        "configure",
        many=True,
    )
    compressed: bool = parameter(
        False,
        "Subscribe to image_topic/compressed (sensor_msgs/CompressedImage, JPEG or PNG) instead.",
        "configure",
    )
    max_batch: int = parameter(
        0,
        "Maximum number of images, from several cameras, per batch. 0: 4 on a GPU, and 1 on a "
        "CPU, which gains nothing from larger batches.",
        "configure",
        low=0,
        high=16,
    )
    max_rate: float = parameter(
        0.0,
        "Maximum number of images segmented per second and camera, to leave time for other "
        "programs; the rest are skipped. 0: no limit.",
        "at once",
        low=0.0,
        high=1000.0,
    )
    qos_reliability: str = parameter(
        "auto",
        "Reliability of the subscriptions to images and depth. auto is reliable where all "
        "publishers are, else best_effort; best_effort receives from all publishers but may lose "
        "large images; reliable receives only from reliable ones.",
        "configure",
        name="qos.reliability",
        choices=("auto", "best_effort", "reliable"),
    )
    qos_depth: int = parameter(
        1,
        "Queue depth of these subscriptions. Only the newest image is ever used; a reliable "
        "subscription may need more.",
        "configure",
        name="qos.depth",
        low=1,
        high=100,
    )
    score_threshold: float = parameter(
        0.3,
        "Instances must score more than this. Anchors that score 0.05 or less are never "
        "considered.",
        "at once",
        low=0.0,
        high=1.0,
    )
    mask_score_threshold: float = parameter(
        0.0,
        "Minimum mask_score of an instance: its score times the predicted IoU of its mask if the "
        "network re-scores masks, else its score.",
        "at once",
        low=0.0,
        high=1.0,
    )
    nms_method: str = parameter(
        "fast",
        "How overlapping boxes are suppressed: fast (Fast NMS within each class), cross_class "
        "(Fast NMS across classes), standard (sequential, slower).",
        "at once",
        name="nms.method",
        choices=typing.get_args(NmsMethod),
    )
    nms_iou_threshold: float = parameter(
        0.5,
        "Boxes that overlap a better one by more than this IoU are suppressed.",
        "at once",
        name="nms.iou_threshold",
        low=0.0,
        high=1.0,
    )
    nms_top_k: int = parameter(
        200,
        "Number of best candidates that Fast NMS considers per class (cross_class: in total).",
        "at once",
        name="nms.top_k",
        low=1,
        high=2000,
    )
    top_k: int = parameter(
        100,
        "Maximum number of instances per image.",
        "at once",
        low=1,
        high=1000,
    )
    classes: str = parameter(
        "",
        "Names of the classes to report, separated by commas, as in 'person, dog'. Empty: all.",
        "at once",
    )
    mask_encoding: str = parameter(
        "rle",
        "How masks are written into messages; see Mask.msg.",
        "at once",
        name="mask.encoding",
        choices=masks.ENCODINGS,
    )
    overlay_enabled: bool = parameter(
        True,
        "Publish overlays; they are drawn only while somebody subscribes.",
        "at once",
        name="overlay.enabled",
    )
    overlay_alpha: float = parameter(
        0.45,
        "Opacity of the masks on the overlay.",
        "at once",
        name="overlay.alpha",
        low=0.0,
        high=1.0,
    )
    overlay_boxes: bool = parameter(
        True, "Draw boxes on the overlay.", "at once", name="overlay.boxes"
    )
    overlay_labels: bool = parameter(
        True, "Write class and score on the overlay.", "at once", name="overlay.labels"
    )
    overlay_jpeg_quality: int = parameter(
        80,
        "Quality of the compressed overlay.",
        "at once",
        name="overlay.jpeg_quality",
        low=1,
        high=100,
    )
    image_timeout: float = parameter(
        5.0,
        "Seconds without an image after which /diagnostics reports a warning, and seconds "
        "without an answer to one after which it reports an error.",
        "at once",
        low=0.1,
        high=3600.0,
    )
    depth_topic: str = parameter(
        "",
        "Topic of depth images registered to the colour image (16UC1 in millimetres or 32FC1 in "
        "metres). Empty: no positions.",
        "configure",
    )
    camera_info_topic: str = parameter(
        "",
        "Topic of the calibration (sensor_msgs/CameraInfo) that depth is projected with. Empty: "
        "camera_info next to depth_topic.",
        "configure",
    )
    depth_max_offset: float = parameter(
        0.05,
        "Maximum difference in seconds between the stamps of an image and its depth image.",
        "at once",
        name="depth.max_offset",
        low=0.0,
        high=10.0,
    )

    depth_max_wait: float = parameter(
        0.1,
        "Seconds to wait for the depth of an image that was segmented before its depth came.",
        "at once",
        name="depth.max_wait",
        low=0.0,
        high=10.0,
    )

    def __post_init__(self) -> None:
        for info in PARAMETERS.values():
            info.check(getattr(self, info.field))
        topics = [self.subscription_topic(camera) for camera in self.cameras()]
        if self.depth_topic and len(topics) > 1:
            raise ValueError(
                f"depth_topic={self.depth_topic!r} is not allowed with {len(topics)} topics in "
                "image_topic: depth needs a node of its own for each camera"
            )
        for name in (*topics, *filter(None, self.depth_topics())):
            _check_topic(name)

    def with_values(self, changes: Iterable[Parameter]) -> Parameters:
        """Return a copy with new values; unknown parameters (use_sim_time …) are ignored.

        Raises ValueError for a value that is not allowed.
        """
        values = {
            PARAMETERS[new.name].field: _value(new) for new in changes if new.name in PARAMETERS
        }
        return dataclasses.replace(self, **values)

    def detection_settings(
        self, base: DetectionSettings, class_names: tuple[str, ...]
    ) -> DetectionSettings:
        """Return the settings `base` of a model with these classes, updated from the parameters.

        Raises ValueError if the class filter names a class that the model does not have.
        """
        return dataclasses.replace(
            base,
            score_threshold=self.score_threshold,
            nms_method=typing.cast(NmsMethod, self.nms_method),
            nms_iou_threshold=self.nms_iou_threshold,
            nms_top_k=self.nms_top_k,
            top_k=self.top_k,
            class_ids=tuple(
                _class_id(name, class_names)
                for name in (part.strip() for part in self.classes.split(","))
                if name
            ),
        )

    def cameras(self) -> tuple[Camera, ...]:
        """Return the cameras in `image_topic`."""
        return cameras_of(self.image_topic)

    def batch_limit(self, device_type: str) -> int:
        """Return the maximum batch size; on a CPU a larger batch only makes images wait."""
        limit = self.max_batch or (4 if device_type == "cuda" else 1)
        return min(limit, len(self.cameras()))

    def subscription_topic(self, camera: Camera, resolve: Resolve = str) -> str:
        """Return the topic to subscribe to for a camera, raw or compressed.

        The compressed topic is derived from the resolved name of the raw one, so that remapping
        the raw topic moves both, as with image_transport.
        """
        topic = camera.topic
        if self.compressed and not topic.endswith("/compressed"):
            return f"{resolve(topic)}/compressed"
        return topic

    def depth_topics(self, resolve: Resolve = str) -> tuple[str, str]:
        """Return the topics of depth images and their calibration; both empty if depth is off."""
        if not self.depth_topic:
            return "", ""
        space, slash, _ = resolve(self.depth_topic).rpartition("/")
        return self.depth_topic, self.camera_info_topic or f"{space}{slash}camera_info"


PARAMETERS = infos(Parameters)
"""By parameter name, in the order of the documentation."""


def declare(node: Node) -> Parameters:
    """Declare all parameters on a node and return their initial values.

    Values for parameters that the node does not have are ignored, as rclpy does, but those whose
    names are nearly right are named in a warning.
    Raises ValueError or rclpy's ParameterException, naming the value and what is allowed.
    """
    for name in PARAMETERS:
        # rclpy may have declared those with overrides, without descriptors
        # (automatically_declare_parameters_from_overrides).
        if node.has_parameter(name):
            node.undeclare_parameter(name)
    declared = {
        info.field: node.declare_parameter(info.name, info.default, info.descriptor())
        for info in PARAMETERS.values()
    }
    for name in node._parameter_overrides:
        close = difflib.get_close_matches(name, PARAMETERS, n=1, cutoff=0.8)
        close += [each for each in PARAMETERS if each == f"{name}.enabled"]
        if close and name not in PARAMETERS:  # others may be of another node
            node.get_logger().warning(
                f"Ignored: there is no parameter {name!r}; did you mean {close[0]!r}?"
            )
    return Parameters(**{field: each.value for field, each in declared.items()})


def _value(parameter: Parameter) -> Any:
    return tuple(parameter.value) if isinstance(parameter.value, list) else parameter.value


def _check_topic(name: str) -> None:
    try:
        validate_topic_name(name)
    except InvalidTopicNameException as error:
        raise ValueError(f"{name!r} is no topic name: {error}") from error
    # What rclpy refuses only when it subscribes:
    if "//" in name:
        raise ValueError(f"{name!r} is no topic name: it has an empty part")
    for unknown in set(re.findall(r"\{.*?\}", name)) - {"{node}", "{ns}", "{namespace}"}:
        raise ValueError(f"{name!r} is no topic name: {unknown} stands for nothing")


def _class_id(name: str, class_names: tuple[str, ...]) -> int:
    if name in class_names:
        return class_names.index(name)
    allowed = ", ".join(class_names)
    if len(class_names) > 20:
        close = difflib.get_close_matches(name, class_names, n=3, cutoff=0.5)
        hint = f"; close to it: {', '.join(close)}" if close else ""
        allowed = f"{', '.join(class_names[:10])} and {len(class_names) - 10} more{hint}"
    raise ValueError(f"the model has no class {name!r}; it has {allowed}")
