"""The bounded inbox of one task: any number put items in, one takes them out.

An ``asyncio.Queue`` without what a single reader does not need. A packet's trip through it is most of what an access to a
device outside costs, and the queue's own fifteen calls were half of that. The invariants: items come out in the order they
went in, no more than ``limit`` wait, and no item is lost if whoever waits for it, or for room, is cancelled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Items for the one task that calls :meth:`get`, oldest first. Its length is how many wait."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._items: deque[T] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._writers: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, item: T) -> bool:
        """Put ``item`` in if there is room."""
        items = self._items
        if len(items) >= self.limit:
            return False
        items.append(item)
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)
        return True

    async def put(self, item: T) -> None:
        """Put ``item`` in as soon as there is room."""
        while not self.offer(item):
            room = asyncio.get_running_loop().create_future()
            self._writers.append(room)
            try:
                await room
            except asyncio.CancelledError:
                if room in self._writers:
                    self._writers.remove(room)
                elif not room.cancelled():
                    self._room()  # it was told of room that another can have
                raise

    def take(self) -> T:
        """Take the oldest item out. IndexError when there is none."""
        item = self._items.popleft()
        if self._writers:
            self._room()
        return item

    async def get(self) -> T:
        """Take the oldest item out as soon as there is one."""
        while not self._items:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self.take()

    def _room(self) -> None:
        """Tell the writer that has waited longest."""
        while self._writers:
            room = self._writers.popleft()
            if not room.done():
                room.set_result(None)
                return
