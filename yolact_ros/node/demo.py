"""The demo: a camera, the node `yolact` and a viewer, each in its own process.

The camera publishes the photographs that ship with the package. The viewer, which is this process,
prints what it receives on `yolact/instances` and writes images from `yolact/overlay` to files.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import rclpy
from ament_index_python.packages import get_package_share_directory
from rclpy.exceptions import InvalidNamespaceException
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.time import Time
from sensor_msgs.msg import Image

from yolact_ros.image_files import PHOTOS, ImageFileError, write_image
from yolact_ros.masks import decode
from yolact_ros.msg import Instance, InstanceArray
from yolact_ros.node.images import bgr_of
from yolact_ros.node.processes import Health, started

RELIABLE = QoSProfile(depth=10)
"""Reliable, the default: on a busy machine best-effort images may be lost."""


class DemoError(Exception):
    """The demo did not finish; the message says why."""


@dataclass(frozen=True)
class Seen:
    """The node's answer for one image."""

    instances: Sequence[Instance]
    latency: float
    """Seconds from the image's stamp to the receipt of its instances."""


class Viewer(Node):
    """Collects the node's answers by the image's file name, which is the `frame_id`."""

    def __init__(self, namespace: str) -> None:
        super().__init__("viewer", namespace=namespace)
        self.seen: dict[str, Seen] = {}
        self.overlays: dict[str, Image] = {}
        self.health = Health(self, f"{self.get_namespace().rstrip('/')}/yolact")
        for message, topic, callback in (
            (InstanceArray, "yolact/instances", self._keep_instances),
            (Image, "yolact/overlay", self._keep_overlay),
        ):
            self.create_subscription(message, topic, callback, RELIABLE)

    def _keep_instances(self, message: InstanceArray) -> None:
        passed = self.get_clock().now() - Time.from_msg(message.header.stamp)
        self.seen[message.header.frame_id] = Seen(message.instances, passed.nanoseconds / 1e9)

    def _keep_overlay(self, message: Image) -> None:
        self.overlays[message.header.frame_id] = message

    def images_done(self) -> set[str]:
        return set(self.seen) & set(self.overlays)


def watch(
    viewer: Viewer, names: set[str], processes: dict[str, subprocess.Popen[bytes]], timeout: float
) -> None:
    """Spin until every image has been seen. Raises DemoError on failure or timeout."""
    end = time.monotonic() + timeout
    done: set[str] = set()
    while not names <= done:
        rclpy.spin_once(viewer, timeout_sec=0.2)
        for name in sorted(viewer.images_done() - done):
            done.add(name)
            print(f"{name}: seen", flush=True)
        for name, process in processes.items():
            if process.poll() is not None:
                raise DemoError(f"the {name} ended with status {process.returncode}; see above")
        if viewer.health.problem:
            raise DemoError(viewer.health.problem)
        if viewer.health.is_configuring:
            end = time.monotonic() + timeout
        if time.monotonic() > end:
            missing = ", ".join(sorted(names - done))
            raise DemoError(f"nothing arrived for {missing} within {timeout:.0f} seconds")


def table(seen: dict[str, Seen]) -> str:
    """Return a table with one line per instance: image, class, score, box, mask area, latency."""
    lines = [("image", "class", "score", "box (x1 y1 x2 y2)", "mask px", "latency ms")]
    for name, answer in sorted(seen.items()):
        latency = f"{1000 * answer.latency:.0f}"
        for instance in answer.instances:
            box = instance.box
            corners = (
                box.x_offset,
                box.y_offset,
                box.x_offset + box.width,
                box.y_offset + box.height,
            )
            lines.append(
                (
                    name,
                    instance.class_name,
                    f"{instance.score:.2f}",
                    " ".join(f"{corner:4d}" for corner in corners),
                    str(int(decode(instance.mask).sum())),
                    latency,
                )
            )
        if not answer.instances:
            lines.append((name, "(none)", "", "", "", latency))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def write_overlays(overlays: dict[str, Image], folder: Path) -> None:
    for name, message in overlays.items():
        write_image(folder / Path(name).with_suffix(".png"), bgr_of(message))


def show(
    photos: Path, output: Path, timeout: float, namespace: str, ros_arguments: Sequence[str]
) -> None:
    """Run the graph, print the table and write the overlays. Raises DemoError."""
    names = {path.name for path in photos.glob("*.jpg")}
    viewer = Viewer(namespace)
    within = ["-r", f"__ns:={viewer.get_namespace()}"]
    show_photos = [*within, "-p", f"folder:={photos}"]
    watch_camera = ["-p", "image_topic:=camera/image_raw"]
    with ExitStack() as stack:
        camera = stack.enter_context(started("yolact_camera", show_photos))
        node = stack.enter_context(started("yolact_node", [*within, *watch_camera, *ros_arguments]))
        watch(viewer, names, {"camera": camera, "node yolact": node}, timeout)
    print("\n" + table(viewer.seen))
    write_overlays(viewer.overlays, output)
    print(f"\noverlays: {output.resolve()}")
    if not any(answer.instances for answer in viewer.seen.values()):
        raise DemoError("no instance was found in any image")


def give_room_for_images() -> None:
    """Have Fast DDS use the package's profile, unless the user has one.

    By default an image does not fit its shared memory, and with overlays on their way some answers
    come only with the next ones, late.
    """
    before_kilted = os.environ.get("ROS_DISTRO") in ("humble", "jazzy")
    variable = f"{'FASTRTPS' if before_kilted else 'FASTDDS'}_DEFAULT_PROFILES_FILE"
    profile = Path(get_package_share_directory("yolact_ros"), "config", "fastdds.xml")
    os.environ.setdefault(variable, str(profile))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Segment the shipped photographs on a ROS graph.")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="overlay folder")
    parser.add_argument(
        "--timeout", type=float, default=120, help="seconds to wait, not counting model loading"
    )
    parser.add_argument(
        "--namespace",
        default="/yolact_demo",
        help="of all nodes and topics; keeps others from mistaking the photographs for a camera's",
    )
    parser.add_argument(
        "--ros-args",
        nargs=argparse.REMAINDER,
        default=[],
        help="the rest goes to the node, for example: --ros-args -p weights:=yolact_plus_resnet50",
    )
    options = parser.parse_args(arguments)
    give_room_for_images()
    rclpy.init(args=[])
    try:
        show(PHOTOS, options.output, options.timeout, options.namespace, options.ros_args)
    except (DemoError, ImageFileError, InvalidNamespaceException) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        return 130
    finally:
        rclpy.try_shutdown()
    return 0
