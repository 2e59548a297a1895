"""Several cameras, one network."""

import dataclasses
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("yolact_ros.msg", reason="needs the messages of this package, built")

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Log
from sensor_msgs.msg import Image
from yolact_ros.msg import InstanceArray

from yolact_ros.node import yolact_node
from yolact_ros.node.cameras import Camera, cameras_of
from yolact_ros.node.parameters import Parameters

TOPICS = ["/front/image_raw", "/rear/image_raw", "side/image"]
NAMES = ["front", "rear", "side"]


def names(*topics):
    return [camera.name for camera in cameras_of(topics)]


def test_names_of_cameras():
    assert cameras_of("image_raw") == cameras_of(["image_raw"]) == (Camera("image_raw", ""),)
    assert names("/front/image_raw", "/rear/image_raw") == ["front", "rear"]
    assert names("/robot/front/color/image", "~/b/image") == ["robot/front/color", "b"]
    assert names("/a/left", "/a/right") == ["a/left", "a/right"]
    assert names("/cam0", "/b/cam1") == ["cam0", "b/cam1"]
    assert names("/a/image/compressed", "/b/image") == ["a", "b"]
    assert cameras_of(" /a/x , /b/x") == cameras_of(["/a/x", "/b/x"])
    assert Camera("/a/x", "a").output("overlay") == "~/a/overlay"
    assert Camera("/a/x", "").output("overlay") == "~/overlay"


@pytest.mark.parametrize(
    "topics",
    [
        ("/front/image_raw", "front/image_raw"),
        ("/cam/image", "/cam/image/compressed"),
        ("~/image", "/image"),
    ],
)
def test_cameras_of_one_name_are_refused(topics):
    with pytest.raises(ValueError, match="two of these would be"):
        cameras_of(topics)
    with pytest.raises(ValueError, match="/cam/image more than once"):
        cameras_of((*topics, "/cam/image", "/cam/image"))


def test_how_many_images_go_through_the_network_at_once():
    six = Parameters(image_topic=tuple(f"/camera{i}/image" for i in range(6)))
    assert six.batch_limit("cuda") == 4 and six.batch_limit("cpu") == 1
    assert dataclasses.replace(six, max_batch=5).batch_limit("cpu") == 5
    assert dataclasses.replace(six, max_batch=16).batch_limit("cuda") == 6
    assert Parameters(max_batch=16).batch_limit("cuda") == 1


@pytest.mark.parametrize("given", [TOPICS, ", ".join(TOPICS)])
def test_each_camera_is_answered_in_its_own_namespace(
    graph, weights, segmenter, image, image_message, given
):
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    graph.start(weights=weights, score_threshold=0.0, top_k=5, image_topic=given, max_batch=2)
    assert graph.get("image_topic") == given
    # Images of different sizes, as cameras have them.
    images = [image, image[:97, :131].copy(), image[::2, ::2].copy()]
    cameras = [graph.camera(topic if topic[0] == "/" else f"/{topic}") for topic in TOPICS]
    received = [graph.collect(InstanceArray, f"/yolact/{name}/instances") for name in NAMES]
    overlays = graph.collect(Image, "/yolact/rear/overlay")

    def show(_):
        for name, camera, pixels in zip(NAMES, cameras, images, strict=True):
            camera(image_message(pixels, frame=name))

    for i in range(3):
        graph.see(show, None, received[i], 2)
        expected, found = segmenter(images[i]), received[i][-1]
        assert found.header.frame_id == NAMES[i]
        assert (found.height, found.width) == images[i].shape[:2]
        scores = [instance.score for instance in found.instances]
        np.testing.assert_allclose(scores, expected.scores, atol=1e-4)
    overlay = graph.see(show, None, overlays)
    assert (overlay.height, overlay.width) == images[1].shape[:2]

    def statuses():
        return {status.name: status for status in diagnostics[-1].status}

    expected = {"/yolact: model", *(f"/yolact: images {name}" for name in NAMES)}
    graph.wait_until(lambda: diagnostics and set(statuses()) == expected, "a status of each camera")
    graph.wait_until(
        lambda: all(
            int(pair.value) >= 2
            for name in NAMES
            for pair in statuses()[f"/yolact: images {name}"].values
            if pair.key == "processed"
        ),
        "all cameras in the diagnostics",
    )


