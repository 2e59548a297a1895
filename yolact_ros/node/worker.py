"""One thread that works on the newest item of each source and on nothing older."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

Source = TypeVar("Source", bound=Hashable)
Item = TypeVar("Item")


class Worker(Generic[Source, Item]):
    """Calls `work(items)` in a thread of its own, whenever it is free and something waits.

    Of each source only the newest item waits; an older one is passed over. At most `max_batch`
    items are taken at once, first those of the sources that were served longest ago, so that none
    starves. `work` must not raise.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], None],
        sources: Iterable[Source],
        max_batch: int,
        name: str,
    ) -> None:
        self._work = work
        self._turns = list(sources)  # the one that was served longest ago is first
        self._max_batch = max_batch
        self._waiting: dict[Source, Item] = {}
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def put(self, source: Source, item: Item) -> Item | None:
        """Hand over an item. Returns the one that is passed over for it, if any."""
        with self._changed:
            passed_over = self._waiting.get(source)
            self._waiting[source] = item
            self._changed.notify()
        return passed_over

    def stop(self) -> None:
        """Drop what waits and return when the thread has ended: after the items in work, if any."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._waiting)
                if self._stopped:
                    return
                items = self._take()
            self._work(items)

    def _take(self) -> list[Item]:
        served = [source for source in self._turns if source in self._waiting][: self._max_batch]
        self._turns = [source for source in self._turns if source not in served] + served
        return [self._waiting.pop(source) for source in served]
