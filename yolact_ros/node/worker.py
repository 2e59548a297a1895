"""A thread that processes only the newest item of each source."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Source = TypeVar("Source", bound=Hashable)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Job:
    """Begun work that continues asynchronously, for example on a device."""

    done: Callable[[], bool]
    """Whether `finish` would return without waiting."""
    finish: Callable[[], None]
    """Waits for the work and completes it. Must not raise."""


class Worker(Generic[Source, Item]):
    """Calls `begin(items)` in its own thread whenever it is idle and items are waiting.

    Only the newest item of each source waits; older ones are dropped. At most `max_batch` items are
    taken at once, least recently served sources first, so that none starves. `begin` must not
    raise.

    `begin` may return a job. It is finished at once, unless that would block while other items are
    waiting: those are begun first. Jobs therefore finish in the order in which they were begun, at
    most two are in flight, and a job that is done is never held up.
    """

    def __init__(
        self,
        begin: Callable[[list[Item]], Job | None],
        sources: Iterable[Source],
        max_batch: int,
        name: str,
    ) -> None:
        self._turns = list(sources)  # least recently served first
        self._max_batch = max_batch
        self._waiting: dict[Source, Item] = {}
        self._stopped = False
        self._changed = threading.Condition()
        # `begin` is an argument since a thread drops its arguments, and all that they refer to,
        # when it ends. The thread is a daemon so that a program that forgets to stop it can exit:
        # the interpreter joins other threads before it runs atexit handlers, daemons it kills
        # only afterwards.
        self._thread = threading.Thread(target=self._run, args=(begin,), name=name, daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def put(self, source: Source, item: Item) -> Item | None:
        """Hand over an item. Returns the older one that it replaces, if any."""
        with self._changed:
            passed_over = self._waiting.get(source)
            self._waiting[source] = item
            self._changed.notify()
        return passed_over

    def stop(self) -> list[Item]:
        """Finish items in progress and join the thread. Returns waiting items, now dropped."""
        with self._changed:
            self._stopped = True
            dropped, self._waiting = [*self._waiting.values()], {}
            self._changed.notify()
        self._thread.join()
        atexit.unregister(self.stop)
        return dropped

    def _run(self, begin: Callable[[list[Item]], Job | None]) -> None:
        job: Job | None = None
        while job is not None or self._wait():
            items = self._take() if job is None or not job.done() else []
            next_job = begin(items) if items else None
            if job is not None:
                job.finish()
            job = next_job

    def _wait(self) -> bool:
        """Wait for an item; return False if stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._waiting)
            return not self._stopped

    def _take(self) -> list[Item]:
        """Take the items of the next batch, which may be empty."""
        with self._changed:
            if self._stopped:
                return []
            served = [s for s in self._turns if s in self._waiting][: self._max_batch]
            self._turns = [source for source in self._turns if source not in served] + served
            return [self._waiting.pop(source) for source in served]
