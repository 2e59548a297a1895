"""Positions of instances from depth images, alone and on a real graph."""

import itertools
import math
import threading
import time
import weakref

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("yolact_ros.msg", reason="needs the messages of this package, built")

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import Log
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray
from yolact_ros.msg import InstanceArray

from yolact_ros.detection import Instances
from yolact_ros.detection.regions import SmallMasks
from yolact_ros.node.depth import STALLED, DepthImages, NearestDepth, NoDepthError
from yolact_ros.node.images import ImageError
from yolact_ros.node.positions import locate, metres_of

FX, FY, CX, CY = 100.0, 110.0, 79.5, 59.5
RECTIFIED = [FX, 0.0, CX, 0.0, 0.0, FY, CY, 0.0, 0.0, 0.0, 1.0, 0.0]


def calibration():
    return CameraInfo(k=[FX, 0.0, CX, 0.0, FY, CY, 0.0, 0.0, 1.0])


def one_instance(masks, box):
    """An instance in an image of 160 x 120, from the network's mask [1, 30, 40] of all of it."""
    return Instances(
        boxes=torch.tensor([box], dtype=torch.float32),
        scores=torch.ones(1),
        mask_scores=torch.ones(1),
        class_ids=torch.zeros(1, dtype=torch.int64),
        image_size=(120, 160),
        class_names=("thing",),
        stored_masks=SmallMasks(
            masks, torch.tensor([[0.0, 0, 160, 120]]), torch.tensor([[0, 0, 40, 30]])
        ),
    )


def test_rectified_images_have_a_calibration_of_their_own(segmenter, image):
    """The raw image's is for other pixels than those of the rectified one."""
    instances, depth = segmenter(image), np.full((120, 160), 2, np.float32)
    info = calibration()
    expected = locate(instances, depth, info)
    info.k = [2 * value for value in info.k]
    info.p = RECTIFIED
    np.testing.assert_array_equal(locate(instances, depth, info).points, expected.points)


def test_depth_in_millimetres_and_metres(image_message):
    metres = np.array([[0.5, 1.25], [0.0, 3.0]])
    expected = np.where(metres > 0, metres, np.nan).astype(np.float32)
    millimetres = (metres * 1000).astype(np.uint16)
    for message in (
        image_message(millimetres, "16UC1"),
        image_message(millimetres, "mono16"),
        image_message(millimetres.byteswap(), "16UC1", is_bigendian=1),
        image_message(metres.astype(np.float32), "32FC1"),
        image_message(metres.astype(">f4"), "32FC1", is_bigendian=1),
        image_message(np.pad(millimetres, ((0, 0), (0, 3))), "16UC1", width=2),
        image_message(np.where(metres > 0, metres, np.inf).astype(np.float32), "32FC1"),
    ):
        np.testing.assert_allclose(metres_of(message), expected, rtol=1e-6)


def test_calibrations_of_binned_images_and_of_parts(segmenter, image):
    """Of a camera with twice the pixels, from which a part is taken and binned."""
    instances = segmenter(image)
    depth = np.full((120, 160), 2, np.float32)
    expected = locate(instances, depth, calibration())
    whole = CameraInfo(
        k=[2 * FX, 0.0, 2 * CX + 10, 0.0, 2 * FY, 2 * CY + 30, 0.0, 0.0, 1.0],
        width=700,
        height=600,
        binning_x=2,
        binning_y=2,
        roi=RegionOfInterest(x_offset=10, y_offset=30, width=320, height=240),
    )
    found = locate(instances, depth, whole)
    np.testing.assert_allclose(found.points, expected.points, rtol=1e-5)
    np.testing.assert_allclose(found.sizes, expected.sizes, rtol=1e-5)
    whole.binning_x = whole.binning_y = 1
    with pytest.raises(ImageError, match=r"camera_info is for 320 x 240 .* depth has 160 x 120"):
        locate(instances, depth, whole)


