"""Lifecycle transitions and reconfiguration on a real graph."""

import sys
import threading
import weakref
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("yolact_ros.msg", reason="needs the messages of this package, built")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from sensor_msgs.msg import Image
from yolact_ros.msg import InstanceArray

from yolact_ros.engine import Segmenter
from yolact_ros.node import yolact_node


def topics(graph):
    """Topics that the node publishes, without those that every node has."""
    found = graph.client.get_publisher_names_and_types_by_node("yolact", "/")
    return {name for name, _ in found if name.startswith("/yolact/")} - {"/yolact/transition_event"}


OUTPUTS = {"/yolact/" + name for name in ("instances", "overlay", "overlay/compressed", "labels")}


def test_every_transition(graph, weights, image, image_message):
    graph.start(active=False, weights=weights, autostart=False, score_threshold=0.0)
    received = graph.collect(InstanceArray, "/yolact/instances")
    publisher = graph.client.create_publisher(Image, "/image_raw", 1)
    assert graph.state() == "unconfigured"
    assert not graph.transition("activate")
    assert topics(graph) == set()
    for _ in range(2):
        assert graph.transition("configure") and graph.state() == "inactive"
        graph.wait_until(lambda: topics(graph) == OUTPUTS, "the publishers")
        assert publisher.get_subscription_count() == 0
        for _ in range(2):
            assert graph.transition("activate") and graph.state() == "active"
            graph.wait_until(publisher.get_subscription_count, "the subscription")
            graph.see(publisher.publish, image_message(image), received)
            assert not graph.transition("cleanup") and graph.state() == "active"
            assert graph.transition("deactivate") and graph.state() == "inactive"
            graph.wait_until(lambda: publisher.get_subscription_count() == 0, "it to be gone")
        assert graph.transition("cleanup") and graph.state() == "unconfigured"
        graph.wait_until(lambda: topics(graph) == set(), "the publishers to be gone")


@pytest.mark.parametrize("steps", [(), ("configure",), ("configure", "activate")])
def test_shutdown_from_every_state(graph, weights, steps):
    node = graph.start(active=False, weights=weights, autostart=False)
    for step in steps:
        assert graph.transition(step)
    assert graph.transition("shutdown")
    assert graph.state() == "finalized"
    graph.wait_until(lambda: topics(graph) == set(), "the publishers to be gone")
    assert node._inputs is None and node._segmenter is None
    assert not graph.transition("configure")


def test_deactivation_during_an_image_waits_for_it(graph, weights, image, image_message):
    pipeline = graph.start(weights=weights, score_threshold=0.0)._inputs.pipeline
    received = graph.collect(InstanceArray, "/yolact/instances")
    graph.wait_until(lambda: graph.client.count_publishers("/yolact/instances"), "the publisher")
    decode, begun, gate = pipeline._decode, threading.Event(), threading.Event()

    def wait_and_decode(frame):
        begun.set()
        assert gate.wait(60)
        return decode(frame)

    pipeline._decode = wait_and_decode
    camera = graph.camera()
    camera(image_message(image))
    graph.wait_until(begun.is_set, "the image")
    camera(image_message(image))
    graph.wait_until(lambda: graph.summary().received == 2, "an image that waits")
    left = []
    leaving = threading.Thread(target=lambda: left.append(graph.transition("deactivate")))
    leaving.start()
    leaving.join(0.5)
    waiting = leaving.is_alive() and not left and graph.summary().processed == 0
    gate.set()
    leaving.join()
    assert waiting
    assert left == [True]
    summary = graph.summary()
    assert (summary.received, summary.processed, summary.passed_over) == (2, 1, 1)
    graph.wait_until(lambda: received, "its answer")
    assert graph.transition("activate")


