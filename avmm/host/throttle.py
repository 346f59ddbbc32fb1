"""Whether a write to the page cache is made where it is asked for, or by a thread, as it may take long.

The kernel lets a writer sleep when too much of the page cache is dirty, and tells nobody beforehand: what can be seen is that a
write took long. One that did may also have met a host with other things to do, and threads would not help against that: there the
writer did not sleep, but others ran. So after a slow write it is looked at with each one whether the writer slept (a voluntary context
switch, getrusage(2)). After the next one that was slow and did, a few writes go to the threads, and more each time a try after
them was such again; after many quick ones it is forgotten.

The invariant: of any 64 writes in a row, while each that is made here sleeps long, at most four are made here.
"""

from __future__ import annotations

import resource
from collections.abc import Callable

SLOW = 2_000_000
"""A write that took longer (ns) is a slow one."""
FIRST, FACTOR, MOST = 4, 4, 64
"""Writes for the threads after a slow one that slept, by what they grow, and how far."""
FORGET = 64
"""Quick writes in a row after which nothing is known of slow ones."""


def sleeps() -> int:
    """Return how often this thread has gone to sleep."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class Throttle:
    """Told of each write that was made here how long it :meth:`took`."""

    def __init__(self, sleeps: Callable[[], int] = sleeps) -> None:
        self._sleeps = sleeps
        self._slept = 0  # as it was counted last
        self._left = 0
        self._next = 0  # how many go to the threads after the next slow one; 0 while there was none
        self._quick = 0

    def for_thread(self) -> bool:
        """Whether the next write should be a thread's. Ask once for each."""
        if not self._left:
            return False
        self._left -= 1
        return True

    def took(self, ns: int) -> None:
        """A write was made here."""
        if ns > SLOW or self._next:
            self._look(ns > SLOW)

    def _look(self, slow: bool) -> None:
        before, self._slept = self._slept, self._sleeps()
        self._quick = 0 if slow else self._quick + 1
        if self._quick == FORGET:
            self._next = self._quick = 0
        elif slow and not self._next:
            self._next = FIRST
        elif slow and self._slept != before:
            self._left, self._next = self._next, min(MOST, self._next * FACTOR)
