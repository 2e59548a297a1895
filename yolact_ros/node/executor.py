"""The executor that runs the node's callbacks."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future as Call
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from rclpy.context import Context
from rclpy.exceptions import InvalidHandle
from rclpy.executors import (
    ConditionReachedException,
    Executor,
    ExternalShutdownException,
    ShutdownException,
    SingleThreadedExecutor,
    TimeoutException,
)
from rclpy.node import Node
from rclpy.subscription import Subscription
from rclpy.task import Future, Task

THREADS = 8
"""At most; they start on demand. The transition of a node takes one while its model loads, and the
others serve parameters and diagnostics of all nodes."""

_POLL_PERIOD = 0.001
"""Seconds until the executor looks again at a callback that rclpy keeps returning: one that has not
begun yet, or a coroutine that awaits something."""

_NOTHING_TO_CALL = (
    TimeoutException,
    ConditionReachedException,
    ShutdownException,
    ExternalShutdownException,
)


class NodeExecutor(SingleThreadedExecutor):
    """Runs subscription callbacks in the spinning thread, all others in a thread pool.

    Subscription callbacks must be short. rclpy's MultiThreadedExecutor hands them to threads too,
    and keeps handing over the same callback until its thread has started: when all cores are busy
    it does nothing else for seconds, and images that arrive meanwhile are lost.
    """

    def __init__(self, *, context: Context | None = None) -> None:
        super().__init__(context=context)
        self._threads = ThreadPoolExecutor(THREADS, "callbacks")
        self._calls: dict[Task[Any], Call[None]] = {}
        """The newest call, in a thread, of each callback that is not known to be done."""

    def _spin_once_impl(
        self,
        timeout_sec: Any = None,
        wait_condition: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run the next callback or hand it to a thread; all spin methods of rclpy call this.

        Raises what a callback raised, here or in a thread since the last call.
        """
        try:
            task, entity, _ = self.wait_for_ready_callbacks(timeout_sec, None, wait_condition)
        except _NOTHING_TO_CALL:
            return
        if entity is None or isinstance(entity, Subscription):
            task()
            _raise_error_of(task)
        elif not task.done():
            call = self._calls.get(task)
            if call is not None:
                time.sleep(_POLL_PERIOD)
            if call is None or call.done():  # new, or a coroutine that awaits something
                self._calls[task] = self._threads.submit(task)
        for done in [each for each in self._calls if each.done()]:
            del self._calls[done]
            _raise_error_of(done)

    def shutdown(self, timeout_sec: float | None = None) -> bool:
        """Stop running callbacks and wait for those in threads; return False after `timeout_sec`.

        None or a negative number mean no limit. Coroutines that await something are left.
        """
        if timeout_sec is not None and timeout_sec < 0:
            timeout_sec = None
        super().shutdown(timeout_sec)  # which does not wait
        self._threads.shutdown(wait=timeout_sec is None)
        return timeout_sec is None or not wait(self._calls.values(), timeout_sec).not_done


def _raise_error_of(task: Task[Any]) -> None:
    error = task.exception()
    if error is not None:
        raise error


def spin(executor: Executor, node: Node, stopped: Future[Any]) -> None:
    """Run the callbacks of a node; log what they raise and go on.

    Returns when `stopped` has a result, when rclpy is shut down, when the executor has no nodes (as
    after its own shutdown), and after the next callback once the main thread has ended.
    """

    def wake(_: Future[Any]) -> None:
        executor.create_task(lambda: None)  # makes spin_once return

    stopped.add_done_callback(wake)
    # Not spin_until_future_complete: rclpy 7.1.6 (Jazzy) adds a done callback to the future for
    # each callback of the node.
    while executor.context.ok() and executor.get_nodes() and not stopped.done():
        if not threading.main_thread().is_alive():  # thread pools accept no more work
            return
        try:
            executor.spin_once()
        except (InvalidHandle, ExternalShutdownException):
            continue  # a subscription was destroyed while rclpy looked at it, or rclpy is shut down
        except Exception:  # raised by a callback: the node goes on
            node.get_logger().error(f"A callback failed: {traceback.format_exc()}")
