"""Serialized messages are read as rclpy reads them; broken bytes are refused."""

import struct

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage

from yolact_ros.node import images
from yolact_ros.node.cdr import parse_compressed_image, parse_image
from yolact_ros.node.images import ImageError

FIELDS = ("header", "height", "width", "encoding", "is_bigendian", "step")


@pytest.mark.parametrize("frame", ["", "a", "ab", "abc", "abcd", "caméra/optisch"])
@pytest.mark.parametrize("encoding", ["", "rgb8", "mono8", "bayer_rggb16"])
def test_every_field_of_an_image(image_message, frame, encoding):
    rows = np.arange(5 * 12, dtype=np.uint8).reshape(5, 12)
    message = image_message(rows, encoding, width=4, frame=frame, stamp=10**18 + 7, is_bigendian=1)
    read = parse_image(bytes(serialize_message(message)))
    for name in FIELDS:
        assert getattr(read, name) == getattr(message, name), name
    assert read.data == rows.tobytes()


def test_pixels_are_a_view_of_the_message(image_message):
    image = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    message = bytes(serialize_message(image_message(image)))
    pixels = images.bgr_of(parse_image(message))
    np.testing.assert_array_equal(pixels, image)
    assert np.shares_memory(pixels, np.frombuffer(message, np.uint8))


def test_stamps_before_1970_and_at_the_end_of_time(image_message):
    message = image_message(np.zeros((1, 1), np.uint8), "mono8")
    for seconds, nanoseconds in ((-1, 0), (-(2**31), 2**32 - 1), (2**31 - 1, 999_999_999)):
        message.header.stamp.sec, message.header.stamp.nanosec = seconds, nanoseconds
        assert parse_image(bytes(serialize_message(message))).header == message.header


def big_endian(message):
    """The bytes of an Image as a computer with the other byte order writes them."""
    bytes_ = bytearray(struct.pack(">2H", 0, 0))

    def add(kind, value):
        size = struct.calcsize(kind)
        bytes_.extend(bytes(-(len(bytes_) - 4) % size) + struct.pack(">" + kind, value))

    def add_text(text):
        add("I", len(text) + 1)
        bytes_.extend(text.encode() + b"\0")

    add("i", message.header.stamp.sec)
    add("I", message.header.stamp.nanosec)
    add_text(message.header.frame_id)
    add("I", message.height)
    add("I", message.width)
    add_text(message.encoding)
    add("B", message.is_bigendian)
    add("I", message.step)
    add("I", len(message.data))
    return bytes(bytes_) + bytes(message.data)


def test_messages_of_big_endian_computers(image_message):
    message = image_message(np.arange(30, dtype=np.uint8).reshape(2, 5, 3), frame="eye", stamp=-5)
    read = parse_image(big_endian(message))
    for name in FIELDS:
        assert getattr(read, name) == getattr(message, name), name
    assert read.data == bytes(range(30))


def test_compressed_images():
    message = CompressedImage(format="png", data=b"\x89PNG")
    message.header.frame_id = "eye"
    read = parse_compressed_image(bytes(serialize_message(message)))
    assert (read.header, read.format, read.data) == (message.header, "png", b"\x89PNG")


@pytest.mark.parametrize("parse", [parse_image, parse_compressed_image])
def test_every_message_that_is_cut_short_is_refused(image_message, parse):
    message = image_message(np.zeros((2, 2), np.uint8), "mono8", frame="eye")
    if parse is parse_compressed_image:
        message = CompressedImage(header=message.header, format="png", data=b"1234")
    whole = bytes(serialize_message(message))
    parse(whole)
    for length in range(len(whole)):
        with pytest.raises(ImageError) as caught:
            parse(whole[:length])
        assert caught.value.reason == "message"


def test_other_bytes_are_refused(image_message):
    whole = bytes(serialize_message(image_message(np.zeros((2, 2), np.uint8), "mono8")))
    parameter_list = b"\0\3" + whole[2:]
    with pytest.raises(ImageError, match="no serialized message"):
        parse_image(parameter_list)
    at = whole.index(b"camera")
    with pytest.raises(ImageError, match="not UTF-8"):
        parse_image(whole[:at] + b"\xff" + whole[at + 1 :])


def test_random_bytes_never_do_more_than_raise(image_message):
    rng = np.random.default_rng(0)
    whole = bytes(serialize_message(image_message(np.zeros((4, 4, 3), np.uint8))))
    for _ in range(2000):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        try:
            image = parse_image(bytes(data))
            images.bgr_of(image)
        except ImageError:
            continue
        assert len(image.data) == 48
