"""The thread that takes only the newest item of each source."""

import itertools
import queue
import threading

from yolact_ros.node.worker import Job, Worker


class Work:
    """Records what it is called with; `begin` waits until it is called, `leave` lets it return."""

    def __init__(self):
        self.seen, self.left = [], []
        self._entered, self._leave = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, items):
        self.seen.append(items)
        self._entered.release()
        assert self._leave.acquire(timeout=60)
        self.left.append(items)

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
    assert worker.stop() == ["waiting"]
    assert work.seen == work.left == [["in work"]]


def test_stop_without_any_item():
    worker = Worker(lambda items: None, ["camera"], 1, "test")
    assert worker.stop() == []


class Device:
    """Works by itself on what `begin` gives it, until `complete`; records what happens to it."""

    def __init__(self):
        self.happened = queue.Queue()
        self._completed = threading.Semaphore(0)
        self._done = set()

    def begin(self, items):
        self.happened.put(("begun", *items))
        return Job(lambda: items[0] in self._done, lambda: self._finish(items))

    def _finish(self, items):
        self.happened.put(("awaited", *items))
        assert self._completed.acquire(timeout=60)
        self.happened.put(("finished", *items))

    def complete(self, *items):
        """It is done with these, whether they are waited for or not."""
        self._done.update(items)
        self._completed.release(len(items))

    def next(self, count):
        return [self.happened.get(timeout=60) for _ in range(count)]


class Gate:
    """A `begin` that is entered, but gives its items to the device only once it is opened."""

    def __init__(self, begin):
        self._begin = begin
        self._entered, self._opened = threading.Event(), threading.Event()

    def __call__(self, items):
        self._entered.set()
        assert self._opened.wait(60)
        return self._begin(items)

    def wait_until_entered(self):
        assert self._entered.wait(60)

    def open(self):
        self._opened.set()


def test_what_nothing_waits_behind_is_finished_at_once():
    device = Device()
    worker = Worker(device.begin, ["camera"], 1, "test")
    for i in range(3):
        worker.put("camera", i)
        assert device.next(2) == [("begun", i), ("awaited", i)]
        device.complete(i)
        assert device.next(1) == [("finished", i)]
    worker.stop()
    assert device.happened.empty()


def test_the_next_items_are_begun_with_while_the_device_works():
    device = Device()
    gate = Gate(device.begin)
    worker = Worker(gate, ["camera"], 1, "test")
    worker.put("camera", 0)
    gate.wait_until_entered()
    worker.put("camera", 1)  # is there before the device has 0
    gate.open()
    # Two are begun, never three, and they are finished in their order.
    assert device.next(3) == [("begun", 0), ("begun", 1), ("awaited", 0)]
    assert [worker.put("camera", i) for i in (2, 3)] == [None, 2]
    device.complete(0)
    assert device.next(3) == [("finished", 0), ("begun", 3), ("awaited", 1)]
    worker.put("camera", 4)
    # With 3 done there is something to finish: 4 has to wait.
    device.complete(1, 3)
    assert device.next(4) == [("finished", 1), ("awaited", 3), ("finished", 3), ("begun", 4)]
    device.complete(4)
    worker.stop()
    assert device.next(2) == [("awaited", 4), ("finished", 4)]


def test_what_is_done_at_once_waits_for_nothing():
    device = Device()

    def begin(items):
        device.complete(*items)
        return device.begin(items)

    gate = Gate(begin)
    worker = Worker(gate, "ab", 1, "test")
    worker.put("a", 0)
    gate.wait_until_entered()
    worker.put("b", 1)
    gate.open()
    steps = ("begun", "awaited", "finished")
    assert device.next(6) == [(step, i) for i in (0, 1) for step in steps]
    worker.stop()


def test_stop_finishes_all_that_the_device_has():
    device = Device()
    gate = Gate(device.begin)
    worker = Worker(gate, ["camera"], 1, "test")
    worker.put("camera", 0)
    gate.wait_until_entered()
    worker.put("camera", 1)
    gate.open()
    assert device.next(3) == [("begun", 0), ("begun", 1), ("awaited", 0)]
    worker.put("camera", 2)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    while worker.put("camera", 2) is not None:  # until what waited is dropped
        pass
    device.complete(0, 1)
    stopping.join(60)
    assert device.next(3) == [("finished", 0), ("awaited", 1), ("finished", 1)]
    assert device.happened.empty()
