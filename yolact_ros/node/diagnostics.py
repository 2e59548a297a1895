"""The node's state as messages for /diagnostics."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.time import Time

from yolact_ros.node.statistics import Summary

MEBIBYTE = 1 << 20

HANGS = 5
"""An image is overdue after this many times the 99th percentile of the total latency."""


@dataclass(frozen=True)
class NodeState:
    """What the diagnostics report about the node as a whole."""

    node: str
    """Full name of the node."""
    state: str
    """Lifecycle state: unconfigured, configuring, inactive, active or finalized."""
    problem: str
    """Why the node is not configured or not active; empty if nothing went wrong."""
    model: str
    """Model, weights and classes as text; empty while no model is loaded."""
    device: str
    """Device that the network runs on; empty while no model is loaded."""
    image_timeout: float
    """Seconds without an image after which a warning is reported."""


@dataclass(frozen=True)
class CameraState:
    """What the diagnostics report about one camera."""

    name: str
    """Empty for a node's only camera."""
    topic: str
    """Topic that the images come from."""
    frames: Summary
    silence: str = ""
    """Why no images arrive, as far as the ROS graph shows."""


def why_silent(published: Iterable[str], wanted: str) -> str:
    """Explain why no messages of type `wanted` arrive on a topic with these `published` types."""
    types = sorted(set(published))
    if not types:
        return "nothing publishes it"
    if wanted not in types:
        return f"it is published as {', '.join(types)}, not as {wanted} (parameter `compressed`)"
    return "it has a publisher, which sends nothing or whose QoS is incompatible"


def diagnostic_array(
    stamp: Time, state: NodeState, cameras: Iterable[CameraState]
) -> DiagnosticArray:
    """Build a message with one status for the model and one for the images of each camera."""
    message = DiagnosticArray()
    message.header.stamp = stamp.to_msg()
    message.status = [
        _model_status(state),
        *(_images_status(state, camera) for camera in cameras),
    ]
    return message


def _model_status(state: NodeState) -> DiagnosticStatus:
    if state.problem:
        level, text = DiagnosticStatus.ERROR, state.problem
    else:
        level, text = DiagnosticStatus.OK, state.model or f"no model: the node is {state.state}"
    values = {"state": state.state, "model": state.model, "device": state.device}
    if state.device.startswith("cuda"):
        with contextlib.suppress(RuntimeError):  # the device may have been lost
            values |= _device_memory(torch.device(state.device))
    else:
        values["process memory (MiB)"] = _mebibytes(resident_bytes())
    return _status(f"{state.node}: model", state, level, text, values)


def _device_memory(device: torch.device) -> dict[str, str]:
    return {
        "device memory in use (MiB)": _mebibytes(torch.cuda.memory_allocated(device)),
        "device memory reserved (MiB)": _mebibytes(torch.cuda.memory_reserved(device)),
        "device memory (MiB)": _mebibytes(torch.cuda.mem_get_info(device)[1]),
    }


def _images_status(state: NodeState, camera: CameraState) -> DiagnosticStatus:
    name = f"{state.node}: images {camera.name}".rstrip()
    level, text = _images_level(state, camera)
    return _status(name, state, level, text, {"topic": camera.topic, **_values(camera.frames)})


def _images_level(state: NodeState, camera: CameraState) -> tuple[bytes, str]:
    """Return the level and the text of the worst that is known about a camera's images."""
    frames = camera.frames
    if state.state != "active":
        return DiagnosticStatus.OK, f"the node is {state.state}"
    if frames.unanswered > max(state.image_timeout, _patience(frames)):
        waited = f"{frames.unanswered:.0f} s"
        return DiagnosticStatus.ERROR, f"images came, but none was finished for {waited}"
    if frames.silence > state.image_timeout:
        missing = f"no image on {camera.topic} for {frames.silence:.0f} s"
        return DiagnosticStatus.WARN, f"{missing}: {camera.silence}"
    if frames.failed_lately:
        return DiagnosticStatus.ERROR, f"{frames.failed_lately} images failed; see the log"
    for count, what in (
        (frames.refused_lately, "malformed images"),
        (frames.depth_refused_lately, "unusable depth images"),
        (frames.without_depth_lately, "images without depth"),
    ):
        if count:
            return DiagnosticStatus.WARN, f"{count} {what} recently; see the log"
    return DiagnosticStatus.OK, f"{frames.rate_out:.1f} images a second"


def _values(frames: Summary) -> dict[str, str]:
    values = {
        "rate in (Hz)": f"{frames.rate_in:.2f}",
        "rate out (Hz)": f"{frames.rate_out:.2f}",
        "received": str(frames.received),
        "processed": str(frames.processed),
        "passed over": str(frames.passed_over),
        "failed": str(frames.failed),
        "refused": str(sum(frames.refused.values())),
    }
    if frames.depth_refused:
        values["depth refused"] = str(frames.depth_refused)
    if frames.without_depth:
        values["without depth"] = str(frames.without_depth)
    values |= {f"refused: {reason}": str(n) for reason, n in sorted(frames.refused.items())}
    for stage, latency in frames.latencies.items():
        values[f"{stage} median (ms)"] = f"{latency.median:.2f}"
        values[f"{stage} 99 % (ms)"] = f"{latency.percentile_99:.2f}"
    return values


def _patience(frames: Summary) -> float:
    """Seconds that images of a slow network may go unanswered; 0 before the first answer."""
    total = frames.latencies.get("total")
    return 0.0 if total is None else HANGS * total.percentile_99 / 1e3


def _status(
    name: str, state: NodeState, level: bytes, text: str, values: dict[str, str]
) -> DiagnosticStatus:
    return DiagnosticStatus(
        name=name,
        hardware_id=state.device,
        level=level,
        message=text,
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )


def _mebibytes(count: int) -> str:
    return f"{count / MEBIBYTE:.0f}"


def resident_bytes(process: int | Literal["self"] = "self") -> int:
    """Return the resident set size of a process in bytes, from Linux's /proc."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
