"""The path of an image through the node: received, decoded, segmented, published."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from rclpy.clock import Clock, ClockType
from rclpy.impl.rcutils_logger import RcutilsLogger
from std_msgs.msg import Header

from yolact_ros.detection import Instances
from yolact_ros.engine import DeviceLostError, Segmenter, SubmittedBatch
from yolact_ros.engine.failures import detect_lost_device
from yolact_ros.image_files import Image
from yolact_ros.node import images
from yolact_ros.node.cameras import Camera
from yolact_ros.node.cdr import (
    SerializedCompressedImage,
    SerializedImage,
    parse_compressed_image,
    parse_image,
)
from yolact_ros.node.depth import DepthImages, NearestDepth, NoDepthError
from yolact_ros.node.images import ImageError
from yolact_ros.node.outputs import Outputs
from yolact_ros.node.parameters import Parameters
from yolact_ros.node.positions import Positions
from yolact_ros.node.statistics import FrameStatistics
from yolact_ros.node.worker import Job, Worker

LOG_PERIOD = 1.0
"""Seconds between log lines of one kind about images."""
DOUBT_LOG_PERIOD = 60.0
"""Seconds between log lines about conditions that may be intended."""
STEADY = Clock(clock_type=ClockType.STEADY_TIME)
"""Keeps running when the system clock is set back or simulated time is paused."""


@dataclass(frozen=True)
class Feed:
    """One camera of the node, with its outputs and statistics."""

    topic: str
    """Full name of the subscribed topic."""
    camera: Camera
    outputs: Outputs
    statistics: FrameStatistics
    logger: RcutilsLogger
    """Each of several cameras has its own, since log throttling is per logger."""


@dataclass(frozen=True)
class Frame:
    """An image on its way to the network."""

    feed: Feed
    message: SerializedImage | SerializedCompressedImage
    arrived: float
    """time.monotonic() in seconds."""
    depth: NearestDepth | None
    """None without a depth topic."""


@dataclass(frozen=True)
class DecodedFrame:
    """A frame with its pixels."""

    frame: Frame
    image: Image | torch.Tensor
    """BGR uint8 [H, W, 3]."""
    stages: Mapping[str, float]
    """Milliseconds of each stage so far."""


def read_message(
    serialized: bytes, compressed: bool
) -> SerializedImage | SerializedCompressedImage:
    """Parse a serialized Image or CompressedImage. Raises ImageError for an invalid message."""
    if compressed:
        compressed_message = parse_compressed_image(serialized)
        images.check_compressed(compressed_message)
        return compressed_message
    message = parse_image(serialized)
    images.check(message)
    return message


def image_of(
    message: SerializedImage | SerializedCompressedImage, device: torch.device
) -> Image | torch.Tensor:
    """Decode a message to BGR uint8 [H, W, 3]; a JPEG is decoded on `device` if that is CUDA.

    Raises ImageError and DeviceLostError.
    """
    if not isinstance(message, SerializedCompressedImage):
        return images.bgr_of(message)
    if device.type == "cuda":
        with detect_lost_device(device):
            on_gpu = images.bgr_on_gpu(message, device)
        if on_gpu is not None:
            return on_gpu
    return images.bgr_of_compressed(message)


def warm_up_decoder(device: torch.device) -> None:
    """Decode a small JPEG, so that nvJPEG is initialised."""
    _, data = cv2.imencode(".jpg", np.zeros((32, 32, 3), np.uint8))
    image_of(SerializedCompressedImage(Header(), "jpeg", data.tobytes()), device)


class RateLimit:
    """Decides which images exceed a maximum rate, for each camera."""

    def __init__(self) -> None:
        self._interval_starts: dict[Camera, float] = {}

    def passes_over(self, camera: Camera, arrived: float, rate: float) -> bool:
        """Whether to skip an image that arrived at `arrived` (seconds) to keep to `rate` (Hz).

        A rate of 0 means no limit.
        """
        if rate == 0:
            self._interval_starts.pop(camera, None)
            return False
        interval, start = 1 / rate, self._interval_starts.get(camera)
        due = arrived if start is None else start + interval
        if arrived < due:
            return True
        # Count from `due`, even if the image is a little late: otherwise the rate would be too low.
        self._interval_starts[camera] = due if arrived < due + interval else arrived
        return False


class Pipeline:
    """Segments the newest image of each camera, in its own thread, until `stop` is called.

    If the device works asynchronously, the next images are decoded and submitted meanwhile.
    `configured` are the parameters that the node was configured with; `current` returns the
    current ones, for those that take effect at once. `on_lost` is called in the pipeline's thread
    when the device is found to be lost.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        feeds: Sequence[Feed],
        depth: DepthImages | None,
        configured: Parameters,
        current: Callable[[], Parameters],
        on_lost: Callable[[DeviceLostError], None],
    ) -> None:
        self._segmenter = segmenter
        self._depth = depth
        self._current = current
        self._on_lost = on_lost
        self._compressed = configured.compressed
        self._limit = RateLimit()
        self._worker: Worker[Camera, Frame] = Worker(
            self._begin,
            [feed.camera for feed in feeds],
            configured.batch_limit(segmenter.device.type),
            "network",
        )

    def stop(self) -> None:
        """Drop waiting images and finish those in progress."""
        if self._depth is not None:
            self._depth.close()
        for frame in self._worker.stop():
            frame.feed.statistics.passed_over()

    def take(self, feed: Feed, serialized: bytes) -> None:
        """Accept a serialized message of a camera, which may be malformed."""
        arrived = time.monotonic()
        feed.statistics.arrived()
        try:
            message = read_message(serialized, self._compressed)
        except ImageError as error:
            self._refuse(feed, error)
            return
        if self._limit.passes_over(feed.camera, arrived, self._current().max_rate):
            feed.statistics.passed_over()
            return
        feed.statistics.accepted()
        depth = None if self._depth is None else self._depth.nearest(message.header.stamp)
        if self._worker.put(feed.camera, Frame(feed, message, arrived, depth)) is not None:
            feed.statistics.passed_over()

    def take_depth(self, feed: Feed, depth: DepthImages, serialized: bytes) -> None:
        """Accept a serialized depth image of a camera, which may be malformed."""
        try:
            depth.put(parse_image(serialized))
        except ImageError as error:
            self._refuse_depth(feed, error)

    def _begin(self, frames: list[Frame]) -> Job | None:
        """Decode and submit one image each of some cameras; runs in the network thread."""
        decoded = [each for frame in frames if (each := self._decode(frame)) is not None]
        if not decoded:
            return None
        try:
            submitted = self._segmenter.submit([each.image for each in decoded])
        except Exception as error:  # must not end the node
            self._fail([each.frame.feed for each in decoded], error)
            return None
        return Job(submitted.done, lambda: self._finish(decoded, submitted))

    def _finish(self, decoded: Sequence[DecodedFrame], submitted: SubmittedBatch) -> None:
        try:
            found, stages = submitted.result()
        except Exception as error:  # must not end the node
            self._fail([each.frame.feed for each in decoded], error)
            return
        computing = {
            "preprocessing": stages.preprocess,
            "network": stages.network,
            "detection": stages.detection,
        }
        for each, instances in zip(decoded, found, strict=True):
            self._publish(each, instances, computing)

    def _decode(self, frame: Frame) -> DecodedFrame | None:
        started = time.monotonic()
        try:
            image = image_of(frame.message, self._segmenter.device)
        except ImageError as error:
            self._refuse(frame.feed, error, accepted=True)
            return None
        except Exception as error:  # one image must not end the node
            self._fail([frame.feed], error)
            return None
        stages = {
            "waiting": 1e3 * (started - frame.arrived),
            "decoding": 1e3 * (time.monotonic() - started),
        }
        return DecodedFrame(frame, image, stages)

    def _publish(
        self, decoded: DecodedFrame, instances: Instances, computing: Mapping[str, float]
    ) -> None:
        feed, header = decoded.frame.feed, decoded.frame.message.header
        parameters = self._current()
        started = time.monotonic()
        try:
            if parameters.mask_score_threshold > 0:  # filtering takes time
                instances = instances[instances.mask_scores >= parameters.mask_score_threshold]
            positions = self._locate(decoded.frame, instances, parameters)
            located = time.monotonic()
            with detect_lost_device(self._segmenter.device):  # the image may be on the device
                feed.outputs.publish(header, decoded.image, instances, positions, parameters)
        except Exception as error:  # one image must not end the node
            self._fail([feed], error)
            return
        published = time.monotonic()
        feed.statistics.processed(
            {
                **decoded.stages,
                **computing,
                "locating": 1e3 * (located - started),
                "publishing": 1e3 * (published - located),
                "total": 1e3 * (published - decoded.frame.arrived),
            }
        )

    def _locate(
        self, frame: Frame, instances: Instances, parameters: Parameters
    ) -> Positions | None:
        if self._depth is None or frame.depth is None or not instances:
            return None
        feed, header = frame.feed, frame.message.header
        try:
            offset, wait = parameters.depth_max_offset, parameters.depth_max_wait
            positions = self._depth.locate(frame.depth, instances, offset, wait)
            frames = {"depth": positions.depth_frame, "calibration": positions.calibration_frame}
            others = [f"{n} in {f!r}" for n, f in frames.items() if f not in ("", header.frame_id)]
            if others:
                feed.logger.warning(
                    f"Images are in the frame {header.frame_id!r}, {', '.join(others)}: positions "
                    "are wrong unless the depth is registered to the images",
                    **at_most_every(DOUBT_LOG_PERIOD),
                )
            return positions
        except NoDepthError as error:
            feed.statistics.without_depth()
            feed.logger.warning(f"Positions unknown: {error}", **at_most_every(LOG_PERIOD))
        except ImageError as error:
            self._refuse_depth(feed, error)
        return None

    def _refuse(self, feed: Feed, error: ImageError, accepted: bool = False) -> None:
        count = feed.statistics.refused(error.reason, accepted)
        feed.logger.warning(
            f"Malformed image dropped on {feed.topic}: {error} ({count} so far)",
            **at_most_every(LOG_PERIOD),
        )

    def _refuse_depth(self, feed: Feed, error: ImageError) -> None:
        feed.statistics.depth_refused()
        feed.logger.warning(f"Depth not used: {error}", **at_most_every(LOG_PERIOD))

    def _fail(self, feeds: Sequence[Feed], error: Exception) -> None:
        for feed in feeds:
            feed.statistics.failed()
            feed.logger.error(
                f"An image of {feed.topic} could not be processed: {reason_of(error)}",
                **at_most_every(LOG_PERIOD),
            )
        if isinstance(error, DeviceLostError):
            self._on_lost(error)


def at_most_every(seconds: float) -> dict[str, Any]:
    """Return logger arguments that throttle a log call to one line in `seconds`."""
    return {"throttle_duration_sec": seconds, "throttle_time_source_type": STEADY}


def reason_of(error: Exception) -> str:
    """Describe an error for the user; unexpected errors include their type."""
    foreseen = isinstance(error, ValueError | RuntimeError | OSError) and str(error)
    return str(error) if foreseen else f"{type(error).__name__}: {error}"
