"""What an active node receives: subscriptions, and the pipeline that they feed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from yolact_ros.engine import DeviceLostError, Segmenter
from yolact_ros.node.depth import DepthImages
from yolact_ros.node.parameters import Parameters
from yolact_ros.node.pipeline import Feed, Pipeline


def resolved(node: Node, topic: str) -> str:
    """The full name of a topic, with the node's remappings followed."""
    try:
        return str(node.resolve_topic_name(topic))
    except RuntimeError:  # a name with {substitutions} that ROS does not know
        return topic


class Inputs:
    """The pipeline of some cameras, and from `subscribe` to `stop` what feeds it.

    The arguments are those of `Pipeline`. Without masks there are no positions, and depth is not
    subscribed to.
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
        self._subscriptions: list[Subscription] = []
        self._depth_topics = configured.depth_topics(partial(resolved, node))
        if all(self._depth_topics) and segmenter.config.mask_branch == "none":
            node.get_logger().warning("No positions: they need masks, which this model lacks")
            self._depth_topics = "", ""
        names = [resolved(node, topic) for topic in self._depth_topics if topic]
        self._depth = DepthImages(*names) if names else None
        self.topics = [feed.topic for feed in feeds] + names
        """Full names of all that is subscribed to."""
        self.pipeline = Pipeline(segmenter, feeds, self._depth, configured, current, on_lost)

    def subscribe(self) -> None:
        """Begin to receive. What rclpy raises leaves some subscriptions, for `stop`."""
        parameters, pipeline = self._configured, self.pipeline
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=parameters.qos_depth,
            reliability=ReliabilityPolicy[parameters.qos_reliability.upper()],
        )
        kind = CompressedImage if parameters.compressed else Image
        for feed in self._feeds:
            topic = parameters.subscription_topic(feed.camera, partial(resolved, self._node))
            self._subscribe(kind, topic, partial(pipeline.take, feed), qos, raw=True)
        if self._depth is not None:
            depth_topic, info_topic = self._depth_topics
            take_depth = partial(pipeline.take_depth, self._feeds[0], self._depth)
            self._subscribe(Image, depth_topic, take_depth, qos, raw=True)
            self._subscribe(CameraInfo, info_topic, self._depth.put_info, qos_profile_sensor_data)

    def _subscribe(
        self,
        kind: type,
        topic: str,
        callback: Callable[[Any], None],
        qos: QoSProfile,
        raw: bool = False,
    ) -> None:
        group = MutuallyExclusiveCallbackGroup()
        self._subscriptions.append(
            self._node.create_subscription(
                kind, topic, callback, qos, callback_group=group, raw=raw
            )
        )

    def stop(self) -> None:
        """Receive nothing more; the image in work is finished."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())
        self.pipeline.stop()
