"""Reads serialized image messages in place.

rclpy copies every field of a message into Python objects, which takes some milliseconds for a large
image. A subscription with `raw=True` delivers the received bytes, in CDR (OMG DDSI-RTPS,
section 10): numbers are aligned to their size, strings and sequences follow a 32-bit length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from builtin_interfaces.msg import Time
from std_msgs.msg import Header

from yolact_ros.node.images import ImageError

# Representation identifiers: plain CDR and plain CDR 2, which are identical for these messages.
_BYTE_ORDERS: dict[bytes, Literal["big", "little"]] = {
    b"\0\0": "big",
    b"\0\1": "little",
    b"\0\6": "big",
    b"\0\7": "little",
}
_ENCAPSULATION = 4


@dataclass(frozen=True)
class SerializedImage:
    """The fields of `sensor_msgs/Image`; `data` is a view into the message."""

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


def parse_image(message: bytes) -> SerializedImage:
    """Parse a serialized `sensor_msgs/Image`. Raises ImageError for invalid bytes."""
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


def parse_compressed_image(message: bytes) -> SerializedCompressedImage:
    """Parse a serialized `sensor_msgs/CompressedImage`. Raises ImageError for invalid bytes."""
    reader = _Reader(message)
    return SerializedCompressedImage(
        header=reader.header(), format=reader.string(), data=bytes(reader.sequence())
    )


class _Reader:
    """Reads one field after another, never past the end."""

    def __init__(self, message: bytes) -> None:
        order = _BYTE_ORDERS.get(message[:2])
        if order is None or len(message) < _ENCAPSULATION:
            raise ImageError("message", f"{len(message)} bytes that are no serialized message")
        self._payload = memoryview(message)[_ENCAPSULATION:]
        self._order, self._at = order, 0

    def uint8(self) -> int:
        return self._take(1)[0]

    def uint32(self) -> int:
        return self._number(signed=False)

    def int32(self) -> int:
        return self._number(signed=True)

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
        stamp = Time(sec=self.int32(), nanosec=self.uint32())
        return Header(stamp=stamp, frame_id=self.string())

    def _number(self, signed: bool) -> int:
        self._at += -self._at % 4
        return int.from_bytes(self._take(4), self._order, signed=signed)

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
