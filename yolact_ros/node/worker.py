"""One thread that works on the newest item of each source and on nothing older."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Source = TypeVar("Source", bound=Hashable)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Begun:
    """Work on some items that goes on without the thread, on a device for instance."""

    done: Callable[[], bool]
    """Whether `finish` would not wait."""
    finish: Callable[[], None]
    """Waits for the rest of the work and does what then remains. Must not raise."""


class Worker(Generic[Source, Item]):
    """Calls `begin(items)` in a thread of its own, whenever it is free and something waits.

    Of each source only the newest item waits; an older one is passed over. At most `max_batch`
    items are taken at once, first those of the sources that were served longest ago, so that none
    starves. `begin` must not raise.

    `begin` may leave work to be finished. That is done at once, unless it would wait while other
    items do: then these are begun with first. So work is finished in the order in which it was
    begun, at most two are begun at a time, and nothing that is done waits for anything.
    """

    def __init__(
        self,
        begin: Callable[[list[Item]], Begun | None],
        sources: Iterable[Source],
        max_batch: int,
        name: str,
    ) -> None:
        self._turns = list(sources)  # the one that was served longest ago is first
        self._max_batch = max_batch
        self._waiting: dict[Source, Item] = {}
        self._stopped = False
        self._changed = threading.Condition()
        # A thread that has ended forgets its arguments, and with `begin` all that this refers to.
        # A program that forgets to stop it must end all the same: the interpreter waits for other
        # threads before it calls what is registered, and kills this kind only afterwards.
        self._thread = threading.Thread(target=self._run, args=(begin,), name=name, daemon=True)
        self._thread.start()
        atexit.register(self.stop)

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
        atexit.unregister(self.stop)

    def _run(self, begin: Callable[[list[Item]], Begun | None]) -> None:
        begun: Begun | None = None
        while begun is not None or self._wait():
            items = self._take() if begun is None or not begun.done() else []
            following = begin(items) if items else None
            if begun is not None:
                begun.finish()
            begun = following

    def _wait(self) -> bool:
        """Whether there is something to begin with, when there is; False when stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._waiting)
            return not self._stopped

    def _take(self) -> list[Item]:
        """What waits now, if anything."""
        with self._changed:
            if self._stopped:
                return []
            served = [s for s in self._turns if s in self._waiting][: self._max_batch]
            self._turns = [source for source in self._turns if source not in served] + served
            return [self._waiting.pop(source) for source in served]