def test_a_new_model_is_taken_by_a_reconfiguration(
    graph, weights, other_weights, image, image_message
):
    graph.start(weights=weights, score_threshold=0.0, top_k=3, image_topic="/one")
    received = graph.collect(InstanceArray, "/yolact/instances")
    first = graph.see(graph.camera("/one"), image_message(image), received)
    assert {i.class_name for i in first.instances} <= {"cat", "dog", "person"}
    assert graph.set(weights=other_weights, image_topic="/two") == ""
    assert graph.get("weights") == other_weights
    again = graph.see(graph.camera("/one"), image_message(image), received, 2)
    assert {i.class_name for i in again.instances} <= {"cat", "dog", "person"}
    for step in ("deactivate", "cleanup", "configure", "activate"):
        assert graph.transition(step)
    received.clear()
    second = graph.see(graph.camera("/two"), image_message(image), received)
    assert {i.class_name for i in second.instances} <= {"car", "bus"}


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"weights": "/no/such/file.safetensors"}, "/no/such/file.safetensors"),
        ({"device": "cuda:77"}, "cuda:77"),
        ({"model": "yolact_plus_base", "backbone": "darknet53", "weights": "random"}, "darknet53"),
        ({"classes": "whale"}, "whale"),
    ],
)
def test_what_cannot_run_leaves_the_node_unconfigured(graph, weights, parameters, reason):
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    graph.start(active=False, **{"weights": weights, **parameters})
    problem = graph.wait_until(
        lambda: [
            status
            for message in diagnostics
            for status in message.status
            if status.level == DiagnosticStatus.ERROR
        ],
        "an error in the diagnostics",
    )[0]
    assert problem.name == "/yolact: model" and reason in problem.message
    assert graph.state() == "unconfigured"
    # Mended, it runs.
    mended = {"weights": weights, "device": "auto", "model": "", "backbone": "", "classes": ""}
    assert graph.set(**mended) == ""
    assert graph.transition("configure") and graph.transition("activate")
    diagnostics.clear()
    graph.wait_until(lambda: diagnostics, "new diagnostics")
    assert all(s.level != DiagnosticStatus.ERROR for m in diagnostics for s in m.status)


def test_faults_are_mended_one_by_one(graph, weights):
    graph.start(active=False, weights="/no/such.safetensors", device="cuda:77", autostart=False)
    assert not graph.transition("configure")
    assert graph.set(image_topic="/elsewhere") == ""
    assert "cuda:78" in graph.set(device="cuda:78") and graph.get("device") == "cuda:77"
    assert graph.set(device="cpu") == ""
    assert "other.safetensors" in graph.set(weights="/no/other.safetensors")
    assert graph.set(weights=weights) == ""
    assert "cuda:77" in graph.set(device="cuda:77")
    assert graph.transition("configure")


@pytest.mark.parametrize("library", ["openvino", "onnxruntime"])
def test_a_backend_that_is_not_installed_is_refused(graph, weights, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    graph.start(active=False, weights=weights, autostart=False)
    assert f"needs {library}: pip install" in graph.set(backend=library)
    assert graph.get("backend") == "torch"


def test_a_model_that_is_given_up_is_forgotten(graph, weights, monkeypatch):
    """Its memory must be free before the next one is loaded."""
    made = []

    def make(*arguments, **options):
        segmenter = Segmenter(*arguments, **options)
        made.append(weakref.ref(segmenter.runtime.run))
        return segmenter

    monkeypatch.setattr(yolact_node, "Segmenter", make)
    graph.start(active=False, weights=weights, autostart=False)
    for step in ("configure", "activate", "deactivate", "cleanup"):
        assert graph.transition(step)
    assert graph.set(classes="whale") == ""
    assert not graph.transition("configure")
    assert [model() for model in made] == [None, None]


def test_a_broken_weight_file_leaves_the_node_unconfigured(graph, weights, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(Path(weights).read_bytes()[:5000])
    node = graph.start(active=False, weights=str(broken))
    assert "broken.safetensors" in graph.wait_until(lambda: node._problem, "the reason")
    graph.wait_until(lambda: graph.state() == "unconfigured", "the end of the transition")


def test_a_topic_that_cannot_be_subscribed_leaves_the_node_inactive(graph, weights):
    name = "{ns}/image"  # a topic name, but not in the root namespace
    node = graph.start(active=False, weights=weights, autostart=False, image_topic=name)
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    assert graph.transition("configure")
    assert not graph.transition("activate") and graph.state() == "inactive"
    reason = "topic name must not contain repeated '/'"
    assert reason in node._problem and node._inputs is None

    def told():
        found = [each for message in diagnostics for each in message.status]
        return any(
            each.level == DiagnosticStatus.ERROR and reason in each.message for each in found
        )

    graph.wait_until(told, "an error")
    assert graph.set(image_topic="/a/b") == ""
    assert graph.transition("cleanup") and node._problem == ""
    for step in ("configure", "activate"):
        assert graph.transition(step)
