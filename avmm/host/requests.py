"""What travels inside VM-H, and the tasks it travels through: the storage request and the stage.

A stage is an asyncio task with a name and one bounded inbox. Requests go down from inbox to inbox; answers come back up
by completion routines, last one pushed first, in the task that finished the request. A storage stage that is idle, nothing
served and nothing in the inbox, begins a request in the task that offers it; what the request then has to wait for is waited
for in the stage's own task. So the order is that of the inbox, and a cached read costs no task switch.

A prompt request, one whose ``pieces`` are a guest's memory, passes a stack in which nothing else is under way as plain calls
(:meth:`StorageStage.at_once`) and is performed before the first of them returns, or not at all. It is no object, as nobody
waits for it; nor does any request keep its path (``hops``) while nobody watches the disk.

The invariant: a request given to a stage is finished exactly once, by an answer or by an error, even if the task that
holds it is cancelled.
"""

from __future__ import annotations

import asyncio
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from time import monotonic_ns
from typing import Any, Generic, TypeVar

from mypy_extensions import mypyc_attr

from avmm.devices.block import BlockError, BlockFault
from avmm.host.inbox import Inbox
from avmm.started import Started

Data = bytes | bytearray | memoryview
Hops = list[tuple[str, int]]
"""Where a request has been: (task name, host monotonic ns)."""
T = TypeVar("T")

INBOX = 64
"""Room in a stage's inbox, if nothing else is said."""


class StageEnded(Exception):
    """The task that should have served the request has ended."""


class Op(enum.Enum):
    """What is asked of the medium."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    DISCARD = "discard"


class StorageRequest:
    """One request for the medium, with the id it has had since the trap (or the ring), and its path if somebody wants to know."""

    __slots__ = ("_routines", "began", "count", "data", "error", "finished", "hops", "id", "lba", "op")

    def __init__(self, id: int, op: Op, lba: int = 0, count: int = 0, data: Data = b"", *, hops: Hops | None = None) -> None:
        self.id = id
        self.op = op
        self.lba = lba
        self.count = count
        self.data = data
        """The sectors to write, or those that were read."""
        self.error: BaseException | None = None
        self.finished = False
        self.began = monotonic_ns()
        self.hops = hops
        """Its path so far; None while nobody watches."""
        self._routines: list[Callable[[StorageRequest], None]] = []

    def hop(self, name: str) -> None:
        """Note that the request has reached ``name``."""
        if self.hops is not None:
            self.hops.append((name, monotonic_ns()))

    def on_finish(self, routine: Callable[[StorageRequest], None]) -> None:
        """Have ``routine(request)`` called when the request is finished, before the routines pushed earlier."""
        self._routines.append(routine)

    def finish(self, data: Data | None = None, error: BaseException | None = None) -> None:
        """Answer the request. Only the first answer counts."""
        if self.finished:
            return
        self.finished = True
        self.error = error
        if data is not None:
            self.data = data
        routines = self._routines
        while routines:
            routines.pop()(self)

    def overlaps(self, other: StorageRequest) -> bool:
        """Whether both touch a common sector and at least one changes it."""
        if self.op is Op.READ and other.op is Op.READ:
            return False
        return self.lba < other.lba + other.count and other.lba < self.lba + self.count

    def __repr__(self) -> str:
        return f"<StorageRequest {self.id} {self.op.value} {self.lba}+{self.count}>"


@mypyc_attr(allow_interpreted_subclasses=True)
class Stage(ABC, Generic[T]):
    """A task called ``name`` that performs what arrives in its bounded ``inbox``, one after the other."""

    def __init__(self, name: str, limit: int = INBOX) -> None:
        self.name = name
        self.inbox: Inbox[T | Started[None]] = Inbox(limit)
        self.task: asyncio.Task[None] | None = None
        self.ended = False
        self._current: T | None = None

    @abstractmethod
    def perform(self, item: T) -> Coroutine[Any, Any, None]:
        """Serve one item; return when the next one may be served. An exception rejects this item and nothing else."""

    @abstractmethod
    def reject(self, item: T, error: Exception) -> None:
        """Answer ``item`` with ``error``. It may have been answered already."""

    def start(self, group: asyncio.TaskGroup | None = None) -> None:
        """Start the task, in ``group`` if there is one."""
        make = asyncio.create_task if group is None else group.create_task
        self.task = make(self._run(), name=self.name)
        # A callback, not a `finally` in _run: a task cancelled before its first step never enters its coroutine.
        self.task.add_done_callback(self._end)

    def offer(self, item: T) -> bool:
        """Put ``item`` into the inbox if there is room. Ended stages take everything and reject it."""
        if self.ended:
            self.reject(item, self._ended_error())
            return True
        return self.inbox.offer(item)

    async def put(self, item: T) -> None:
        """Put ``item`` into the inbox, waiting for room: a stage that is behind holds up the one before it."""
        if not self.offer(item):
            await self.inbox.put(item)
            if self.ended:
                self._drain()

    async def stop(self) -> None:
        """Cancel the task and return when it has ended; what it held has been rejected."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait((self.task,))
            self._end(self.task)

    async def _run(self) -> None:
        inbox = self.inbox
        while True:
            item = inbox.take() if inbox else await inbox.get()
            if isinstance(item, Started):
                await self._go_on(item)
                continue
            self._current = item
            try:
                await self.perform(item)
            except Exception as error:
                self.reject(item, error)
            self._current = None

    async def _go_on(self, started: Started[None]) -> None:
        current = self._current
        assert current is not None
        try:
            await started
        except Exception as error:
            self.reject(current, error)
        self._current = None

    def _start_here(self, item: T) -> None:
        """Serve an item at once, the stage being idle, as far as it goes without waiting; the stage's task does the rest."""
        self._current = item
        work = self.perform(item)
        try:
            blocker = work.send(None)
        except StopIteration:
            self._current = None
        except Exception as error:
            self._current = None
            self.reject(item, error)
        else:
            self.inbox.offer(Started(work, blocker))  # idle: there is room

    def _end(self, task: asyncio.Task[None]) -> None:
        self.ended = True
        if self._current is not None:
            self.reject(self._current, self._ended_error())
            self._current = None
        self._drain()

    def _drain(self) -> None:
        while self.inbox:
            item = self.inbox.take()
            if isinstance(item, Started):
                item.coroutine.close()  # its item is the current one
            else:
                self.reject(item, self._ended_error())

    def _ended_error(self) -> StageEnded:
        return StageEnded(f"task {self.name} has ended")


@mypyc_attr(allow_interpreted_subclasses=True)
class StorageStage(Stage[StorageRequest]):
    """A stage of the storage stack: what it cannot perform is finished with the error; when it has ended, the medium has gone."""

    def offer(self, item: StorageRequest) -> bool:
        """Begin ``item`` at once if the stage is idle, otherwise as any stage does."""
        if self._current is None and self.task is not None and not self.ended and not self.inbox:
            self._start_here(item)
            return True
        return super().offer(item)

    def at_once(self, op: Op, lba: int, count: int, pieces: Sequence[memoryview], hops: Hops | None) -> bool:
        """Read into ``pieces`` or write them now, nothing else being in the stack, or return False: it would have to wait.

        Raises BlockError. In ``hops`` it notes that the request was here, if somebody watches.
        """
        return False

    def reject(self, item: StorageRequest, error: Exception) -> None:
        item.finish(error=BlockError(BlockFault.NO_MEDIUM, item.lba, str(error)) if isinstance(error, StageEnded) else error)
