"""One thread that works on the newest item and on nothing older."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Worker(Generic[Item]):
    """Calls `work(item)` in a thread of its own, for the newest item whenever it is free.

    An item that waits when a newer one comes is passed over. `work` must not raise.
    """

    def __init__(self, work: Callable[[Item], None], name: str) -> None:
        self._work = work
        self._waiting: Item | None = None
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def put(self, item: Item) -> Item | None:
        """Hand over an item. Returns the one that is passed over for it, if any."""
        with self._changed:
            passed_over, self._waiting = self._waiting, item
            self._changed.notify()
        return passed_over

    def stop(self) -> None:
        """Drop what waits and return when the thread has ended: after the item in work, if any."""
        with self._changed:
            self._stopped, self._waiting = True, None
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._waiting is not None)
                if self._stopped:
                    return
                item, self._waiting = self._waiting, None
            assert item is not None
            self._work(item)
