"""A device that is lost while the node works."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("yolact_ros.msg", reason="needs the messages of this package, built")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from yolact_ros.msg import InstanceArray

from yolact_ros.engine import DeviceLostError
from yolact_ros.engine.device import choose_device
from yolact_ros.node import images, messages, yolact_node


def test_a_lost_device_leads_to_error_processing(graph, weights, image, image_message):
    node = graph.start(weights=weights, score_threshold=0.0)
    received = graph.collect(InstanceArray, "/yolact/instances")
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    publisher = graph.client.create_publisher(Image, "/image_raw", 1)
    graph.wait_until(publisher.get_subscription_count, "the subscription")
    graph.see(publisher.publish, image_message(image), received)
    # No machine of the tests has so many: PyTorch refuses it as it refuses one that fell out.
    segmenter = node._segmenter
    segmenter.runtime = replace(segmenter.runtime, device=torch.device("cuda:7"))
    publisher.publish(image_message(image))
    graph.wait_until(lambda: graph.state() == "unconfigured", "the node to give up")
    assert node._segmenter is None and node._inputs is None
    diagnostics.clear()
    graph.wait_until(lambda: diagnostics, "new diagnostics")
    status = diagnostics[-1].status[0]
    assert status.level == DiagnosticStatus.ERROR
    assert "cuda:7 is lost" in status.message and "restart the node" in status.message
    # The node is still there, and runs on a device that works.
    assert graph.transition("configure") and graph.transition("activate")
    graph.wait_until(publisher.get_subscription_count, "the subscription")
    graph.see(publisher.publish, image_message(image), received)


def test_a_device_that_is_lost_while_it_decodes(graph, weights, image, image_message, monkeypatch):
    """The next image finds the loss, before the network is asked for anything."""
    node = graph.start(weights=weights, compressed=True)
    publisher = graph.client.create_publisher(CompressedImage, "/image_raw/compressed", 1)
    graph.wait_until(publisher.get_subscription_count, "the subscription")

    def fall(*_):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(images, "bgr_on_gpu", fall)
    segmenter = node._segmenter
    segmenter.runtime = replace(segmenter.runtime, device=torch.device("cuda:7"))
    publisher.publish(messages.jpeg_image(Header(), image, 90))
    graph.wait_until(lambda: graph.state() == "unconfigured", "the node to give up")
    assert "cuda:7 is lost" in node._problem


def test_a_lost_device_stays_lost(graph, weights, monkeypatch):
    """Until the process ends: neither loading nor cleaning up touches it again."""
    node = graph.start(weights=weights)
    lost = torch.device("cuda:7")
    node._segmenter.runtime = replace(node._segmenter.runtime, device=lost)
    node._on_device_lost(DeviceLostError("cuda:7 is lost: it fell out"))
    graph.wait_until(lambda: graph.state() == "unconfigured", "the node to give up")

    def fall(*_, **__):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", fall)
    monkeypatch.setattr(yolact_node, "choose_device", lambda name: lost)
    for _ in range(2):
        assert not graph.transition("configure") and graph.state() == "unconfigured"
        assert node._problem == "cuda:7 is lost; restart the node to use it again"
    monkeypatch.setattr(yolact_node, "choose_device", choose_device)
    for step in ("configure", "activate", "deactivate", "cleanup"):
        assert graph.transition(step), step
    # A device that is lost while a model is loaded on it.
    node._lost_devices.clear()
    node._kept_from_lost_devices.clear()

    def fall_out(*_, **__):
        raise DeviceLostError("cpu is lost: it fell out")

    monkeypatch.setattr(yolact_node.Segmenter, "warm_up", fall_out)
    assert not graph.transition("configure") and node._problem == "cpu is lost: it fell out"
    assert node._lost_devices == {torch.device("cpu")} and len(node._kept_from_lost_devices) == 1
    assert not graph.transition("configure") and "cpu is lost; restart" in node._problem


def test_a_device_lost_before_the_node_is_quite_active(
    graph, weights, image, image_message, monkeypatch
):
    node = graph.start(active=False, weights=weights, autostart=False)
    publisher = graph.client.create_publisher(Image, "/image_raw", 1)
    assert graph.transition("configure")
    node._segmenter.runtime = replace(node._segmenter.runtime, device=torch.device("cuda:7"))
    start_receiving = node._start_receiving

    def and_lose_the_device(parameters):
        topics = start_receiving(parameters)
        graph.wait_until(publisher.get_subscription_count, "the subscription")
        publisher.publish(image_message(image))
        graph.wait_until(lambda: node._device_lost, "the loss")
        return topics

    monkeypatch.setattr(node, "_start_receiving", and_lose_the_device)
    assert graph.transition("activate")
    assert "cuda:7 is lost" in node._problem

    def unconfigured():
        publisher.publish(image_message(image))
        return graph.state() == "unconfigured"

    graph.wait_until(unconfigured, "the node to give up")
