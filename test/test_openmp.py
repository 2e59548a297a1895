"""The programs' threads wait briefly for each other: OpenMP itself says what it took."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

COMMAND = ["-c", "from yolact_ros.cli import main; main()", "predict", "--help"]
MEASURE = ["scripts/yolact_measure", "stages", "--weights", "/no/such/file"]
NODE = ["-c", "from yolact_ros.node.main import main; main()", "--ros-args", "-p", "top_k:=-1"]
needs_ros = pytest.mark.skipif(
    not (find_spec("rclpy") and find_spec("yolact_ros.msg")),
    reason="needs ROS 2 and the messages of this package",
)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(COMMAND, id="command"),
        pytest.param(NODE, id="node", marks=needs_ros),
        pytest.param(MEASURE, id="measure", marks=needs_ros),
    ],
)
def test_threads_wait_briefly(arguments, repository):
    assert spins(arguments, repository) == 4000
    assert spins(arguments, repository, GOMP_SPINCOUNT="77") == 77, "the user's choice"
    assert spins(arguments, repository, OMP_WAIT_POLICY="passive") == 0, "the user's choice"


def spins(arguments, folder, **choice):
    """Turns of OpenMP's loop while it waits, in a process with `choice` in its environment."""
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **choice}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    (found,) = set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)) or {"none"}
    return int(found)
