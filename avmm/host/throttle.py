"""Whether a write to the page cache is made where it is asked for, or by a thread, as it may take long.

The kernel lets a writer sleep when too much of the page cache is dirty, and tells nobody beforehand: what can be seen is that a
write took long. One that did may also have met a journal commit, or a host with other things to do. So the first time only a few
of the next writes go to the threads, and more each time a try after them was slow again; after many quick ones it is forgotten.

The invariant: of any 64 writes in a row, while each that is made here is slow, at most three are made here.
"""

from __future__ import annotations

from typing import Final

SLOW = 2_000_000
"""A write that took longer (ns) is a slow one."""
FIRST: Final = 4
FACTOR: Final = 4
MOST: Final = 64
"""Writes for the threads after a slow one, by what they grow, and how far."""
FORGET: Final = 64
"""Quick writes in a row after which nothing is known of slow ones."""


class Throttle:
    """Told of each write that was made here how long it :meth:`took`."""

    def __init__(self) -> None:
        self._slow = SLOW
        self._left = 0
        self._next = FIRST
        self._quick = 0

    def for_thread(self) -> bool:
        """Whether the next write should be a thread's. Ask once for each."""
        if not self._left:
            return False
        self._left -= 1
        return True

    def took(self, ns: int) -> None:
        """A write was made here."""
        if ns > self._slow:
            self._left, self._quick = self._next, 0
            self._next = min(MOST, self._next * FACTOR)
        elif self._next > FIRST:
            self._quick += 1
            if self._quick == FORGET:
                self._next, self._quick = FIRST, 0
