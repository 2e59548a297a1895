"""Serialized image messages, read where they lie.

rclpy copies every field of a message into Python objects, which takes some milliseconds for a large
image. A subscription with `raw=True` hands over the bytes as they came, in CDR (OMG DDSI-RTPS,
section 10): numbers aligned to their size, strings and sequences behind a 32-bit count.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from builtin_interfaces.msg import Time
from std_msgs.msg import Header

from yolact_ros.node.images import ImageError

# Representation identifiers: plain CDR and plain CDR 2, which do not differ for these messages.
_BYTE_ORDERS = {b"\0\0": ">", b"\0\1": "<", b"\0\6": ">", b"\0\7": "<"}
_ENCAPSULATION = 4


@dataclass(frozen=True)
class SerializedImage:
    """The fields of `sensor_msgs/Image`; `data` is a view of the message."""

    header: Header
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: memoryview


@dataclass(frozen=True)
class SerializedCompressedImage:
    """The fields of `sensor_msgs/CompressedImage`."""

    header: Header
    format: str
    data: bytes


def read_image(message: bytes) -> SerializedImage:
    """A serialized `sensor_msgs/Image`. Raises ImageError for bytes that are none."""
    reader = _Reader(message)
    return SerializedImage(
        header=reader.header(),
        height=reader.uint32(),
        width=reader.uint32(),
        encoding=reader.string(),
        is_bigendian=reader.uint8(),
        step=reader.uint32(),
        data=reader.sequence(),
    )


def read_compressed_image(message: bytes) -> SerializedCompressedImage:
    """A serialized `sensor_msgs/CompressedImage`. Raises ImageError for bytes that are none."""
    reader = _Reader(message)
    return SerializedCompressedImage(
        header=reader.header(), format=reader.string(), data=bytes(reader.sequence())
    )


class _Reader:
    """Reads one field after the other, never beyond the end."""

    def __init__(self, message: bytes) -> None:
        order = _BYTE_ORDERS.get(message[:2])
        if order is None or len(message) < _ENCAPSULATION:
            raise ImageError("message", f"{len(message)} bytes that are no serialized message")
        self._payload = memoryview(message)[_ENCAPSULATION:]
        self._at = 0
        self._uint32 = struct.Struct(order + "I")

    def uint8(self) -> int:
        return self._take(1)[0]

    def uint32(self) -> int:
        self._at += -self._at % 4
        return int(self._uint32.unpack(self._take(4))[0])

    def sequence(self) -> memoryview:
        return self._take(self.uint32())

    def string(self) -> str:
        try:
            return str(self.sequence(), "utf-8").rstrip("\0")
        except UnicodeDecodeError as error:
            raise ImageError(
                "message", f"a message with a text that is not UTF-8: {error}"
            ) from None

    def header(self) -> Header:
        seconds, nanoseconds = self.uint32(), self.uint32()
        signed = seconds - (seconds >> 31 << 32)
        return Header(stamp=Time(sec=signed, nanosec=nanoseconds), frame_id=self.string())

    def _take(self, count: int) -> memoryview:
        end = self._at + count
        if end > len(self._payload):
            raise ImageError(
                "message",
                f"a message of {len(self._payload)} bytes is cut short: {count} bytes at "
                f"{self._at} are missing",
            )
        taken, self._at = self._payload[self._at : end], end
        return taken
