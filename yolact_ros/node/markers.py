"""RViz markers for instances with a position: a box and a text for each."""

from __future__ import annotations

from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from yolact_ros.detection import Instances
from yolact_ros.engine.overlay import class_colours
from yolact_ros.node.positions import Positions

MIN_SIDE = 0.01
"""In metres; RViz rejects boxes without thickness."""
TEXT_HEIGHT = 0.1
BOX_OPACITY = 0.4
LIFETIME = Duration(sec=5)
"""RViz removes markers after this time, when images or the node have stopped."""


def no_markers(header: Header) -> MarkerArray:
    """Build a message that deletes all markers."""
    return MarkerArray(markers=[Marker(header=header, action=Marker.DELETEALL)])


def markers(header: Header, instances: Instances, positions: Positions) -> MarkerArray:
    """Build a message that replaces the previous image's markers with this image's."""
    message = no_markers(header)
    colours = class_colours(len(instances.class_names)) / 255
    scores, class_ids = instances.scores.tolist(), instances.class_ids.tolist()
    for i in positions.valid.nonzero()[0].tolist():
        x, y, z = positions.middles[i].tolist()
        size = [max(side, MIN_SIDE) for side in positions.sizes[i].tolist()]
        blue, green, red = colours[class_ids[i]].tolist()
        # The camera's y axis points down.
        text_at = Point(x=x, y=y - size[1] / 2 - TEXT_HEIGHT, z=z)
        upright = Quaternion(w=1.0)
        message.markers += [
            Marker(
                header=header,
                ns="boxes",
                id=i,
                lifetime=LIFETIME,
                type=Marker.CUBE,
                pose=Pose(position=Point(x=x, y=y, z=z), orientation=upright),
                scale=Vector3(x=size[0], y=size[1], z=size[2]),
                color=ColorRGBA(r=red, g=green, b=blue, a=BOX_OPACITY),
            ),
            Marker(
                header=header,
                ns="texts",
                id=i,
                lifetime=LIFETIME,
                type=Marker.TEXT_VIEW_FACING,
                pose=Pose(position=text_at, orientation=upright),
                scale=Vector3(z=TEXT_HEIGHT),
                color=ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0),
                text=f"{instances.names[i]} {scores[i]:.2f}",
            ),
        ]
    return message
