"""The executable `yolact_node`: runs the node until SIGINT or SIGTERM."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
import warnings
from types import FrameType
from typing import TYPE_CHECKING, Any

from yolact_ros.openmp import wait_briefly

if TYPE_CHECKING:
    from yolact_ros.node.yolact_node import YolactNode

SHUTDOWN_LIMIT = 8.0
"""Seconds after a signal until the process is ended even if its network does not respond.

`ros2 launch` and Docker kill after 10.
"""


_ENVIRONMENT = "Is the virtual environment activated that README's Install made?"


def main(args: list[str] | None = None) -> int:
    """Run the node until a signal ends the process with status 0.

    Returns (exit status 1) only if the node cannot be created. A node that does not shut down
    within `SHUTDOWN_LIMIT` is ended with status 1.
    """
    running = False

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if not running:  # still starting: nothing to clean up
            os._exit(0)

    # Whichever thread gets the signal, a byte is written to the socket. It wakes the main thread,
    # even if that starts to wait only later.
    ended, end = socket.socketpair()
    end.setblocking(False)
    signal.set_wakeup_fd(end.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)

    wait_briefly()
    node = _make_node(args)
    if node is None:
        return 1

    def log_warning(message: Warning | str, *_: Any, **__: Any) -> None:
        """Log a Python warning, such as that a GPU has too little memory for CUDA graphs."""
        node.get_logger().warning(str(message))

    warnings.showwarning = log_warning
    import rclpy
    from rclpy.task import Future

    from yolact_ros.node.executor import NodeExecutor, spin

    executor = NodeExecutor()
    executor.add_node(node)
    stopped: Future = Future()

    def work() -> None:
        spin(executor, node, stopped)
        end.send(b"\0")

    # The main thread only waits, so that it handles signals at once.
    spinner = threading.Thread(target=work, name="executor")
    spinner.start()
    running = True
    ended.recv(1)
    # This watchdog does not need the GIL; it prints the stacks of all threads before it exits.
    faulthandler.dump_traceback_later(SHUTDOWN_LIMIT, exit=True)
    if not node.is_configuring:  # a download may take minutes; the next run resumes it
        stopped.set_result(None)
        spinner.join()
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown()
    # Exit at once: the interpreter would take seconds to tear PyTorch down, and a second signal
    # (Ctrl-C arrives directly and through ros2 launch) could kill it meanwhile.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _make_node(args: list[str] | None) -> YolactNode | None:
    """Create the node in rclpy's context; if that fails, report the reason and return None."""
    import rclpy
    from rclpy.exceptions import ParameterException
    from rclpy.signals import SignalHandlerOptions

    try:
        from yolact_ros.node.yolact_node import YolactNode
    except ModuleNotFoundError as error:
        print(f"The node cannot start: {error}. {_ENVIRONMENT}", file=sys.stderr)
        return None
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # bad arguments or a bad parameter file
        print(f"The node cannot start: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    try:
        return YolactNode()
    except (RuntimeError, ValueError, ParameterException) as error:
        rclpy.logging.get_logger("yolact").fatal(f"The node cannot start: {error}")
        rclpy.shutdown()
        return None
