"""What /diagnostics tells, and what a flood of malformed images does."""

import dataclasses
import threading
import time

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("yolact_ros.msg", reason="needs the messages of this package, built")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import Log
from rclpy.context import Context
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage
from yolact_ros.msg import InstanceArray

from yolact_ros.node.diagnostics import CameraState, NodeState, diagnostic_array
from yolact_ros.node.statistics import FrameStatistics
from yolact_ros.node.yolact_node import DIAGNOSTICS_PERIOD


def latest(messages, name):
    """The newest status of a name, as (status, values); None when there is none."""
    for message in reversed(messages):
        for status in message.status:
            if status.name == name:
                return status, {pair.key: pair.value for pair in status.values}
    return None


def wait_for(graph, messages, name, condition):
    """The newest status of a name for which the condition holds."""

    def found():
        newest = latest(messages, name)
        return newest if newest and condition(*newest) else None

    return graph.wait_until(found, f"a status of {name}")


def test_model_and_images(graph, weights, image, image_message):
    messages = graph.collect(DiagnosticArray, "/diagnostics")
    graph.start(weights=weights, score_threshold=0.0)
    received = graph.collect(InstanceArray, "/yolact/instances")
    graph.see(graph.camera(), image_message(image), received, 3)
    status, values = wait_for(
        graph, messages, "/yolact: images", lambda _, values: int(values["processed"]) >= 3
    )
    assert status.level == DiagnosticStatus.OK and "images a second" in status.message
    assert values["topic"] == "/image_raw"
    assert float(values["rate in (Hz)"]) >= float(values["rate out (Hz)"]) > 0
    assert values["refused"] == values["failed"] == "0"
    for stage in ("waiting", "decoding", "preprocessing", "network", "detection", "publishing"):
        median, worst = values[f"{stage} median (ms)"], values[f"{stage} 99 % (ms)"]
        assert 0 <= float(median) <= float(worst) <= float(values["total 99 % (ms)"])
    status, values = latest(messages, "/yolact: model")
    assert status.level == DiagnosticStatus.OK
    assert "small.safetensors" in values["model"] and "cat, dog, person" in values["model"]
    assert values["state"] == "active" and status.hardware_id == values["device"]
    memory = [value for key, value in values.items() if "memory" in key]
    assert memory and all(int(value) >= 0 for value in memory)


def test_no_image_for_a_while_is_a_warning(graph, weights):
    messages = graph.collect(DiagnosticArray, "/diagnostics")
    graph.start(weights=weights, image_timeout=0.1)
    status, _ = wait_for(
        graph, messages, "/yolact: images", lambda status, _: status.level == DiagnosticStatus.WARN
    )
    assert "no image on /image_raw" in status.message
    assert status.message.endswith("s: nothing publishes it")
    # Of a process of its own, as it were: within one, the middleware refuses another type.
    context = Context()
    rclpy.init(context=context)
    camera = rclpy.create_node("camera", context=context)
    camera.create_publisher(CompressedImage, "/image_raw", 10)
    told = "published as sensor_msgs/msg/CompressedImage, not as sensor_msgs/msg/Image"
    wait_for(graph, messages, "/yolact: images", lambda status, _: told in status.message)
    camera.destroy_node()
    rclpy.shutdown(context=context)


def test_a_slow_network_is_not_one_that_hangs():
    statistics = FrameStatistics()
    statistics.processed({"total": 1500.0})
    state = NodeState("/yolact", "active", "", "", "cpu", image_timeout=5.0)
    levels = []
    for seconds in (4.0, 7.0, 8.0):
        frames = dataclasses.replace(statistics.summary(), unanswered=seconds)
        message = diagnostic_array(Time(), state, [CameraState("", "/image_raw", frames)])
        levels.append(message.status[1].level)
    assert levels == [DiagnosticStatus.OK, DiagnosticStatus.OK, DiagnosticStatus.ERROR]


def test_a_network_that_hangs_is_an_error(graph, weights, image, image_message, monkeypatch):
    monkeypatch.setattr("yolact_ros.node.statistics.RATE_WINDOW", 1.0)
    messages = graph.collect(DiagnosticArray, "/diagnostics")
    node = graph.start(weights=weights, image_timeout=0.5)
    hangs, goes_on, submit = threading.Event(), threading.Event(), node._segmenter.submit

    def hang(images):
        hangs.set()
        goes_on.wait(60)
        return submit(images)

    node._segmenter.submit = hang
    camera = graph.camera()

    def told():
        # One that is refused is no sign that the network works.
        camera(image_message(image, **({"step": 1} if hangs.is_set() else {})))
        time.sleep(0.05)
        newest = latest(messages, "/yolact: images")
        return newest[0] if newest and newest[0].level == DiagnosticStatus.ERROR else None

    assert "images came, but none was finished" in graph.wait_until(told, "an error").message
    # Nor is a camera to blame that waits for an answer.
    newest, _ = wait_for(
        graph, messages, "/yolact: images", lambda _, values: values["rate in (Hz)"] == "0.00"
    )
    assert newest.level == DiagnosticStatus.ERROR
    goes_on.set()
    wait_for(
        graph,
        messages,
        "/yolact: images",
        lambda status, values: (
            status.level != DiagnosticStatus.ERROR and values["processed"] != "0"
        ),
    )


def test_an_unconfigured_node_says_so(graph, weights):
    messages = graph.collect(DiagnosticArray, "/diagnostics")
    graph.start(active=False, weights=weights, autostart=False)
    status, values = wait_for(graph, messages, "/yolact: model", lambda *_: True)
    assert status.level == DiagnosticStatus.OK and "unconfigured" in status.message
    assert values["state"] == "unconfigured"