def test_one_fast_camera_does_not_starve_the_others(graph, weights, image_message):
    graph.start(weights=weights, score_threshold=0.0, image_topic=TOPICS[:2], max_batch=1)
    received = [graph.collect(InstanceArray, f"/yolact/{name}/instances", 100) for name in NAMES]
    fast, slow = (graph.camera(topic) for topic in TOPICS[:2])
    large = image_message(np.zeros((480, 640, 3), np.uint8))
    graph.see(fast, large, received[0])
    graph.see(slow, large, received[1])
    target = len(received[1]) + 4
    waiting = {"answers": 0, "since": 0.0}

    def served():
        fast(large)
        answers, now = len(received[1]), time.monotonic()
        if answers > waiting["answers"] or now > waiting["since"] + 5:  # it may get lost
            waiting.update(answers=answers, since=now)
            slow(large)
        return answers >= target

    graph.wait_until(served, "answers to the slow camera")
    front = next(iter(graph.node._statistics.values())).summary()
    assert front.passed_over > 0


def test_malformed_images_of_one_camera_leave_the_others_alone(
    graph, weights, image, image_message
):
    graph.start(weights=weights, score_threshold=0.0, image_topic=TOPICS[:2])
    received = graph.collect(InstanceArray, "/yolact/rear/instances")
    bad, good = (graph.camera(topic) for topic in TOPICS[:2])
    graph.see(
        lambda message: bad(image_message(image, step=7)) or good(message),
        image_message(image),
        received,
        3,
    )
    front, rear = graph.node._statistics.values()
    # An answer is counted when it has been sent.
    graph.wait_until(lambda: rear.summary().processed >= 3, "the last answer to be counted")
    assert front.summary().processed == 0 and front.summary().refused["step"] > 0
    assert rear.summary().refused == {}


def test_each_camera_has_log_lines_of_its_own(graph, weights, image, image_message):
    """One a second at most, but one camera's are not left out for another's."""
    lines = graph.collect(Log, "/rosout")
    graph.start(weights=weights, image_topic=TOPICS[:2])
    cameras = [graph.camera(topic) for topic in TOPICS[:2]]
    bad = image_message(image, step=7)

    def stamps(topic):
        of_topic = (line.stamp for line in lines if f"dropped on {topic}:" in line.msg)
        return [stamp.sec + stamp.nanosec / 1e9 for stamp in of_topic]

    def told():
        for camera in cameras:
            camera(bad)
        time.sleep(0.02)
        front, rear = map(stamps, TOPICS[:2])
        return any(abs(one - other) < 0.5 for one in front for other in rear)

    graph.wait_until(told, "lines about both at once")


def test_silence_is_logged_once_a_period(graph, weights, monkeypatch):
    monkeypatch.setattr("yolact_ros.node.yolact_node.SILENCE_LOG_PERIOD", 0.7)
    lines = graph.collect(Log, "/rosout")
    graph.start(weights=weights, image_topic="/front", image_timeout=0.1)

    def times():
        stamps = [line.stamp for line in lines if line.msg.startswith("No image on")]
        return [stamp.sec + stamp.nanosec / 1e9 for stamp in stamps]

    graph.wait_until(lambda: len(times()) >= 3, "three lines")
    first, *_, last = times()[:3]
    assert last - first >= 2 * 0.69, "diagnostics came more often"


def test_silence_is_logged_once_a_minute(graph, weights):
    assert yolact_node.SILENCE_LOG_PERIOD == 60
    lines = graph.collect(Log, "/rosout")
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    graph.start(weights=weights, image_topic=TOPICS[:2], image_timeout=0.1)

    def told():
        found = [s for m in diagnostics for s in m.status if "nothing publishes it" in s.message]
        return len(found) >= 6

    graph.wait_until(told, "diagnostics of three seconds")
    silent = [line.msg for line in lines if line.msg.startswith("No image on")]
    assert [sum(topic in line for line in silent) for topic in TOPICS[:2]] == [1, 1]


def test_a_list_of_topics_is_set_and_refused_as_others(graph, weights, image, image_message):
    graph.start(weights=weights, score_threshold=0.0)
    for bad in ([], ["/a", "/a"], ["/a", ""], 7, ["/a", "no topic!"]):
        assert graph.set(image_topic=bad) != ""
    assert "node of its own" in graph.set(image_topic=["/a/x", "/b/x"], depth_topic="/d")
    assert graph.get("image_topic") == "image_raw"
    assert graph.set(image_topic=["/a/x", "/b/x"]) == ""
    for step in ("deactivate", "cleanup", "configure", "activate"):
        assert graph.transition(step)
    received = graph.collect(InstanceArray, "/yolact/b/instances")
    graph.see(graph.camera("/b/x"), image_message(image), received)
