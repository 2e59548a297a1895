"""The thread that takes only the newest item."""

import threading

from yolact_ros.node.worker import Worker


def test_only_the_newest_item_is_taken():
    seen, entered, leave, done = [], *(threading.Event() for _ in range(3))

    def work(item):
        seen.append(item)
        entered.set()
        leave.wait()
        if item == 3:
            done.set()

    worker = Worker(work, "test")
    assert worker.put(0) is None
    assert entered.wait(60)  # 0 is in work: what comes now waits
    assert [worker.put(item) for item in (1, 2, 3)] == [None, 1, 2]
    leave.set()
    assert done.wait(60)
    worker.stop()
    assert seen == [0, 3]


def test_stop_waits_for_the_item_in_work_and_drops_the_waiting_one():
    seen, entered = [], threading.Event()

    def work(item):
        entered.set()
        threading.Event().wait(0.05)
        seen.append(item)

    worker = Worker(work, "test")
    worker.put("in work")
    assert entered.wait(60)
    worker.put("waiting")
    worker.stop()
    assert seen == ["in work"]


def test_stop_without_any_item():
    worker = Worker(lambda item: None, "test")
    worker.stop()
