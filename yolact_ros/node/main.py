"""The executable `yolact_node`: runs the node until SIGINT or SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

SPIN_THREADS = 3
"""Lifecycle transitions may take long; parameters, images and diagnostics go on beside them."""


def main(args: list[str] | None = None) -> int:
    """Run the node. Returns the exit status: 0 after a signal, 1 for a node that cannot run."""
    stop = threading.Event()
    running = False

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if not running:  # still importing: nothing to tidy up
            os._exit(0)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)

    import rclpy
    from rclpy.exceptions import ParameterException
    from rclpy.executors import MultiThreadedExecutor
    from rclpy.signals import SignalHandlerOptions
    from rclpy.task import Future

    from yolact_ros.node.yolact_node import YolactNode

    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = YolactNode()
    except (ValueError, ParameterException) as error:
        rclpy.logging.get_logger("yolact").fatal(f"The node cannot start: {error}")
        rclpy.shutdown()
        return 1
    executor = MultiThreadedExecutor(SPIN_THREADS)
    executor.add_node(node)
    stopped: Future[None] = Future()

    def spin() -> None:
        while rclpy.ok() and not stopped.done():
            try:
                executor.spin_until_future_complete(stopped)
            except Exception as error:  # of a callback: the node goes on
                node.get_logger().error(f"A callback failed: {error!r}")
        stop.set()

    # The main thread only waits, so that it takes signals at once.
    spinner = threading.Thread(target=spin, name="executor")
    spinner.start()
    running = True
    stop.wait()
    if node.is_configuring:  # a download may take minutes; the next one goes on where it ends
        os._exit(0)
    stopped.set_result(None)
    spinner.join()
    executor.shutdown()
    node.close()
    node.destroy_node()
    rclpy.shutdown()
    # A second signal (Ctrl-C reaches the node directly and through ros2 launch) must not kill the
    # interpreter while it ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return 0