def test_a_node_that_starts_slowly_does_not_look_left_alone(graph, weights):
    messages = graph.collect(DiagnosticArray, "/diagnostics")
    graph.start(weights=weights, spin_after=DIAGNOSTICS_PERIOD + 0.5)
    wait_for(graph, messages, "/yolact: model", lambda _, values: values["state"] == "active")
    told = [latest([message], "/yolact: model")[1]["state"] for message in messages]
    assert "unconfigured" not in told


def test_a_flood_of_malformed_images(graph, weights, image, image_message):
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    log = graph.collect(Log, "/rosout", 1000)
    graph.start(weights=weights, score_threshold=0.0, qos__depth=100, qos__reliability="reliable")
    received = graph.collect(InstanceArray, "/yolact/instances", 100)
    camera = graph.camera(qos=100)
    graph.wait_until(lambda: any("Waiting" in entry.msg for entry in log), "the log")
    good = image_message(image)
    malformed = [
        image_message(image, step=7),
        image_message(image, height=1000),
        image_message(image, width=0),
        image_message(image, encoding="bgr8_of_mars"),
        image_message(image, encoding="mono16", step=321, data=bytes(321 * 120)),
        image_message(image, height=2**31, width=2**31),
    ]
    start = time.monotonic()
    for _ in range(10):
        # As many at a time as the queues hold; the answer to the good one says that all were read.
        for message in 5 * malformed:
            camera(message)
        answers = len(received)
        camera(good)
        graph.wait_until(lambda n=answers: len(received) > n, "an answer amid the flood")
    status, values = wait_for(
        graph,
        diagnostics,
        "/yolact: images",
        lambda _, values: int(values["refused"]) == 50 * len(malformed),
    )
    seconds = time.monotonic() - start
    assert status.level == DiagnosticStatus.WARN and "malformed" in status.message
    reasons = {key.partition(": ")[2]: int(v) for key, v in values.items() if "refused: " in key}
    assert reasons == {"step": 100, "data": 50, "size": 100, "encoding": 50}
    warnings = [entry.msg for entry in log if "Malformed image" in entry.msg]
    assert 1 <= len(warnings) <= seconds + 1
    graph.see(camera, good, received)


def test_compressed_images_that_cannot_be_decoded(graph, weights, image, image_message):
    graph.start(weights=weights, compressed=True, score_threshold=0.0)
    received = graph.collect(InstanceArray, "/yolact/instances")
    camera = graph.camera("/image_raw/compressed", CompressedImage)
    data = cv2.imencode(".jpg", image)[1].tobytes()
    png = cv2.imencode(".png", image)[1].tobytes()
    for broken in (b"", data[: len(data) // 2], b"GIF89a", png[:60] + bytes(80) + png[140:]):
        before = graph.summary().refused
        message = CompressedImage(format="jpeg", data=broken)
        graph.wait_until(
            lambda m=message, b=before: camera(m) or graph.summary().refused != b,
            "an image to be refused",
        )
    graph.see(camera, CompressedImage(format="jpeg", data=data), received)


def test_statistics_count_and_measure():
    statistics = FrameStatistics()
    for _ in range(4):
        statistics.arrived()
    statistics.passed_over()
    assert statistics.refused("step") == 1 and statistics.refused("data") == 2
    statistics.failed()
    for value in range(1000):
        statistics.processed({"network": float(value), "total": 2.0 * value})
    summary = statistics.summary()
    assert (summary.received, summary.processed, summary.passed_over) == (4, 1000, 1)
    assert summary.refused == {"step": 1, "data": 1} and summary.failed == 1
    newest = np.arange(700, 1000)
    assert summary.latencies["network"].median == np.median(newest)
    assert summary.latencies["total"].percentile_99 == 2 * np.percentile(newest, 99)
    assert summary.rate_out > summary.rate_in > 0 and summary.silence < 60


@pytest.mark.parametrize(
    ("happen", "level", "told"),
    [
        (lambda counted: counted.failed(), DiagnosticStatus.ERROR, "1 images failed"),
        (
            lambda counted: counted.refused("data", accepted=True),
            DiagnosticStatus.WARN,
            "1 malformed",
        ),
    ],
)
def test_an_image_without_an_answer_is_not_waited_for(happen, level, told):
    counted = FrameStatistics()
    counted.arrived()
    counted.accepted()
    happen(counted)
    frames = counted.summary()
    assert frames.unanswered == 0
    state = NodeState("/yolact", "active", "", "", "cpu", image_timeout=5.0)
    status = diagnostic_array(Time(), state, [CameraState("", "/i", frames)]).status[1]
    assert status.level == level and told in status.message


def test_a_new_timeout_takes_effect_at_once(graph, weights):
    messages = graph.collect(DiagnosticArray, "/diagnostics")
    graph.start(weights=weights, image_timeout=3600.0)
    assert graph.set(image_timeout=0.1) == ""

    def told():
        found = [status for message in messages for status in message.status]
        return any(s.level == DiagnosticStatus.WARN and "no image" in s.message for s in found)

    graph.wait_until(told, "a warning")


def test_a_clock_that_stands_still_stops_nothing(graph, weights):
    """With use_sim_time, before the bag is played."""
    messages = graph.collect(DiagnosticArray, "/diagnostics")
    graph.start(weights=weights, use_sim_time=True)
    graph.wait_until(lambda: messages, "diagnostics")
