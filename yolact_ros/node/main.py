"""The executable `yolact_node`: runs the node until SIGINT or SIGTERM."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

SPIN_THREADS = 3
"""Lifecycle transitions may take long; parameters, images and diagnostics go on beside them."""


def main(args: list[str] | None = None) -> int:
    """Run the node. Returns the exit status: 0 after a signal, 1 for a node that cannot run."""
    # Before the imports, which take seconds: a signal then ends the process just as cleanly.
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
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
    failures: list[BaseException] = []

    def spin() -> None:
        try:
            executor.spin_until_future_complete(stopped)
        except BaseException as error:  # reported by the main thread
            failures.append(error)
        finally:
            stop.set()

    # The main thread only waits, so that it takes signals at once.
    spinner = threading.Thread(target=spin, name="executor")
    spinner.start()
    stop.wait()
    stopped.set_result(None)
    spinner.join()
    executor.shutdown()
    node.close()
    node.destroy_node()
    rclpy.shutdown()
    if failures:
        print(f"yolact_node: {failures[0]!r}", file=sys.stderr)
        return 1
    return 0
