"""The node on a real graph: what it makes of images, and of parameters while it runs."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("yolact_ros.msg", reason="needs the messages of this package, built")

import cv2
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from yolact_ros.msg import InstanceArray

from yolact_ros import masks
from yolact_ros.detection import Instances
from yolact_ros.engine import draw_overlay
from yolact_ros.node import images, outputs
from yolact_ros.node.cameras import Camera
from yolact_ros.node.messages import instance_array
from yolact_ros.node.pipeline import RateLimit

SETTINGS = {"score_threshold": 0.0, "top_k": 5}


def check_instances(message, instances):
    """The message says what the segmenter found, mask by mask."""
    assert (message.height, message.width) == instances.image_size
    assert len(message.instances) == len(instances) > 0
    boxes = instances.integer_boxes().tolist()
    full = instances.masks.numpy()
    assert full.any()
    for i, found in enumerate(message.instances):
        x1, y1, x2, y2 = boxes[i]
        box = found.box
        assert (box.x_offset, box.y_offset) == (x1, y1)
        assert (box.width, box.height) == (max(x2 - x1, 0), max(y2 - y1, 0))
        assert found.class_id == instances.class_ids[i]
        assert found.class_name == instances.names[i]
        assert found.score == pytest.approx(float(instances.scores[i]), abs=1e-6)
        assert found.mask_score == pytest.approx(float(instances.mask_scores[i]), abs=1e-6)
        assert found.track_id == 0 and not found.position_valid
        pasted = masks.paste(found.mask, message.height, message.width)
        np.testing.assert_array_equal(pasted, full[i])


def test_instances_are_those_of_the_segmenter_in_every_encoding(
    graph, weights, segmenter, image, image_message
):
    graph.start(weights=weights, **SETTINGS)
    received = graph.collect(InstanceArray, "/yolact/instances")
    camera = graph.camera()
    expected = segmenter(image)
    for encoding in masks.ENCODINGS:
        assert graph.set(mask__encoding=encoding) == ""
        received.clear()
        stamp = 1_234_567_890_123_456_789
        message = graph.see(camera, image_message(image, stamp=stamp, frame="eye"), received, 2)
        assert message.header.frame_id == "eye"
        assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == stamp
        assert {found.mask.encoding for found in message.instances} == {encoding}
        check_instances(message, expected)


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", lambda bgr: bgr[..., ::-1]),
        ("bgra8", lambda bgr: np.dstack((bgr, bgr[..., 0]))),
        ("bayer_rggb8", lambda bgr: bgr[..., 1]),
        ("mono8", lambda bgr: bgr[..., 0]),
    ],
)
def test_other_encodings_padding_and_byte_order(
    graph, weights, segmenter, image, image_message, encoding, pixels
):
    graph.start(weights=weights, **SETTINGS)
    received = graph.collect(InstanceArray, "/yolact/instances")
    camera = graph.camera()
    message = image_message(pixels(image), encoding)
    check_instances(graph.see(camera, message, received), segmenter(images.bgr_of(message)))


def test_padded_rows_and_big_endian_values(graph, weights, segmenter, image, image_message):
    graph.start(weights=weights, **SETTINGS)
    received = graph.collect(InstanceArray, "/yolact/instances")
    camera = graph.camera()
    padded = np.pad(image, ((0, 0), (0, 3), (0, 0)))
    message = graph.see(camera, image_message(padded, width=image.shape[1]), received)
    check_instances(message, segmenter(image))
    grey = image[..., 1].astype(">u2") * 257
    received.clear()
    message = graph.see(camera, image_message(grey, "mono16", is_bigendian=1), received, 2)
    check_instances(message, segmenter(image[..., [1, 1, 1]].copy()))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_compressed_images(graph, weights, segmenter, image, suffix):
    graph.start(weights=weights, compressed=True, image_topic="/camera/image", **SETTINGS)
    received = graph.collect(InstanceArray, "/yolact/instances")
    camera = graph.camera("/camera/image/compressed", CompressedImage)
    data = cv2.imencode(suffix, image)[1]
    message = CompressedImage(format="bgr8; compressed bgr8", data=data.tobytes())
    message = graph.see(camera, message, received)
    check_instances(message, segmenter(cv2.imdecode(data, cv2.IMREAD_COLOR)))


def test_a_model_without_masks_gives_boxes(graph, boxes_only_weights, image, image_message):
    graph.start(weights=boxes_only_weights, **SETTINGS)
    received = graph.collect(InstanceArray, "/yolact/instances")
    labels = graph.collect(Image, "/yolact/labels")
    message = graph.see(graph.camera(), image_message(image), received)
    assert len(message.instances) == 5
    for found in message.instances:
        assert found.mask.encoding == "" and len(found.mask.data) == 0
        assert masks.decode(found.mask).size == 0
    graph.wait_until(lambda: labels, "a label image")
    assert not any(labels[0].data)


def test_the_compressed_overlay_is_beside_the_overlay(graph, weights):
    graph.start(weights=weights, remappings=["~/overlay:=/viz/overlay"])
    topics = {name for name, _ in graph.node.get_topic_names_and_types()}
    assert "/viz/overlay/compressed" in topics and "/yolact/overlay/compressed" not in topics


def test_overlays_and_labels_are_made_only_while_somebody_subscribes(
    graph, weights, segmenter, image, image_message, monkeypatch
):
    drawn = []

    def drawing(*arguments, **options):
        drawn.append(options)
        return draw_overlay(*arguments, **options)

    monkeypatch.setattr(outputs, "draw_overlay", drawing)
    graph.start(weights=weights, overlay__alpha=0.7, overlay__labels=False, **SETTINGS)
    received = graph.collect(InstanceArray, "/yolact/instances")
    camera = graph.camera()
    message = image_message(image, stamp=5, frame="eye")
    graph.see(camera, message, received, 3)
    assert drawn == []
    overlays = graph.collect(Image, "/yolact/overlay")
    overlay = graph.see(camera, message, overlays)
    assert drawn == [{"alpha": 0.7, "boxes": True, "labels": False}] * len(drawn) != []
    assert overlay.header == message.header and overlay.encoding == "bgr8"
    expected = segmenter(image)
    drawing = draw_overlay(image, expected, alpha=0.7, labels=False)
    np.testing.assert_array_equal(images.bgr_of(overlay), drawing)
    compressed = graph.collect(CompressedImage, "/yolact/overlay/compressed")
    result = graph.see(camera, message, compressed)
    assert result.header == message.header and result.format == "bgr8; jpeg compressed bgr8"
    difference = np.abs(images.bgr_of_compressed(result).astype(int) - drawing)
    assert difference.mean() < 10
    assert graph.set(overlay__boxes=False, overlay__jpeg_quality=1) == ""
    coarse = graph.see(camera, message, compressed, 2)
    assert len(coarse.data) < len(result.data) and not drawn[-1]["boxes"]
    assert graph.set(overlay__boxes=True) == ""
    labels = graph.collect(Image, "/yolact/labels")
    result = graph.see(camera, message, labels)
    assert result.header == message.header and result.encoding == "mono16"
    assert result.is_bigendian == 0 and result.step == 2 * result.width
    numbers = np.frombuffer(result.data, "<u2").reshape(result.height, result.width)
    np.testing.assert_array_equal(numbers, expected.label_image().numpy())
    assert graph.set(overlay__enabled=False) == ""
    graph.see(camera, message, labels, 2)
    drawn.clear()
    graph.see(camera, message, labels, 2)
    assert drawn == []


@pytest.mark.parametrize("node", ["auto", "best_effort", "reliable"])
@pytest.mark.parametrize("publisher", ["best_effort", "reliable"])
def test_quality_of_service(graph, weights, image, image_message, node, publisher):
    graph.start(weights=weights, qos__reliability=node, qos__depth=2, **SETTINGS)
    received = graph.collect(InstanceArray, "/yolact/instances")
    reliability = ReliabilityPolicy[publisher.upper()]
    qos = QoSProfile(depth=1, reliability=reliability)
    if (node, publisher) == ("reliable", "best_effort"):
        refused = []
        events = PublisherEventCallbacks(incompatible_qos=refused.append)
        publisher = graph.client.create_publisher(Image, "/image_raw", qos, event_callbacks=events)
        graph.wait_until(lambda: refused, "ROS to say that the two do not match")
        for _ in range(10):
            publisher.publish(image_message(image))
            time.sleep(0.05)
        assert received == []
    else:
        graph.see(graph.camera(qos=qos), image_message(image), received)


def test_the_subscription_is_as_reliable_as_all_publishers(graph, weights, image, image_message):
    """Whenever they come and go; depth follows its own."""
    depth = {"depth_topic": "/depth/image_raw"}
    graph.start(weights=weights, remappings=["image_raw:=/front/image_raw"], **depth, **SETTINGS)
    received = graph.collect(InstanceArray, "/yolact/instances")

    def becomes(wanted, topic="/front/image_raw"):
        def found():
            infos = graph.client.get_subscriptions_info_by_topic(topic)
            return [info.qos_profile.reliability.name for info in infos] == [wanted]

        graph.wait_until(found, f"a subscription that is {wanted}")

    def camera(name):
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy[name])
        return graph.client.create_publisher(Image, "/front/image_raw", qos)

    becomes("BEST_EFFORT")
    reliable = camera("RELIABLE")
    becomes("RELIABLE")
    graph.see(reliable.publish, image_message(image), received)
    becomes("BEST_EFFORT", "/depth/image_raw")
    other = camera("BEST_EFFORT")
    becomes("BEST_EFFORT")
    for each in (reliable, other):
        graph.see(each.publish, image_message(image), received)
    graph.client.destroy_publisher(other)
    becomes("RELIABLE")
    graph.client.destroy_publisher(reliable)
    again = camera("BEST_EFFORT")
    becomes("BEST_EFFORT")
    graph.see(again.publish, image_message(image), received)


def test_topics_that_are_swapped(graph, weights, image, image_message):
    """What one is remapped to is remapped itself; the other publisher does not matter."""
    remappings = ["left:=/right", "right:=/left"]
    graph.start(weights=weights, image_topic="left", remappings=remappings, **SETTINGS)
    received = graph.collect(InstanceArray, "/yolact/instances")
    graph.client.create_publisher(Image, "/left", QoSProfile(depth=1))
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = graph.client.create_publisher(Image, "/right", qos)
    (subscription,) = graph.node._inputs._images
    graph.see(publisher.publish, image_message(image), received)
    subscription.follow()
    graph.see(publisher.publish, image_message(image), received, 2)


@pytest.mark.parametrize("reliability", ["BEST_EFFORT", "RELIABLE"])
def test_every_subscriber_receives_instances(graph, weights, image, image_message, reliability):
    graph.start(weights=weights, **SETTINGS)
    qos = QoSProfile(depth=5, reliability=ReliabilityPolicy[reliability])
    received = graph.collect(InstanceArray, "/yolact/instances", qos)
    graph.see(graph.camera(), image_message(image), received)


def test_a_fast_camera_is_never_lagged_behind(graph, weights, image_message):
    graph.start(weights=weights, **SETTINGS)
    received = graph.collect(InstanceArray, "/yolact/instances", 100)
    camera = graph.camera()
    large = np.zeros((480, 640, 3), np.uint8)
    graph.see(camera, image_message(large, stamp=1), received)
    last = 1
    end = time.monotonic() + 3
    while time.monotonic() < end:
        last += 1
        camera(image_message(large, stamp=last))
        time.sleep(1 / 60)
        if last == 60:  # the node answers while it is busy
            assert graph.set(score_threshold=0.1) == ""
            assert graph.state() == "active"
    at_the_end = len(received)
    stamps = graph.wait_until(
        lambda: (s := [m.header.stamp.nanosec for m in received])[-1] == last and s,
        "the newest image",
    )
    # What came after the camera stopped: the image in work and the newest one, and what was
    # still on its way through the middleware, which is more where the machine is busy. A node
    # that lagged would have a hundred to answer.
    assert len(received) - at_the_end <= 10
    assert stamps == sorted(stamps) and len(set(stamps[1:])) == len(stamps[1:])
    summary = graph.settled_summary()  # an answer is counted after it was sent
    assert summary.received == summary.processed + summary.passed_over
    assert summary.rate_in >= summary.rate_out > 0


def test_frames_that_a_slow_network_cannot_take_are_counted(graph, weights, image_message):
    graph.start(weights=weights, **SETTINGS)
    received = graph.collect(InstanceArray, "/yolact/instances", 100)
    camera = graph.camera()
    small = image_message(np.zeros((48, 64, 3), np.uint8))
    graph.see(camera, small, received)
    graph.wait_until(
        lambda: camera(small) or graph.summary().passed_over, "an image to be passed over"
    )
    graph.settled_summary()


def test_the_rate_is_limited(graph, weights, image_message):
    graph.start(weights=weights, **SETTINGS)
    received = graph.collect(InstanceArray, "/yolact/instances", 100)
    camera = graph.camera()
    small = image_message(np.zeros((48, 64, 3), np.uint8))
    graph.see(camera, small, received)
    assert "max_rate out of range" in graph.set(max_rate=-1.0)
    assert graph.set(max_rate=10.0) == ""
    before, start = graph.summary(), time.monotonic()
    for _ in range(50):
        camera(small)
        time.sleep(0.02)
    after, elapsed = graph.settled_summary(), time.monotonic() - start
    assert after.passed_over > before.passed_over
    assert 2 <= after.processed - before.processed <= 10 * elapsed + 1
    # After a gap, too, one image is taken and the next one after an interval.
    assert graph.set(max_rate=1.0) == ""
    time.sleep(2.1)
    before, start = graph.settled_summary(), time.monotonic()
    graph.see(camera, small, received)
    camera(small)
    graph.wait_until(lambda: graph.summary().received >= before.received + 2, "both images")
    after, elapsed = graph.settled_summary(), time.monotonic() - start
    assert after.processed - before.processed <= 1 + elapsed
    # An image that is taken at 0.01 Hz does not delay those of a higher rate by 100 s.
    for rate in (20.0, 0.0):
        for each, count in ((0.0, 1), (0.01, 1), (rate, 3)):
            assert graph.set(max_rate=each) == ""
            graph.see(camera, small, received, count)


def test_an_image_that_fails_does_not_end_the_node(graph, weights, image, image_message):
    node = graph.start(weights=weights, **SETTINGS)
    received = graph.collect(InstanceArray, "/yolact/instances")
    camera = graph.camera()
    runtime = node._segmenter.runtime
    node._segmenter.runtime = None
    graph.wait_until(
        lambda: camera(image_message(image)) or graph.summary().failed,
        "an image to fail",
    )
    node._segmenter.runtime = runtime
    graph.see(camera, image_message(image), received)


def test_run_time_parameters_take_effect_at_once(graph, weights, image, image_message):
    graph.start(weights=weights, **SETTINGS)
    received = graph.collect(InstanceArray, "/yolact/instances")
    camera = graph.camera()

    def see():
        return graph.see(camera, image_message(image), received, 2).instances

    everything = see()
    assert len(everything) == 5
    middle = sorted(found.mask_score for found in everything)[2]
    assert graph.set(mask_score_threshold=middle) == ""
    better = [found for found in everything if found.mask_score >= middle]
    assert [f.mask_score for f in see()] == [f.mask_score for f in better]
    assert graph.set(mask_score_threshold=0.0) == ""
    assert graph.set(top_k=2) == ""
    assert len(see()) == 2
    assert graph.set(top_k=1000, score_threshold=1.0) == ""
    assert len(see()) == 0
    best = everything[0].class_name
    others = {"cat", "dog", "person"} - {best}
    assert graph.set(score_threshold=0.0, classes=", ".join(others)) == ""
    assert {found.class_name for found in see()} == others
    assert graph.set(classes="") == ""
    assert best in {found.class_name for found in see()}
    for method in ("standard", "cross_class", "fast"):
        assert graph.set(nms__method=method, nms__iou_threshold=0.0) == ""
        strict = len(see())
        assert graph.set(nms__iou_threshold=0.9) == ""
        assert len(see()) > strict
    assert graph.set(nms__top_k=1) == ""
    names = [found.class_name for found in see()]
    assert len(names) == len(set(names)) > 0


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("score_threshold", 1.5, "out of range"),
        ("score_threshold", "high", "expecting type|Wrong parameter type"),
        ("top_k", 0, "out of range"),
        ("nms__method", "soft", "nms.method='soft' .* one of fast, cross_class, standard"),
        ("mask__encoding", "png", "mask.encoding='png' .* one of mono8, bits, rle"),
        ("classes", "cat, whale", "no class 'whale'; it has cat, dog, person"),
        ("model", "yolact_huge", "model='yolact_huge' .* yolact_base"),
        ("weights", "/no/such/file.pth", "neither a file nor a model"),
        (
            "weights",
            "such/file.pth",
            f"there is no {re.escape(str(Path.cwd()))}/such/file.pth; the models",
        ),
        ("backbone", "vgg", "backbone='vgg' .* resnet50"),
        ("device", "cuda:77", "device='cuda:77' .* this machine has auto, cpu"),
        ("precision", "int8", "precision='int8' .* float16"),
        ("image_topic", "no topic!", "is no topic name"),
        ("image_topic", "", "is no topic name"),
        ("image_topic", "{camera}/image", "no topic name: {camera} stands for nothing"),
        ("depth_topic", "{node}/{eye}", "no topic name: {eye} stands for nothing"),
        ("qos__reliability", "sometimes", "one of auto, best_effort, reliable"),
        ("overlay__alpha", -0.1, "out of range"),
        ("autostart", False, "read-only"),
    ],
)
def test_bad_values_are_refused_and_the_old_ones_stay(bad_values_graph, name, value, reason):
    graph = bad_values_graph
    old = graph.get(name.replace("__", "."))
    assert re.search(reason, graph.set(**{name: value}))
    assert graph.get(name.replace("__", ".")) == old


@pytest.fixture(scope="module")
def bad_values_graph(lasting_graph, weights):
    lasting_graph.start(weights=weights)
    return lasting_graph


def test_changes_that_do_not_fit_each_other_are_refused_together(graph, weights):
    graph.start(weights=weights)
    reason = graph.set(model="yolact_plus_resnet50", backbone="darknet53", score_threshold=0.7)
    assert "deformable" in reason
    assert graph.get("score_threshold") == 0.3 and graph.get("model") == ""


def test_the_whole_rate_is_used():
    """Of a camera whose rate is no multiple of it."""
    limit, camera = RateLimit(), Camera("/camera", "")
    taken = [not limit.passes_over(camera, 100 + i / 30, 20.0) for i in range(300)]
    assert sum(taken) == pytest.approx(200, abs=1)


def test_boxes_of_messages_lie_in_the_image():
    boxes = [[220, 10, 200, 20], [1e12, 0, 200, 50], [0, 0, -30, 50], [3.7, 4.2, 9.9, 8]]
    instances = Instances(
        boxes=torch.tensor(boxes),
        scores=torch.ones(4),
        mask_scores=torch.ones(4),
        class_ids=torch.zeros(4, dtype=torch.int64),
        image_size=(100, 200),
        class_names=("person",),
        stored_masks=None,
    )
    found = [each.box for each in instance_array(Header(), instances, "rle").instances]
    assert [(box.x_offset, box.y_offset, box.width, box.height) for box in found] == [
        (200, 10, 0, 10),
        (200, 0, 0, 50),
        (0, 0, 0, 50),
        (3, 4, 6, 4),
    ]
