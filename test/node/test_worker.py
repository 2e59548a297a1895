"""The thread that takes only the newest item of each source."""

import itertools
import threading

from yolact_ros.node.worker import Worker


class Work:
    """Records what it is called with; `begin` waits until it is called, `leave` lets it return."""

    def __init__(self):
        self.seen = []
        self._entered, self._leave = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, items):
        self.seen.append(items)
        self._entered.release()
        assert self._leave.acquire(timeout=60)

    def begin(self):
        assert self._entered.acquire(timeout=60)

    def leave(self):
        self._leave.release()


def test_only_the_newest_item_is_taken():
    work = Work()
    worker = Worker(work, ["camera"], 1, "test")
    assert worker.put("camera", 0) is None
    work.begin()  # 0 is in work: what comes now waits
    assert [worker.put("camera", item) for item in (1, 2, 3)] == [None, 1, 2]
    work.leave()
    work.begin()
    work.leave()
    worker.stop()
    assert work.seen == [[0], [3]]


def test_what_waits_is_taken_together_up_to_the_limit():
    work = Work()
    worker = Worker(work, "abcd", 3, "test")
    worker.put("a", "a0")
    work.begin()
    for source in "dcba":
        worker.put(source, source + "1")
    assert worker.put("d", "d2") == "d1"
    for _ in range(2):
        work.leave()
        work.begin()
    work.leave()
    worker.stop()
    assert work.seen == [["a0"], ["b1", "c1", "d2"], ["a1"]]


def test_no_source_starves():
    work = Work()
    worker = Worker(work, range(5), 2, "test")
    for source in range(5):
        worker.put(source, source)
    for i in range(50):
        work.begin()
        for source in range(5):  # everything is there again each time
            worker.put(source, source)
        if i == 49:
            break
        work.leave()
    served = [item for items in work.seen[1:] for item in items]
    threading.Timer(0.05, work.leave).start()
    worker.stop()
    assert all(len(items) == 2 for items in work.seen[1:])
    for source in range(5):
        turns = [i for i, item in enumerate(served) if item == source]
        assert max(b - a for a, b in itertools.pairwise(turns)) == 5


def test_stop_waits_for_the_item_in_work_and_drops_the_waiting_one():
    work = Work()
    worker = Worker(work, ["camera"], 1, "test")
    worker.put("camera", "in work")
    work.begin()
    worker.put("camera", "waiting")
    threading.Timer(0.05, work.leave).start()
    worker.stop()
    assert work.seen == [["in work"]]


def test_stop_without_any_item():
    worker = Worker(lambda items: None, ["camera"], 1, "test")
    worker.stop()
