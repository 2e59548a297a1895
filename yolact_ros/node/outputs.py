"""The node's publishers, and what they publish for each image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleNodeMixin, LifecyclePublisher
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from visualization_msgs.msg import MarkerArray

from yolact_ros.detection import Instances
from yolact_ros.engine import draw_overlay
from yolact_ros.msg import InstanceArray
from yolact_ros.node import messages
from yolact_ros.node.cameras import Camera
from yolact_ros.node.markers import markers, no_markers
from yolact_ros.node.parameters import Parameters
from yolact_ros.node.positions import Positions

QUEUE_DEPTH = 5


class Outputs:
    """A node's publishers for one camera. All are reliable, so compatible with any subscriber.

    `resolved` returns the full name of a topic, with remappings applied. `with_markers`: also
    publish markers for instances that have a position.
    """

    def __init__(
        self,
        node: LifecycleNodeMixin,
        camera: Camera,
        resolved: Callable[[str], str],
        with_markers: bool,
    ) -> None:
        def publisher(kind: type, topic: str):  # type: ignore[no-untyped-def]
            self._publishers.append(node.create_lifecycle_publisher(kind, topic, QUEUE_DEPTH))
            return self._publishers[-1]

        overlay = camera.output("overlay")
        self._node = node
        self._publishers: list[LifecyclePublisher] = []
        self._instances = publisher(InstanceArray, camera.output("instances"))
        self._overlay = publisher(Image, overlay)
        # image_transport expects it below the overlay's remapped name.
        self._compressed = publisher(CompressedImage, f"{resolved(overlay)}/compressed")
        self._labels = publisher(Image, camera.output("labels"))
        self._markers = publisher(MarkerArray, camera.output("markers")) if with_markers else None

    def publish(
        self,
        header: Header,
        image: NDArray[np.uint8] | torch.Tensor,
        instances: Instances,
        positions: Positions | None,
        parameters: Parameters,
    ) -> None:
        """Publish the instances of a BGR image [H, W, 3], and other outputs with subscribers."""
        self._instances.publish(
            messages.instance_array(header, instances, parameters.mask_encoding, positions)
        )
        if self._markers is not None and self._markers.get_subscription_count():
            shown = no_markers(header)
            if positions is not None:
                shown = markers(header, instances, positions)
            self._markers.publish(shown)
        if self._labels.get_subscription_count():
            self._labels.publish(messages.label_image(header, instances))
        if parameters.overlay_enabled:
            self._publish_overlay(header, image, instances, parameters)

    def _publish_overlay(
        self,
        header: Header,
        image: NDArray[np.uint8] | torch.Tensor,
        instances: Instances,
        parameters: Parameters,
    ) -> None:
        raw = self._overlay.get_subscription_count() > 0
        compressed = self._compressed.get_subscription_count() > 0
        if not raw and not compressed:
            return
        if isinstance(image, torch.Tensor):
            image = image.cpu().numpy()
        overlay = draw_overlay(
            image,
            instances,
            alpha=parameters.overlay_alpha,
            boxes=parameters.overlay_boxes,
            labels=parameters.overlay_labels,
        )
        if raw:
            self._overlay.publish(messages.bgr_image(header, overlay))
        if compressed:
            quality = parameters.overlay_jpeg_quality
            self._compressed.publish(messages.jpeg_image(header, overlay, quality))

    def clear(self) -> None:
        """Remove the markers that RViz would otherwise keep showing."""
        if self._markers is not None:
            self._markers.publish(no_markers(Header()))

    def destroy(self) -> None:
        """Destroy the publishers."""
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)
