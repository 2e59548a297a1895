"""A real ROS 2 graph for each test: the node, and a client node that plays camera and user."""

from __future__ import annotations

import array
import gc
import os
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ros_domain import free_domain

# Other graphs on this machine and on the network are neither seen nor disturbed.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
if os.environ.get("ROS_DISTRO") == "humble":
    os.environ["ROS_LOCALHOST_ONLY"] = "1"  # the same there; later distributions warn about it
os.environ["ROS_DOMAIN_ID"] = str(free_domain())

from yolact_ros.engine import Segmenter
from yolact_ros.export import export
from yolact_ros.network import NetworkConfig, build, save_weights

PATIENCE = 60.0
"""Seconds that a condition is waited for; machines that run tests may be busy."""

SMALL = NetworkConfig(
    name="small",
    class_names=("cat", "dog", "person"),
    backbone="efficientnet_lite0",
    image_size=96,
    fpn_channels=32,
    num_prototypes=8,
)


def _save(folder, config):
    """A file with an untrained network whose output layers are scaled to speak up."""
    torch.manual_seed(0)
    net = build(config)
    image = torch.from_numpy(_image()).permute(2, 0, 1)[None] / 64.0 - 2
    image = torch.nn.functional.interpolate(image, (config.image_size, config.image_size))
    with torch.no_grad():
        raw = net(image)
        net.head.classes.weight *= 2 / raw.class_logits.std()
        net.head.boxes.weight *= 4 / raw.box_offsets.std()
        net.head.boxes.bias.view(-1, 4)[:, 2:] += 6  # e^(0.2 * 6) times the anchor's sides
        if raw.prototypes is not None:
            net.head.coefficients.bias += 0.2
            net.head.coefficients.weight *= 1 / raw.coefficients.std()
            net.protonet.prototypes.weight *= 1 / raw.prototypes.std()
    path = folder / f"{config.name}.safetensors"
    save_weights(net, path)
    return str(path)


def _image():
    coarse = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    return coarse.repeat(20, axis=0).repeat(20, axis=1)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file with a small network of three classes, not trained: it sees things everywhere."""
    return _save(tmp_path_factory.mktemp("weights"), SMALL)


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory):
    """A file with a small network of other classes."""
    config = SMALL.replace(name="other", class_names=("car", "bus"))
    return _save(tmp_path_factory.mktemp("weights"), config)


@pytest.fixture(scope="session")
def boxes_only_weights(tmp_path_factory):
    """A file with a small network without masks."""
    config = SMALL.replace(name="boxes", mask_branch="none")
    return _save(tmp_path_factory.mktemp("weights"), config)


@pytest.fixture(scope="session")
def exported(weights, image, tmp_path_factory, leave_repetitions_out):
    """A file with a detection stage that suppresses across classes, and where 0.6 overlaps."""
    pytest.importorskip("openvino", reason="needs the extra openvino")
    path = tmp_path_factory.mktemp("exported") / "small.xml"
    settings = {"nms_method": "cross_class", "nms_iou_threshold": 0.6, "top_k": 5}
    segmenter = Segmenter(weights=weights, backend="torch", **settings)
    leave_repetitions_out(segmenter.runtime.run.backbone.blocks)
    export(segmenter, path, {"image": image}, detection=True)
    return str(path)


@pytest.fixture(scope="session")
def segmenter(weights):
    """What the node should compute with `weights` and no score threshold."""
    return Segmenter(weights=weights, backend="torch", score_threshold=0.0, top_k=5)


@pytest.fixture(scope="session")
def image():
    """A BGR image of 120 x 160 pixels with something in it."""
    return _image()


def wait_until(condition: Callable[[], object], what: str) -> object:
    """The first true value of the condition."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {PATIENCE} s for {what}")


