"""The demonstration, as `make demo` runs it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import cv2
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("yolact_ros.msg", reason="needs the messages of this package, built")

import rclpy
from ament_index_python.packages import get_package_prefix
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image

import yolact_ros
from yolact_ros.node import demo

PHOTOS = sorted(Path(yolact_ros.__file__).parent.joinpath("demo", "photos").glob("*.jpg"))


def program(name: str) -> list[str]:
    path = Path(get_package_prefix("yolact_ros"), "lib", "yolact_ros", name)
    return [shutil.which("python3") or "python3", str(path)]


def run(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program("yolact_demo"), "--output", str(output), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_segments_the_photographs(tmp_path: Path) -> None:
    result = run(tmp_path / "overlays")
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / "overlays") in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if " person " in line]
    assert {row[0] for row in rows} == {photo.name for photo in PHOTOS}
    for name, _, score, x1, y1, x2, y2, area, latency in rows:
        height, width, _ = cv2.imread(str(PHOTOS[0].with_name(name))).shape
        assert 0.3 <= float(score) <= 1
        assert 0 <= int(x1) < int(x2) <= width
        assert 0 <= int(y1) < int(y2) <= height
        assert 0 <= int(area) <= width * height
        assert int(latency) > 0
    assert sum(int(row[-2]) for row in rows) > 10_000
    for photo in PHOTOS:
        overlay = cv2.imread(str(tmp_path / "overlays" / f"{photo.stem}.png"))
        original = cv2.imread(str(photo))
        assert overlay.shape == original.shape
        assert (overlay != original).any()


def test_says_that_the_node_died(tmp_path: Path) -> None:
    result = run(tmp_path, "--ros-args", "-p", "top_k:=many")
    assert result.returncode == 1
    assert "demo: the node yolact ended with status" in result.stderr


@pytest.mark.parametrize(
    ("namespace", "parameter", "reason"),
    [
        ("demo", "weights:=/no/such/file", "/no/such/file"),
        ("/", "autostart:=false", "unconfigured"),  # as `make demo` calls it
    ],
)
def test_says_at_once_that_the_node_does_not_run(tmp_path, namespace, parameter, reason) -> None:
    start = time.monotonic()
    given = ("--namespace", namespace, "--timeout", "1000", "--ros-args", "-p", parameter)
    result = run(tmp_path, *given)
    assert time.monotonic() - start < 120
    assert result.returncode == 1
    assert "demo: the node is unconfigured" in result.stderr and reason in result.stderr


def test_says_that_nothing_arrives(tmp_path: Path) -> None:
    nowhere = ("--ros-args", "-p", "image_topic:=/nowhere", "-p", "backend:=torch")
    result = run(tmp_path, "--timeout", "5", *nowhere)
    assert result.returncode == 1
    assert "Waiting for images on /nowhere" in result.stdout + result.stderr  # the node was up
    assert f"demo: nothing arrived for {', '.join(photo.name for photo in PHOTOS)}" in result.stderr


def test_waits_while_a_model_is_loaded() -> None:
    """Which may be downloaded before."""
    rclpy.init(args=[])
    try:
        viewer, node = demo.Viewer("/test_demo"), rclpy.create_node("yolact")
        publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        said = {"configuring": DiagnosticStatus.OK}
        started = time.monotonic()

        def say() -> None:
            if time.monotonic() > started + 3:
                said.clear()
                said["unconfigured"] = DiagnosticStatus.ERROR
            for state, level in said.items():
                status = DiagnosticStatus(name="/test_demo/yolact: model", level=level, message="?")
                status.values = [KeyValue(key="state", value=state)]
                publisher.publish(DiagnosticArray(status=[status]))

        viewer.create_timer(0.1, say)
        with pytest.raises(demo.DemoError, match=r"the node is unconfigured: \?"):
            demo.watch(viewer, {"photo.jpg"}, {}, timeout=1)
        assert time.monotonic() > started + 3
    finally:
        rclpy.try_shutdown()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (("folder:=/no/such/folder",), "no .jpg or .png files in the folder '/no/such/folder'"),
        ((f"folder:={PHOTOS[0].parent}", "rate:=0.0"), "rate=0.0 is not allowed"),
        ((f"folder:={PHOTOS[0].parent}", "rate:=1e-12"), "rate=1e-12 is not allowed"),
        (("folder:=~nobody-here/x",), "folder='~nobody-here/x' cannot be read"),
        (("rate:=often",), "to 'often' of type 'STRING', expecting type 'DOUBLE'"),
    ],
)
def test_a_camera_without_images_or_rate_says_so(parameters, message) -> None:
    words = [word for each in parameters for word in ("-p", each)]
    result = subprocess.run(
        [*program("yolact_camera"), "--ros-args", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    assert re.search(f"^camera: .*({message})", result.stderr)
    assert "Traceback" not in result.stderr


def test_a_camera_passes_over_what_it_cannot_read(graph, image, tmp_path) -> None:
    data = cv2.imencode(".png", image)[1].tobytes()
    for name, content in ((b"a.png", data), (b"caf\xe9.PNG", data), (b"broken.png", data[:99])):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(content)
    received = graph.collect(Image, "/camera/image_raw")
    words = ["-p", f"folder:={tmp_path}", "-p", "rate:=20.0"]
    process = subprocess.Popen(
        [*program("yolact_camera"), "--ros-args", *words], stderr=subprocess.PIPE, text=True
    )
    client = graph.client.create_client(SetParameters, "/camera/set_parameters")
    try:
        graph.wait_until(lambda: len(received) >= 6, "the images")
        change = SetParameters.Request(parameters=[Parameter("rate", value=1.0).to_parameter_msg()])
        answer = client.call_async(change)
        graph.wait_until(answer.done, "the answer")
        assert "read-only" in answer.result().results[0].reason
    finally:
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=60)
    assert {message.header.frame_id for message in received} == {"a.png", "caf\ufffd.PNG"}
    said = f"Publishing 3 images from {tmp_path} on /camera/image_raw, 20 per second"
    assert said in log
    assert "Passed over" in log and "broken.png is cut short" in log
    assert process.returncode == 0 and "Traceback" not in log
