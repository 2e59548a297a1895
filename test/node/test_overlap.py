"""A frame is decoded and submitted while the one before is computed."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("yolact_ros.msg", reason="needs the messages of this package, built")

from yolact_ros.msg import InstanceArray

from yolact_ros.engine import SubmittedBatch


class Device:
    """Computes by itself what a segmenter is given, in a thread; a batch each time it is told."""

    def __init__(self, segmenter):
        self._at_once = segmenter.submit
        segmenter.submit = self._submit
        self._pool = ThreadPoolExecutor(1)
        self._turns = threading.Semaphore(0)
        self.batches = 0  # that it was given

    def _submit(self, images):
        future = self._pool.submit(self._compute, images)
        self.batches += 1
        return SubmittedBatch(future.done, future.result)

    def _compute(self, images):
        assert self._turns.acquire(timeout=60)
        return self._at_once(images).result()

    def compute(self, batches=1):
        self._turns.release(batches)


def stamps(messages):
    return [message.header.stamp.sec for message in messages]


@pytest.fixture
def show(graph, weights, image, image_message):
    """Shows image number i to a node that works; what it answers is in `show.received`."""
    node = graph.start(weights=weights, score_threshold=0.0, top_k=5)

    def show(i):
        """Returns when the node has the image."""
        before = graph.summary().received
        camera(image_message(show.images[i], stamp=i * 10**9))
        if show.received:
            graph.wait_until(lambda: graph.summary().received > before, "the image")

    camera = graph.camera()
    show.received = graph.collect(InstanceArray, "/yolact/instances", 100)
    show.images = [np.roll(image, 20 * i, axis=1) for i in range(5)]
    graph.see(lambda _: show(0), None, show.received)
    show(1)  # after it none of the first ones is on its way
    graph.wait_until(lambda: stamps(show.received)[-1] == 1, "all answers")
    del show.received[:-1]
    show.node = node
    return show


@pytest.fixture
def two_on_their_way(graph, show):
    """The device of a node that was given images 2 and 4, and has computed neither."""
    device = Device(show.node._segmenter)
    pipeline = show.node._inputs.pipeline
    decode, gate = pipeline._decode, threading.Event()

    def wait_and_decode(frame):
        assert gate.wait(60)
        return decode(frame)

    pipeline._decode = wait_and_decode
    show(2)
    graph.wait_until(lambda: not pipeline._worker._waiting, "the thread")
    show(3)
    show(4)
    gate.set()
    graph.wait_until(lambda: device.batches == 2, "two frames on the device")
    return device


def test_a_frame_that_nothing_waits_behind_is_awaited(graph, show):
    device = Device(show.node._segmenter)
    show(2)
    graph.wait_until(lambda: device.batches == 1, "a frame on the device")
    device.compute()
    graph.wait_until(lambda: stamps(show.received) == [1, 2], "its answer")


def test_two_frames_are_on_their_way_and_keep_their_order(graph, segmenter, show, two_on_their_way):
    assert stamps(show.received) == [1]
    two_on_their_way.compute(2)
    graph.wait_until(lambda: len(show.received) == 3, "two answers")
    assert stamps(show.received) == [1, 2, 4]
    for message in show.received:
        expected = segmenter(show.images[message.header.stamp.sec])
        scores = [found.score for found in message.instances]
        np.testing.assert_allclose(scores, expected.scores, atol=1e-6)
        assert [found.class_id for found in message.instances] == expected.class_ids.tolist()
    summary = graph.summary()
    assert summary.failed == 0 and summary.passed_over >= 1
    assert summary.latencies["network"].median > 0


def test_a_device_that_is_lost_with_two_frames(graph, show, two_on_their_way):
    # No machine of the tests has so many: PyTorch refuses it as it refuses one that fell out.
    segmenter = show.node._segmenter
    segmenter.runtime = replace(segmenter.runtime, device=torch.device("cuda:7"))
    two_on_their_way.compute(2)
    graph.wait_until(lambda: graph.state() == "unconfigured", "the node to give up")
    assert "cuda:7 is lost" in show.node._problem
    assert graph.summary().failed == 2
    assert graph.transition("configure")
