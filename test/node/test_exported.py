"""The node runs exported files whose detection stage has settings of its own."""

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("yolact_ros.msg", reason="needs the messages of this package, built")
pytest.importorskip("openvino", reason="needs the extra openvino")

from yolact_ros.msg import InstanceArray

from yolact_ros.engine import Segmenter


def test_what_the_file_fixes_is_taken(graph, exported, image, image_message):
    graph.start(backend="auto", weights=exported, score_threshold=0.0)
    assert graph.get("nms.method") == "cross_class" and graph.get("nms.iou_threshold") == 0.6
    received = graph.collect(InstanceArray, "/yolact/instances")
    message = graph.see(graph.camera(), image_message(image), received)
    expected = Segmenter(weights=exported, score_threshold=0.0)(image)
    assert [each.score for each in message.instances] == pytest.approx(expected.scores.tolist())
    assert len(expected) > 0
    assert "nms_method='fast' is not allowed: the exported" in graph.set(nms__method="fast")
    assert graph.set(score_threshold=0.5, top_k=2) == ""


def test_what_a_file_fixed_goes_with_it(graph, exported, weights):
    graph.start(active=False, backend="auto", weights=exported, autostart=False)
    for step in ("configure", "cleanup"):
        assert graph.transition(step)
    assert graph.get("nms.method") == "fast" and graph.get("nms.iou_threshold") == 0.5
    assert graph.transition("configure") and graph.transition("cleanup")
    assert graph.set(nms__iou_threshold=0.6) == "", "now it is the user's"
    assert graph.transition("configure") and graph.transition("cleanup")
    assert graph.get("nms.iou_threshold") == 0.6 and graph.get("nms.method") == "fast"
    assert graph.set(weights=weights, backend="torch") == "" and graph.transition("configure")


def test_the_same_may_be_asked_for(graph, exported):
    graph.start(backend="auto", weights=exported, nms__method="cross_class")


def test_what_a_user_set_otherwise_is_refused(graph, exported):
    node = graph.start(active=False, backend="auto", weights=exported, nms__iou_threshold=0.7)
    reason = graph.wait_until(lambda: node._problem, "the reason")
    assert "nms_iou_threshold=0.7 is not allowed: the exported network" in reason
    assert "with 0.6" in reason
    graph.wait_until(lambda: graph.state() == "unconfigured", "the end of configuring")
    assert graph.get("nms.method") == "fast", "nothing is taken from a file that is not run"
    assert graph.set(nms__iou_threshold=0.5) == ""
    assert graph.transition("configure") and graph.get("nms.iou_threshold") == 0.6