def test_the_position_of_a_ring_is_on_the_ring():
    """Not in its middle, through which a wall is seen."""
    y, x = torch.meshgrid(torch.arange(30.0) - 14.5, torch.arange(40.0) - 19.5, indexing="ij")
    radius = torch.hypot(x, y)
    ring = ((radius > 7) & (radius < 11)).float()[None]
    instances = one_instance(ring, box=(34, 14, 126, 106))
    mask = instances.masks[0].numpy()
    assert mask.any() and not mask[60, 80]
    depth = np.where(mask, 1.0, 3.0).astype(np.float32)
    x, y, z = locate(instances, depth, calibration()).points[0].tolist()
    column, row = round(x / z * FX + CX), round(y / z * FY + CY)
    assert mask[row, column] and z == pytest.approx(1)


def test_malformed_depth_is_refused(image_message):
    depth = np.ones((4, 5), np.uint16)
    for fields, reason in (
        ({"encoding": "bgr8"}, "encoding"),
        ({"step": 9}, "step"),
        ({"step": 11}, "step"),
        ({"height": 5}, "data"),
        ({"height": 0, "data": b""}, "data"),
    ):
        with pytest.raises(ImageError) as caught:
            metres_of(image_message(depth, **{"encoding": "16UC1", **fields}))
        assert caught.value.reason == reason


