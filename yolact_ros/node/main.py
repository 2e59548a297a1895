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
    signals = _Signals()
    wait_briefly()
    node = _make_node(args)
    if node is None:
        return 1
    _log_python_warnings(node)
    import rclpy
    from rclpy.task import Future

    from yolact_ros.node.executor import NodeExecutor, spin

    executor = NodeExecutor()
    executor.add_node(node)
    stopped: Future = Future()

    def work() -> None:
        spin(executor, node, stopped)
        signals.wake()

    # The main thread only waits, so that it handles signals at once.
    spinner = threading.Thread(target=work, name="executor")
    spinner.start()
    signals.wait()
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


class _Signals:
    """SIGINT and SIGTERM: they end the process at once until `wait` is called, then its waiting."""

    def __init__(self) -> None:
        self._waited_for = False
        # Whichever thread gets the signal, a byte is written to the socket. It wakes the main
        # thread, even if that starts to wait only later.
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if not self._waited_for:  # still starting: nothing to clean up
            os._exit(0)

    def wait(self) -> None:
        """Wait for a signal or for `wake`."""
        self._waited_for = True
        self._woken.recv(1)

    def wake(self) -> None:
        self._waker.send(b"\0")


def _log_python_warnings(node: YolactNode) -> None:
    """Log Python's warnings, such as that a GPU has too little memory for CUDA graphs."""

    def log(message: Warning | str, *_: Any, **__: Any) -> None:
        node.get_logger().warning(str(message))

    warnings.showwarning = log


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
