"""Runs this package's nodes as separate processes, for the demo and measurements."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ament_index_python.packages import get_package_prefix
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node


@contextmanager
def started(executable: str, ros_arguments: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run an executable of this package with arguments after --ros-args; end it on exit."""
    path = Path(get_package_prefix("yolact_ros"), "lib", "yolact_ros", executable)
    process = subprocess.Popen([sys.executable, str(path), "--ros-args", *ros_arguments])
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Health:
    """The state of an autostarted node `yolact`, according to /diagnostics.

    `problem` is why it does not run, or empty. `is_configuring`: it is loading, downloading or
    compiling a model, which may take minutes.
    """

    def __init__(self, observer: Node, name: str) -> None:
        self.problem, self.is_configuring = "", False
        self._status = f"{name}: model"
        observer.create_subscription(DiagnosticArray, "/diagnostics", self._read, 10)

    def _read(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name != self._status:
                continue
            state = next((pair.value for pair in status.values if pair.key == "state"), "")
            self.is_configuring = state == "configuring"
            if status.level == DiagnosticStatus.ERROR or state == "unconfigured":
                self.problem = f"the node is {state}: {status.message}"