def test_positions_of_a_slanted_surface_before_a_wall(segmenter, image):
    instances = segmenter(image)
    y, x = np.mgrid[0:120, 0:160]
    rng = np.random.default_rng(1)
    depth = (1.5 + 0.001 * x).astype(np.float32)
    # A wall shines through at one pixel in ten, and one in ten is unknown.
    kind = rng.random(depth.shape)
    depth[kind < 0.1], depth[kind > 0.9] = 6.0, np.nan
    positions = locate(instances, depth, calibration())
    assert len(instances) == 5 and positions.valid.any()
    for i, mask in enumerate(instances.masks.numpy()):
        surface = mask & (depth < 6)
        assert positions.valid[i] == bool(surface.sum())
        if not positions.valid[i]:
            continue
        z = depth[surface]
        points = np.stack(((x[surface] - CX) * z / FX, (y[surface] - CY) * z / FY, z), axis=1)
        away = np.linalg.norm(points - np.median(points, axis=0), axis=1)
        np.testing.assert_allclose(positions.points[i], points[away.argmin()], rtol=1e-5)
        np.testing.assert_allclose(positions.sizes[i], np.ptp(points, axis=0), rtol=1e-5)
        middle = (points.max(axis=0) + points.min(axis=0)) / 2
        np.testing.assert_allclose(positions.middles[i], middle, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_located_is_refused(segmenter, image):
    instances = segmenter(image)
    with pytest.raises(ImageError, match="must be registered"):
        locate(instances, np.ones((60, 80), np.float32), calibration())
    with pytest.raises(ImageError, match="uncalibrated"):
        locate(instances, np.ones((120, 160), np.float32), CameraInfo())
    for matrix, number in itertools.product("kp", (0, 2)):
        info = calibration()
        if matrix == "p":
            info.p = RECTIFIED
        getattr(info, matrix)[number] = math.nan
        with pytest.raises(ImageError, match=r"=nan, .*uncalibrated"):
            locate(instances, np.ones((120, 160), np.float32), info)
    nothing = locate(instances, np.full((120, 160), np.nan, np.float32), calibration())
    assert not nothing.valid.any()


def stamped(milliseconds):
    seconds, rest = divmod(milliseconds, 1000)
    return Image(header=Header(stamp=Time(sec=seconds, nanosec=rest * 10**6)))


def match(images, milliseconds, max_wait=0):
    return images.match(images.nearest(stamped(milliseconds).header.stamp), 0.02, max_wait)


def test_the_nearest_stamp_is_matched():
    images = DepthImages()
    kept = {at: stamped(at) for at in (100, 133, 166, 200)}
    for message in kept.values():
        images.put(message)
    for at, nearest in ((100, 100), (120, 133), (150, 166), (199, 200), (205, 200)):
        found = match(images, at)
        assert found is kept[nearest]
    with pytest.raises(NoDepthError, match=r"within 0.02 s .* the nearest is 0.030 s earlier"):
        match(images, 230)
    with pytest.raises(NoDepthError, match=r"nearest is 0.050 s later"):
        match(images, 50)
    with pytest.raises(NoDepthError, match="no depth image has come"):
        DepthImages().match(NearestDepth(0), max_offset=1, max_wait=0)
    images.put(again := stamped(200))
    assert match(images, 200) is again


def test_an_image_finds_its_depth_however_long_it_takes():
    """The network may take seconds, in which a camera sends more depth than is kept."""
    images = DepthImages()
    images.put(stamped(1000))
    nearest, late = (images.nearest(stamped(at).header.stamp) for at in (1000, 1090))
    for at in range(1033, 9000, 33):
        images.put(stamped(at))
    assert images.match(nearest, 0.02, 0).header.stamp == stamped(1000).header.stamp
    assert images.match(late, 0.02, 0).header.stamp == stamped(1099).header.stamp
    with pytest.raises(NoDepthError, match=r"nearest is 7\.\d+ s later"):
        match(images, 1000)
    held = weakref.ref(nearest)
    del nearest
    assert held() is None


def test_depth_that_comes_later_is_waited_for():
    images, late = DepthImages(), stamped(100)
    images.put(stamped(90))
    timer = threading.Timer(0.05, images.put, (late,))
    timer.start()
    assert match(images, 100, max_wait=60) is late
    timer.join()


def test_a_slow_depth_camera_is_waited_for():
    images, late = DepthImages(), stamped(6000)
    for at in (0, 2000, 4000):
        images.put(stamped(at))
    images._last_arrival -= 2.0
    timer = threading.Timer(0.05, images.put, (late,))
    timer.start()
    assert match(images, 5990, max_wait=60) is late
    timer.join()


def test_depth_that_will_be_too_late_is_not_waited_for():
    images, started = DepthImages(), time.monotonic()
    for at in (0, 200):
        images.put(stamped(at))
    with pytest.raises(NoDepthError, match=r"nearest is 0\.080 s earlier"):
        match(images, 280, max_wait=60)
    assert time.monotonic() < started + 30


def test_nothing_is_waited_for_in_vain():
    """Neither without depth, nor where the next image will be farther away than the last."""
    images = DepthImages()
    at = images.nearest(stamped(100).header.stamp)
    started = time.monotonic()
    with pytest.raises(NoDepthError, match="no calibration has come on camera_info"):
        images.locate(at, None, 0.02, 60)
    images.put_info(calibration())
    with pytest.raises(NoDepthError, match=r"no depth image has come on depth$"):
        images.locate(at, None, 0.02, 60)
    before = stamped(95)
    images.put(stamped(62))
    images.put(before)
    assert match(images, 100, max_wait=60) is before
    images.put(stamped(200))  # some between were lost
    timer = threading.Timer(0.05, images.put, (stamped(230),))
    timer.start()
    late = match(images, 230, max_wait=60)
    assert late is not None and late.header.stamp.nanosec == 230 * 10**6
    timer.join()
    with pytest.raises(NoDepthError, match=r"nearest is 8\.\d+ s earlier"):  # another clock
        match(images, 9000, max_wait=60)
    timer = threading.Timer(0.05, images.close)
    timer.start()
    with pytest.raises(NoDepthError):
        match(images, 300, max_wait=60)
    timer.join()
    images = DepthImages()
    images.put(before)
    images._last_arrival -= STALLED
    with pytest.raises(NoDepthError):
        match(images, 300, max_wait=60)
    assert time.monotonic() < started + 30


def test_missing_depth_is_told(graph, weights, image, image_message):
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    graph.start(weights=weights, depth_topic="/depth/image")
    received = graph.collect(InstanceArray, "/yolact/instances")
    camera = graph.camera()
    assert graph.set(score_threshold=1.0) == ""
    graph.see(camera, image_message(image), received)
    assert graph.settled_summary().without_depth == 0  # of nothing
    assert graph.set(score_threshold=0.0) == ""
    graph.see(camera, image_message(image), received, 2)
    assert graph.summary().without_depth > 0

    def told():
        return [s for m in diagnostics for s in m.status if "without depth" in s.message]

    status = graph.wait_until(told, "a warning")[-1]
    assert status.level == DiagnosticStatus.WARN
    assert {pair.key: pair.value for pair in status.values}["without depth"] != "0"


def test_positions_need_masks(graph, boxes_only_weights):
    lines = graph.collect(Log, "/rosout")
    graph.start(weights=boxes_only_weights, depth_topic="/depth/image")
    told = "No positions: they need masks, which this model lacks"
    graph.wait_until(lambda: [line for line in lines if line.msg == told], "a warning")
    assert not graph.client.get_subscriptions_info_by_topic("/depth/image")


def test_stamps_that_go_back_begin_anew():
    images = DepthImages()
    for seconds in range(98, 101):
        images.put(Image(header=Header(stamp=Time(sec=seconds))))
    again = stamped(50)  # the bag starts again
    timer = threading.Timer(0.05, images.put, (again,))
    images.put(stamped(0))
    timer.start()
    assert match(images, 50, max_wait=60) is again
    timer.join()
    with pytest.raises(NoDepthError, match=r"nearest is 0\.250 s later"):
        images.put(stamped(1300))
        images.put(stamped(1000))  # the clock was set back
        match(images, 750)
    images.put(again)
    late = stamped(40)  # a little disorder is none
    images.put(late)
    assert match(images, 50) is again


def test_depth_of_no_use_is_counted_apart(graph, weights, image, image_message):
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    graph.start(weights=weights, depth_topic="/depth/image")
    received = graph.collect(InstanceArray, "/yolact/instances")
    publish_depth = graph.camera("/depth/image")
    publish_info = graph.camera("/depth/camera_info", CameraInfo)
    publish = graph.camera()
    small = image_message(np.ones((60, 80), np.uint16), "16UC1", stamp=7)

    def refused():
        publish_info(calibration())
        publish_depth(small)
        graph.see(publish, image_message(image, stamp=7), received)
        return graph.summary().depth_refused

    graph.wait_until(refused, "depth of another size to be refused")

    def told():
        found = [s for m in diagnostics for s in m.status if "unusable" in s.message]
        return found[-1] if found else None

    status = graph.wait_until(told, "a warning")
    values = {pair.key: pair.value for pair in status.values}
    assert status.level == DiagnosticStatus.WARN and int(values["depth refused"]) > 0
    assert values["refused"] == values["failed"] == "0" and int(values["processed"]) > 0


def depth_camera(graph, folder, depth, publish, message):
    """What publishes an image with its depth and calibration, on topics in `folder`."""
    publish_depth = graph.camera(f"{folder}/image")
    publish_info = graph.camera(f"{folder}/camera_info", CameraInfo)
    info = calibration()
    info.header.frame_id = depth.header.frame_id

    def camera(_):
        publish_info(info)
        publish_depth(depth)
        publish(message)

    return camera


def see_positions(graph, camera, received):
    graph.wait_until(
        lambda: any(i.position_valid for i in graph.see(camera, None, received).instances),
        "a position",
    )


def test_depth_of_another_frame_and_remapped_topics(graph, weights, image, image_message):
    """What lies beside a topic follows where it was remapped to."""
    graph.start(
        weights=weights,
        score_threshold=0.0,
        top_k=5,
        compressed=True,
        depth_topic="depth/image",
        remappings=("image_raw:=/front/image", "depth/image:=/eye/image"),
    )
    received = graph.collect(InstanceArray, "/yolact/instances")
    log = graph.collect(Log, "/rosout")
    publish = graph.camera("/front/image/compressed", CompressedImage)
    depth = image_message(np.full((120, 160), 2000, np.uint16), "16UC1", stamp=7, frame="infrared")
    message = CompressedImage(format="png", data=cv2.imencode(".png", image)[1].tobytes())
    message.header.stamp, message.header.frame_id = depth.header.stamp, "colour"

    see_positions(graph, depth_camera(graph, "/eye", depth, publish, message), received)
    warning = "Images are in the frame 'colour', depth in 'infrared', calibration in 'infrared': "
    graph.wait_until(lambda: any(each.msg.startswith(warning) for each in log), "a warning")


def test_positions_and_markers_on_a_graph(graph, weights, image, image_message):
    graph.start(weights=weights, score_threshold=0.0, top_k=5, depth_topic="/depth/image")
    received = graph.collect(InstanceArray, "/yolact/instances")
    shown = graph.collect(MarkerArray, "/yolact/markers")
    publish = graph.camera()
    depth = image_message(np.full((120, 160), 2000, np.uint16), "16UC1", stamp=7)
    message = image_message(image, stamp=7, frame="camera_optical")

    camera = depth_camera(graph, "/depth", depth, publish, message)
    see_positions(graph, camera, received)
    graph.see(camera, None, shown, 2)
    found = received[-1].instances
    located = [i for i, instance in enumerate(found) if instance.position_valid]
    for i in located:
        instance = found[i]
        assert instance.position.z == pytest.approx(2) and instance.size.z == pytest.approx(0)
        mask = instance.mask
        x1 = (mask.x_offset - CX) * 2 / FX
        x2 = (mask.x_offset + mask.width - 1 - CX) * 2 / FX
        assert x1 - 1e-4 <= instance.position.x <= x2 + 1e-4
        assert 0 < instance.size.x <= x2 - x1 + 1e-4
    markers = shown[-1].markers
    assert markers[0].action == Marker.DELETEALL
    assert [m.id for m in markers[1:]] == [i for i in located for _ in range(2)]
    for box, text in zip(markers[1::2], markers[2::2], strict=True):
        instance = found[box.id]
        assert (box.type, text.type) == (Marker.CUBE, Marker.TEXT_VIEW_FACING)
        assert box.header == text.header == received[-1].header
        assert box.pose.position.z == pytest.approx(2) and box.color.a > 0
        lowest = (instance.mask.x_offset - CX) * 2 / FX
        assert lowest - 1e-4 <= box.pose.position.x - box.scale.x / 2
        assert min(box.scale.x, box.scale.y, box.scale.z) > 0
        assert text.text == f"{instance.class_name} {instance.score:.2f}"
    message.header.stamp.nanosec = 300_000_000
    for most, is_near in ((0.05, False), (0.5, True)):
        assert graph.set(depth__max_offset=most) == ""
        result = graph.see(publish, message, received, 2)
        assert any(found.position_valid for found in result.instances) == is_near
    # Without depth of the same time there are instances still, and no old markers.
    message.header.stamp.sec = 100
    result = graph.see(publish, message, received, 2)
    assert result.instances and not any(found.position_valid for found in result.instances)
    graph.wait_until(lambda: len(shown[-1].markers) == 1, "the markers to go")
    graph.see(camera, None, shown, 2)
    count = len(shown)
    assert graph.transition("shutdown")
    graph.wait_until(lambda: len(shown) > count and len(shown[-1].markers) == 1, "them to go again")


def test_what_is_near_the_median_is_the_objects():
    """A wall half a metre behind is not, all of a table that leads away is."""
    instances = one_instance(torch.ones(1, 30, 40), box=(0, 0, 160, 120))
    depth = np.full((120, 160), 1.5, np.float32)
    depth[:, 140:] = 2.0
    assert locate(instances, depth, calibration()).sizes[0, 2] == 0
    table = np.linspace(1, 2, 160, dtype=np.float32)[None].repeat(120, axis=0)
    assert locate(instances, table, calibration()).sizes[0, 2] == pytest.approx(1)