class Graph:
    """The node `/yolact` in one executor and a client in another, in a ROS context of their own."""

    wait_until = staticmethod(wait_until)

    def __init__(self):
        import rclpy
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.task import Future

        self.context = Context()
        rclpy.init(context=self.context)
        self._executors = []
        self._closed = Future()
        self.client = rclpy.create_node("client", context=self.context)
        self._spin(SingleThreadedExecutor(context=self.context), self.client)
        self.node = None
        gc.freeze()  # what was here before need not be looked through when this is forgotten

    def _spin(self, executor, node):
        from yolact_ros.node.executor import spin

        executor.add_node(node)
        thread = threading.Thread(target=spin, args=(executor, node, self._closed))
        thread.start()
        self._executors.append((executor, thread))

    def start(self, *, active=True, spin_after=0.0, remappings=(), **parameters):
        """Start the node with parameters, dots written as two underscores, and wait for images.

        `spin_after` is how many seconds the node is there before its timers and services run,
        `remappings` are as on the command line.
        """
        from rclpy.parameter import Parameter

        from yolact_ros.node.executor import NodeExecutor
        from yolact_ros.node.yolact_node import YolactNode

        named = {"backend": "torch"}  # the others convert the network for seconds
        named |= {name.replace("__", "."): value for name, value in parameters.items()}
        overrides = [Parameter(name, value=value) for name, value in named.items()]
        words = ["--ros-args", *(word for each in remappings for word in ("-r", each))]
        self.node = YolactNode(context=self.context, parameter_overrides=overrides, cli_args=words)
        time.sleep(spin_after)
        self._spin(NodeExecutor(context=self.context), self.node)
        if active:
            wait_until(lambda: self.state() == "active", "the node to become active")
        return self.node

    def summary(self):
        """What the node counted for its first camera."""
        return next(iter(self.node._statistics.values())).summary()

    def settled_summary(self):
        """The same, when every image that came has been processed or passed over."""

        def settled():
            found = self.summary()
            return found.received == found.processed + found.passed_over and found

        return wait_until(settled, "all images to be accounted for")

    def close(self):
        import rclpy

        self._closed.set_result(None)
        for executor, thread in self._executors:
            thread.join()
            executor.shutdown()
        if self.node is not None:
            self.node.destroy_node()
        self.client.destroy_node()
        rclpy.shutdown(context=self.context)
        # rclpy keeps a lifecycle node on the graph until Python forgets its state machine.
        self.node = self.client = self._executors = None
        gc.collect()
        gc.unfreeze()

    # Topics

    def collect(self, kind, topic, qos=10):
        """A list that fills with the messages of a topic, from now on."""
        received = []
        self.client.create_subscription(kind, topic, received.append, qos)
        return received

    def camera(self, topic="/image_raw", kind=None, qos=10):
        """A function that publishes an image on a topic that the node already subscribes to."""
        from sensor_msgs.msg import Image

        publisher = self.client.create_publisher(kind or Image, topic, qos)
        wait_until(publisher.get_subscription_count, f"a subscription to {topic}")
        return publisher.publish

    def see(self, publish, message, received, count=1):
        """Publish until `count` more messages have come in; discovery may lose the first ones."""
        target = len(received) + count

        def enough():
            publish(message)
            end = time.monotonic() + 0.3
            while time.monotonic() < end and len(received) < target:
                time.sleep(0.005)
            return len(received) >= target

        wait_until(enough, "an answer to an image")
        return received[-1]

    # Services

    def call(self, kind, name, request):
        """The response of a service."""
        client = self.client.create_client(kind, name)
        try:
            assert client.wait_for_service(PATIENCE), f"no service {name}"
            future = client.call_async(request)
            wait_until(future.done, f"an answer of {name}")
            return future.result()
        finally:
            self.client.destroy_client(client)

    def set(self, **parameters):
        """Set parameters in one go. Returns the reason for which they were refused, or ''."""
        from rcl_interfaces.srv import SetParametersAtomically
        from rclpy.parameter import Parameter

        named = {name.replace("__", "."): value for name, value in parameters.items()}
        messages = [Parameter(n, value=value).to_parameter_msg() for n, value in named.items()]
        request = SetParametersAtomically.Request(parameters=messages)
        service = "/yolact/set_parameters_atomically"
        result = self.call(SetParametersAtomically, service, request).result
        assert result.successful == (not result.reason)
        return result.reason

    def get(self, name):
        """The value of a parameter, as other nodes see it."""
        from rcl_interfaces.srv import GetParameters
        from rclpy.parameter import parameter_value_to_python

        request = GetParameters.Request(names=[name])
        response = self.call(GetParameters, "/yolact/get_parameters", request)
        return parameter_value_to_python(response.values[0])

    def transition(self, label):
        """Whether a lifecycle transition succeeded."""
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request(transition=Transition(label=label))
        return self.call(ChangeState, "/yolact/change_state", request).success

    def state(self):
        """The lifecycle state of the node."""
        from lifecycle_msgs.srv import GetState

        return self.call(GetState, "/yolact/get_state", GetState.Request()).current_state.label


@pytest.fixture
def graph(monkeypatch):
    """A graph with a client; `graph.start(...)` adds the node, whose diagnostics come often."""
    pytest.importorskip("rclpy", reason="needs ROS 2")
    monkeypatch.setattr("yolact_ros.node.yolact_node.DIAGNOSTICS_PERIOD", 0.2)
    made = _graph()
    yield made
    made.close()


@pytest.fixture(scope="module")
def lasting_graph():
    """A graph for all tests of a module."""
    made = _graph()
    yield made
    gc.unfreeze()  # other graphs have frozen this one's cycles
    made.close()


def _graph():
    pytest.importorskip("rclpy", reason="needs ROS 2")
    pytest.importorskip("yolact_ros.msg", reason="needs the messages of this package, built")
    return Graph()


@pytest.fixture
def image_message():
    """A function that makes a sensor_msgs/Image of rows [rows, ...] in an encoding."""

    def make(rows, encoding="bgr8", height=None, stamp=0, frame="camera", **fields):
        from sensor_msgs.msg import Image

        rows = np.ascontiguousarray(rows)
        image = Image(height=height or len(rows), width=rows.shape[1], encoding=encoding)
        image.header.frame_id = frame
        image.header.stamp.sec, image.header.stamp.nanosec = divmod(stamp, 10**9)
        image.step = rows.nbytes // len(rows)
        image.data = array.array("B", rows.tobytes())
        for name, value in fields.items():
            setattr(image, name, value)
        return image

    return make
