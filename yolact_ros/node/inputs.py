"""Subscriptions of an active node, and the pipeline that they feed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from yolact_ros.engine import DeviceLostError, Segmenter
from yolact_ros.node.depth import DepthImages
from yolact_ros.node.parameters import Parameters
from yolact_ros.node.pipeline import STEADY, Feed, Pipeline
from yolact_ros.node.subscription import ImageSubscription

FOLLOW_PERIOD = 0.5
"""Seconds between checks for publishers that come or go."""


def resolved(node: Node, topic: str) -> str:
    """Return the full name of a topic, with the node's remappings applied."""
    try:
        return str(node.resolve_topic_name(topic))
    except RuntimeError:  # too long, or no topic name in this namespace: subscribing says why
        return topic


class Inputs:
    """The pipeline of some cameras and, from `subscribe` to `stop`, the subscriptions feeding it.

    The arguments are those of `Pipeline`. Positions need masks: for a model without masks, depth is
    not subscribed to.
    """

    def __init__(
        self,
        node: Node,
        segmenter: Segmenter,
        feeds: Sequence[Feed],
        configured: Parameters,
        current: Callable[[], Parameters],
        on_lost: Callable[[DeviceLostError], None],
    ) -> None:
        self._node, self._feeds, self._configured = node, feeds, configured
        self._images: list[ImageSubscription] = []
        self._others = ExitStack()
        self._lock = threading.Lock()
        self._depth_topics = configured.depth_topics(partial(resolved, node))
        if all(self._depth_topics) and segmenter.config.mask_branch == "none":
            node.get_logger().warning("No positions: they need masks, which this model lacks")
            self._depth_topics = "", ""
        names = [resolved(node, topic) for topic in self._depth_topics if topic]
        self._depth = DepthImages(*names) if names else None
        self.topics = [feed.topic for feed in feeds] + names
        """Full names of all topics subscribed to."""
        self.pipeline = Pipeline(segmenter, feeds, self._depth, configured, current, on_lost)

    def subscribe(self) -> None:
        """Start receiving. If rclpy raises, `stop` destroys the subscriptions made so far."""
        parameters, pipeline = self._configured, self.pipeline
        kind = CompressedImage if parameters.compressed else Image
        for feed in self._feeds:
            topic = parameters.subscription_topic(feed.camera, partial(resolved, self._node))
            self._subscribe(kind, topic, partial(pipeline.take, feed))
        if self._depth is not None:
            depth_topic, info_topic = self._depth_topics
            take_depth = partial(pipeline.take_depth, self._feeds[0], self._depth)
            self._subscribe(Image, depth_topic, take_depth)
            infos = self._node.create_subscription(
                CameraInfo,
                info_topic,
                self._depth.put_info,
                qos_profile_sensor_data,
                callback_group=MutuallyExclusiveCallbackGroup(),
            )
            self._others.callback(self._node.destroy_subscription, infos)
        timer = self._node.create_timer(
            FOLLOW_PERIOD,
            self._follow_publishers,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=STEADY,
        )
        self._others.callback(self._node.destroy_timer, timer)

    def _subscribe(self, kind: type, topic: str, callback: Callable[[bytes], None]) -> None:
        depth, reliability = self._configured.qos_depth, self._configured.qos_reliability
        self._images.append(
            ImageSubscription(self._node, kind, topic, callback, depth, reliability)
        )

    def _follow_publishers(self) -> None:
        with self._lock:
            for subscription in self._images:
                subscription.follow()

    def stop(self) -> None:
        """Stop receiving; images in progress are finished."""
        with self._lock:
            while self._images:
                self._images.pop().destroy()
        self._others.close()
        self.pipeline.stop()
