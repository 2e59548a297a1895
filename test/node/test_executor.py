"""What calls the node's callbacks: which thread, how often, and until when."""

import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("yolact_ros.msg", reason="needs the messages of this package, built")

import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import SingleThreadedExecutor
from rclpy.task import Future
from std_msgs.msg import Int32
from std_srvs.srv import Empty

from yolact_ros.node.executor import THREADS, NodeExecutor, spin


@pytest.fixture
def executor(graph):
    """An executor of the node's kind, which the test itself spins."""
    executor = NodeExecutor(context=graph.context)
    yield executor
    executor.shutdown()


@pytest.fixture
def node(graph, executor):
    """A plain node in it."""
    node = rclpy.create_node("called", context=graph.context)
    executor.add_node(node)
    yield node
    node.destroy_node()


def spin_until(executor, condition, patience=20):
    """How many turns it took."""
    turns, end = 0, time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "nothing came of it"
        executor.spin_once(timeout_sec=0.1)
        turns += 1
    return turns


def test_a_message_takes_one_turn_in_the_thread_that_spins(graph, executor, node):
    """However busy the machine is: rclpy's own takes hundreds where threads cannot begin."""
    received, threads = [], set()

    def take(message):
        received.append(message.data)
        threads.add(threading.current_thread())

    node.create_subscription(Int32, "/numbers", take, 100)
    publisher = graph.client.create_publisher(Int32, "/numbers", 100)
    graph.wait_until(lambda: publisher.get_subscription_count(), "the subscription")
    for number in range(50):
        publisher.publish(Int32(data=number))
    turns = spin_until(executor, lambda: len(received) == 50)
    assert received == list(range(50)) and threads == {threading.current_thread()}
    assert turns < 100


def test_messages_come_while_all_threads_are_busy_and_one_more_call_waits(graph, executor, node):
    begun, release, received = [], threading.Event(), []

    def work(request, response):
        begun.append(threading.current_thread())
        assert release.wait(30)
        return response

    node.create_service(Empty, "/work", work, callback_group=ReentrantCallbackGroup())
    node.create_subscription(Int32, "/numbers", lambda message: received.append(message), 10)
    client = graph.client.create_client(Empty, "/work")
    publisher = graph.client.create_publisher(Int32, "/numbers", 10)
    graph.wait_until(client.service_is_ready, "the service")
    graph.wait_until(lambda: publisher.get_subscription_count(), "the subscription")
    answers = []
    for _ in range(THREADS + 1):  # one at a time: a service keeps only some requests
        answers.append(client.call_async(Empty.Request()))
        spin_until(executor, lambda: len(begun) == min(len(answers), THREADS))
    for count in range(1, 6):
        publisher.publish(Int32())
        spin_until(executor, lambda: len(received) == count)  # noqa: B023
    assert len(begun) == THREADS and threading.current_thread() not in begun
    release.set()
    spin_until(executor, lambda: all(answer.done() for answer in answers))
    assert len(begun) == THREADS + 1, "each is called once"


def test_a_service_answers_beside_several_that_wait(graph, executor, node):
    """As parameters do while several nodes load."""
    begun, release = [], threading.Event()

    def work(request, response):
        begun.append(None)
        assert release.wait(30)
        return response

    node.create_service(Empty, "/work", work, callback_group=ReentrantCallbackGroup())
    node.create_service(
        Empty, "/quick", lambda _, response: response, callback_group=ReentrantCallbackGroup()
    )
    slow, quick = (graph.client.create_client(Empty, name) for name in ("/work", "/quick"))
    for client in (slow, quick):
        graph.wait_until(client.service_is_ready, "the service")
    waiting = [slow.call_async(Empty.Request()) for _ in range(4)]
    spin_until(executor, lambda: len(begun) == 4)
    answer = quick.call_async(Empty.Request())
    spin_until(executor, answer.done)
    assert not any(each.done() for each in waiting)
    release.set()
    spin_until(executor, lambda: all(each.done() for each in waiting))


def test_it_spins_until_a_future_is_done(executor, node):
    """As programs do that call services."""
    future = Future()
    node.create_timer(0.05, lambda: future.set_result("done"))
    executor.spin_until_future_complete(future, timeout_sec=20)
    assert future.result() == "done"


@pytest.mark.parametrize("kind", ["message", "timer"])
def test_what_a_callback_raises_comes_out(graph, executor, node, kind):
    def stumble(*_):
        raise RuntimeError("of a callback")

    if kind == "timer":
        node.create_timer(0.01, stumble)
    else:
        node.create_subscription(Int32, "/numbers", stumble, 10)
        publisher = graph.client.create_publisher(Int32, "/numbers", 10)
        graph.wait_until(lambda: publisher.get_subscription_count(), "the subscription")
        publisher.publish(Int32())
    with pytest.raises(RuntimeError, match="of a callback"):
        spin_until(executor, lambda: False)


