"""Start the node `yolact`, and RViz if asked for.

`ros2 launch yolact_ros yolact.launch.py --show-args` lists the arguments. A parameter
whose argument is not given is that of the parameter file, else the node's default.
"""

from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare
from launch_ros.utilities import make_namespace_absolute, prefix_namespace

from yolact_ros.node.cameras import cameras_of

# Launch argument: (parameter of the node, its type, what it is).
PARAMETERS = {
    "image_topic": ("image_topic", str, "image topic; separate several with commas"),
    "max_batch": ("max_batch", int, "maximum number of images from several cameras per batch"),
    "max_rate": ("max_rate", float, "maximum number of images per camera and second, 0.0: all"),
    "compressed": ("compressed", bool, "take IMAGE_TOPIC/compressed instead: true or false"),
    "weights": ("weights", str, "file, or published model such as yolact_plus_resnet50"),
    "model": ("model", str, "network, where the weights do not say which one they are for"),
    "backbone": ("backbone", str, "replaces the model's backbone"),
    "dcn_variant": ("dcn_variant", str, "replaces the model's deformable convolutions"),
    "device": ("device", str, "auto, cpu, cuda, cuda:1 ..."),
    "precision": ("precision", str, "auto, float32, float16 or bfloat16"),
    "backend": ("backend", str, "auto, torch, inductor, openvino or onnxruntime"),
    "score_threshold": ("score_threshold", float, "minimum score of an instance, 0.0 to 1.0"),
    "mask_score_threshold": (
        "mask_score_threshold",
        float,
        "minimum mask_score of an instance, 0.0 to 1.0",
    ),
    "top_k": ("top_k", int, "maximum number of instances per image"),
    "nms_method": ("nms.method", str, "fast, cross_class or standard"),
    "nms_iou_threshold": ("nms.iou_threshold", float, "maximum IoU of boxes, 0.0 to 1.0"),
    "classes": ("classes", str, "classes to report, separated by commas"),
    "mask_encoding": ("mask.encoding", str, "rle, bits or mono8"),
    "overlay": ("overlay.enabled", bool, "publish overlays: true or false"),
    "qos_reliability": ("qos.reliability", str, "of images: auto, best_effort or reliable"),
    "depth_topic": ("depth_topic", str, "depth images registered to the colour images"),
    "camera_info_topic": ("camera_info_topic", str, "calibration that belongs to the depth images"),
    "autostart": ("autostart", bool, "configure and activate by itself: true or false"),
    "use_sim_time": ("use_sim_time", bool, "take the time from /clock: true or false"),
}

# Outputs of the node in config/yolact.rviz.
RVIZ_TOPICS = ("overlay", "labels", "markers")


def generate_launch_description() -> LaunchDescription:
    """Return the launch arguments, the node, and RViz."""
    share = FindPackageShare("yolact_ros")
    arguments = [
        DeclareLaunchArgument(name, default_value="", description=f"{text} (parameter {parameter})")
        for name, (parameter, _, text) in PARAMETERS.items()
    ]
    arguments += [
        DeclareLaunchArgument(
            "params_file",
            default_value=PathJoinSubstitution([share, "config", "yolact.yaml"]),
            description="file with parameters",
        ),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            choices=["debug", "info", "warn", "error", "fatal"],
            description="lowest severity that is logged",
        ),
        DeclareLaunchArgument(
            "rviz",
            default_value="false",
            description="true or false: show image, overlay and markers in RViz, for the first "
            "camera in image_topic as given here (params_file is ignored for this); the panel "
            "Image stays empty if the camera sends only compressed images; needs the package rviz2",
        ),
        DeclareLaunchArgument(
            "fixed_frame", default_value="", description="RViz: frame that everything is shown in"
        ),
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_actions)])


def _actions(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = {
        parameter: ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, (parameter, kind, _) in PARAMETERS.items()
        if context.launch_configurations[name]
    }
    params_file = Path(context.launch_configurations["params_file"]).expanduser()
    if not params_file.is_file():  # launch_ros would start the node with defaults
        raise FileNotFoundError(f"params_file: there is no file {str(params_file)!r}")
    node = Node(
        package="yolact_ros",
        executable="yolact_node",
        name="yolact",
        namespace=LaunchConfiguration("namespace"),
        parameters=[str(params_file), given],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
        emulate_tty=True,
    )
    # RViz first, so that nothing is started if it is not installed.
    return [_rviz(context), node]


def _rviz(context: LaunchContext) -> Node:
    given = context.launch_configurations
    # The node's namespace, which PushRosNamespace may have prefixed.
    namespace = prefix_namespace(given.get("ros_namespace"), given["namespace"]) or ""
    prefix = make_namespace_absolute(namespace).rstrip("/") + "/"
    # With several cameras, show the first.
    camera = cameras_of(given["image_topic"] or "image_raw")[0]
    # A camera that sends compressed images has the raw ones, if any, one level up.
    topic = camera.topic.removesuffix("/compressed").replace("~", "yolact", 1)
    image_topic = topic if topic.startswith("/") else prefix + topic
    outputs = {topic: camera.output(topic).replace("~", "yolact", 1) for topic in RVIZ_TOPICS}
    fixed_frame = given["fixed_frame"]
    sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    config = PathJoinSubstitution([FindPackageShare("yolact_ros"), "config", "yolact.rviz"])
    return Node(
        package="rviz2",
        executable="rviz2",
        parameters=[{"use_sim_time": sim_time}] if given["use_sim_time"] else [],
        arguments=["-d", config, *(["-f", fixed_frame] if fixed_frame else [])],
        remappings=[
            ("/image_raw", image_topic),
            *((f"/yolact/{topic}", prefix + output) for topic, output in outputs.items()),
        ],
        condition=IfCondition(LaunchConfiguration("rviz")),
        output="screen",
    )
