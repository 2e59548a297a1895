"""The launch file with the real `ros2 launch`."""

import re
import shutil
import signal
import subprocess
import threading

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("yolact_ros.msg", reason="needs the messages of this package, built")
pytest.importorskip("launch_ros", reason="needs launch_ros, which is not among the ROS wheels")
if shutil.which("ros2") is None:
    pytest.skip("needs the command ros2", allow_module_level=True)

from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python

# Argument, parameter, value: none of them is the default.
GIVEN = [
    ("image_topic", "image_topic", "/eye/image"),
    ("compressed", "compressed", True),
    ("max_batch", "max_batch", 2),
    ("max_rate", "max_rate", 7.5),
    ("device", "device", "cpu"),
    ("precision", "precision", "float32"),
    ("backend", "backend", "torch"),
    ("score_threshold", "score_threshold", 0.25),
    ("mask_score_threshold", "mask_score_threshold", 0.125),
    ("top_k", "top_k", 7),
    ("nms_method", "nms.method", "standard"),
    ("nms_iou_threshold", "nms.iou_threshold", 0.75),
    ("classes", "classes", "cat, dog"),
    ("mask_encoding", "mask.encoding", "bits"),
    ("overlay", "overlay.enabled", False),
    ("qos_reliability", "qos.reliability", "reliable"),
    ("depth_topic", "depth_topic", "/eye/depth"),
    ("camera_info_topic", "camera_info_topic", "/eye/info"),
    ("autostart", "autostart", False),
    ("use_sim_time", "use_sim_time", True),
]
# These cannot all be changed for one model; the node is not configured here.
MODEL = [
    ("weights", "weights", "yolact_base"),
    ("model", "model", "yolact_base"),
    ("backbone", "backbone", "resnet50"),
    ("dcn_variant", "dcn_variant", "interval3"),
]


def launch_file(repository):
    return str(repository / "launch" / "yolact.launch.py")


def test_a_parameter_file_that_is_not_there(repository):
    """launch_ros would start the node without it."""
    command = ["ros2", "launch", launch_file(repository), "params_file:=~/no-such-file.yaml"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert re.search("there is no file '/.*/no-such-file.yaml'", ended.stdout + ended.stderr)


def test_every_argument_reaches_its_parameter(graph, repository, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(
        "/**:\n  ros__parameters:\n    top_k: 3\n    overlay:\n      alpha: 0.125\n"
        "    image_timeout: 9.5\n"
    )
    arguments = [
        f"{name}:={str(value).lower() if isinstance(value, bool) else value}"
        for name, _, value in GIVEN + MODEL
    ]
    command = ["ros2", "launch", launch_file(repository), "namespace:=robot1"]
    process = subprocess.Popen(
        [*command, f"params_file:={file}", "log_level:=warn", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log = []
    reader = threading.Thread(target=lambda: log.extend(process.stdout))
    reader.start()
    try:
        expected = {parameter: value for _, parameter, value in GIVEN + MODEL}
        expected |= {"overlay.alpha": 0.125, "image_timeout": 9.5}  # of the file
        request = GetParameters.Request(names=list(expected))
        response = graph.call(GetParameters, "/robot1/yolact/get_parameters", request)
        values = map(parameter_value_to_python, response.values)
        assert dict(zip(expected, values, strict=True)) == expected
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        reader.join()
    assert "process has finished cleanly" in "".join(log)


def test_every_argument_is_listed_and_every_parameter_of_it_exists(repository):
    from yolact_ros.node.parameters import PARAMETERS

    command = ["ros2", "launch", launch_file(repository), "--show-args"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for _, parameter, _ in GIVEN + MODEL:
        assert f"(parameter {parameter})" in shown
        assert parameter in PARAMETERS or parameter == "use_sim_time"
    names = {name for name, _, _ in GIVEN + MODEL}
    names |= {"params_file", "namespace", "log_level", "rviz", "fixed_frame"}
    assert set(re.findall(r"^    '(\w+)':", shown, re.MULTILINE)) == names


def test_a_bad_value_is_explained(repository):
    command = ["ros2", "launch", launch_file(repository), "nms_method:=soft"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "nms.method='soft' is not allowed" in result.stdout + result.stderr


def test_rviz_that_is_not_installed_leaves_nothing_behind(repository):
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix

    try:
        get_package_prefix("rviz2")
    except PackageNotFoundError:
        pass
    else:
        pytest.skip("needs a machine without RViz")
    command = ["ros2", "launch", launch_file(repository), "rviz:=true"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    told = result.stdout + result.stderr
    assert result.returncode == 1 and "package 'rviz2' not found" in told
    assert "yolact_node" not in told, "the node was started"