@pytest.mark.parametrize("kind", ["message", "timer"])
def test_coroutines_go_on_when_what_they_await_is_done(graph, executor, node, kind):
    group, finished = ReentrantCallbackGroup(), []
    client = node.create_client(Empty, "/work", callback_group=group)
    node.create_service(Empty, "/work", lambda _, response: response, callback_group=group)

    async def ask(*_):
        await client.call_async(Empty.Request())
        finished.append(True)

    if kind == "timer":
        node.create_timer(0.01, ask, callback_group=group)
    else:
        node.create_subscription(Int32, "/numbers", ask, 10, callback_group=group)
        publisher = graph.client.create_publisher(Int32, "/numbers", 10)
        graph.wait_until(lambda: publisher.get_subscription_count(), "the subscription")
        publisher.publish(Int32())
    spin_until(executor, lambda: finished)


def test_shutdown_does_not_wait_for_what_nobody_continues(executor, node):
    """A coroutine that still awaits something."""
    begun = threading.Event()

    async def ask():
        begun.set()
        await Future()

    node.create_timer(0.01, ask)
    spin_until(executor, begun.is_set)
    ended = threading.Thread(target=executor.shutdown, daemon=True)
    ended.start()
    ended.join(10)
    assert not ended.is_alive()


def test_a_message_may_shut_it_down(graph, executor, node):
    ended = []
    node.create_subscription(Int32, "/numbers", lambda _: ended.append(executor.shutdown()), 10)
    publisher = graph.client.create_publisher(Int32, "/numbers", 10)
    graph.wait_until(lambda: publisher.get_subscription_count(), "the subscription")
    publisher.publish(Int32())
    spinning = threading.Thread(target=executor.spin_once, args=(20,), daemon=True)
    spinning.start()
    spinning.join(30)
    assert ended == [True] and not spinning.is_alive()


def test_shutdown_does_not_wait_longer_than_it_is_told(executor, node):
    begun, release = threading.Event(), threading.Event()

    def work():
        begun.set()
        assert release.wait(30)

    node.create_timer(0.01, work)
    spin_until(executor, begun.is_set)
    assert not executor.shutdown(timeout_sec=0.05)
    release.set()
    assert executor.shutdown()


class CountedFuture(Future):
    """Counts what is to be called when it is done."""

    callbacks = 0

    def add_done_callback(self, callback):
        self.callbacks += 1
        super().add_done_callback(callback)


def test_spinning_keeps_nothing_of_what_was_called(graph):
    """Some versions of rclpy keep a function for each callback of the node."""
    node, stopped = rclpy.create_node("spun", context=graph.context), CountedFuture()
    executor = SingleThreadedExecutor(context=graph.context)
    executor.add_node(node)
    called = []
    node.create_timer(0.005, lambda: called.append(stopped.callbacks))
    thread = threading.Thread(target=spin, args=(executor, node, stopped), daemon=True)
    thread.start()
    graph.wait_until(lambda: len(called) > 50, "50 callbacks")
    assert called[-1] == called[0]
    stopped.set_result(None)
    thread.join(10)
    assert not thread.is_alive()
    executor.shutdown()
    node.destroy_node()


def test_spinning_goes_on_after_an_error_and_says_where_it_was(graph, capfd):
    node, stopped = rclpy.create_node("spun", context=graph.context), Future()
    executor = SingleThreadedExecutor(context=graph.context)
    executor.add_node(node)
    called = []

    def stumble():
        called.append(1)
        raise RuntimeError("of a callback")

    node.create_timer(0.01, stumble)
    thread = threading.Thread(target=spin, args=(executor, node, stopped), daemon=True)
    thread.start()
    graph.wait_until(lambda: len(called) > 2, "more callbacks")
    stopped.set_result(None)
    thread.join(10)
    assert not thread.is_alive()
    told = capfd.readouterr().err
    assert "A callback failed" in told and "in stumble" in told
    executor.shutdown()
    node.destroy_node()


def test_spinning_ends_with_the_executor(graph):
    """As in a program that shuts its executor down and waits for the thread that spins it."""
    node = rclpy.create_node("spun", context=graph.context)
    executor = SingleThreadedExecutor(context=graph.context)
    executor.add_node(node)
    thread = threading.Thread(target=spin, args=(executor, node, Future()), daemon=True)
    thread.start()
    executor.shutdown()
    thread.join(10)
    assert not thread.is_alive()
    node.destroy_node()


SPUN_BESIDE_THE_MAIN_THREAD = """
import threading
import rclpy
from rclpy.executors import MultiThreadedExecutor
from rclpy.task import Future
from yolact_ros.node.executor import spin
rclpy.init()
node, executor = rclpy.create_node("spun"), MultiThreadedExecutor()
node.create_timer(0.1, lambda: None)
executor.add_node(node)
threading.Thread(target=spin, args=(executor, node, Future())).start()
raise ValueError("of the main thread")
"""


def test_spinning_ends_with_the_main_thread():
    """As in a program whose main thread stumbled: it would stay for ever."""
    command = [sys.executable, "-c", SPUN_BESIDE_THE_MAIN_THREAD]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1 and "of the main thread" in ended.stderr
