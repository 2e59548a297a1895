"""Image subscriptions whose reliability matches the publishers'."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy

AUTO = "auto"


class ImageSubscription:
    """A subscription to serialized messages, reliable where possible.

    `reliability` is the lower-case name of a policy. "auto" is reliable if all publishers of the
    topic are, else best effort: a reliable subscription receives nothing from a best-effort
    publisher, and large best-effort images lose fragments. Call `follow` periodically, since
    publishers come and go.
    """

    def __init__(
        self,
        node: Node,
        kind: type,
        topic: str,
        callback: Callable[[bytes], None],
        depth: int,
        reliability: str,
    ) -> None:
        self._node, self._kind, self._callback, self._depth = node, kind, callback, depth
        self._follows = reliability == AUTO
        self._topic = topic
        self._reliability = ReliabilityPolicy.BEST_EFFORT
        if not self._follows:
            self._reliability = ReliabilityPolicy[reliability.upper()]
        self._subscription = self._subscribe()
        self.follow()

    def follow(self) -> None:
        """Resubscribe if another reliability now suits the publishers."""
        if not self._follows:
            return
        # The name as it was given: rclpy remaps it here, too.
        publishers = self._node.get_publishers_info_by_topic(self._topic)
        if not publishers:
            return
        offered = {each.qos_profile.reliability for each in publishers}
        suits = ReliabilityPolicy.BEST_EFFORT
        if offered == {ReliabilityPolicy.RELIABLE}:
            suits = ReliabilityPolicy.RELIABLE
        if suits != self._reliability:
            self.destroy()  # first, so that no image arrives twice
            self._reliability = suits
            self._subscription = self._subscribe()

    def destroy(self) -> None:
        """Stop receiving."""
        self._node.destroy_subscription(self._subscription)

    def _subscribe(self):  # type: ignore[no-untyped-def]  # rclpy's are generic in some versions
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=self._depth, reliability=self._reliability
        )
        group = MutuallyExclusiveCallbackGroup()
        return self._node.create_subscription(
            self._kind, self._topic, self._callback, qos, callback_group=group, raw=True
        )
