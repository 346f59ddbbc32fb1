"""Guests of several machines at once, on several processors of the host: the ``threads`` option.

Each machine's run loop has a thread of its own. The threads run in rounds: the event loop stands still, those whose turn it is
run until they have something to wait for (the end of their slice, at the latest), and when the last one waits the event loop
goes on. Within a round guest code, which is native, executes in parallel; Python does not: a thread has the *house lock* from
the moment it comes back from guest code until it returns there, so that an exit is as undivided as with one thread.

The rule, for everybody: **what belongs to a machine (its devices, memory, processor, clock, timers) is touched by the event loop
between rounds, and by the machine's own thread with the house lock within one; what belongs to no machine (VM-H, asyncio's futures
and queues, the schedule) by whoever runs Python.** Nothing else needs a lock, a thread-safe queue or ``call_soon_threadsafe``.

Rounds begin and end at the same places as slices in one thread do: in virtual time a machine computes the same.

The invariant: outside of a round every thread waits in :meth:`ThreadFiber.wait`, or has ended.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any

PATIENCE = 4
"""Turns of the event loop for which a round waits for machines that have a turn and are on their way to it."""


class Rounds:
    """The rounds of one event loop; at most ``threads`` machines run at once, and ``expected()`` says how many a round should have."""

    def __init__(self, threads: int, expected: Callable[[], int]) -> None:
        self.threads = threads
        self.house = threading.Lock()
        self.rounds = 0
        """How often the event loop stood still for guests."""
        self.parallel = 0
        """In how many of them more than one machine ran."""
        self._expected = expected
        self._members: list[ThreadFiber] = []
        self._patience: asyncio.Handle | None = None
        self._stops = self._seen = 0  # of threads
        self._wake: SimpleQueue[None] = SimpleQueue()

    def fiber(self, function: Callable[[], None], name: str) -> ThreadFiber:
        """Return a fiber for ``function`` that takes part in the rounds."""
        return ThreadFiber(self, function, name)

    def enter(self, fiber: ThreadFiber, loop: asyncio.AbstractEventLoop) -> None:
        """Let a fiber take part in the next round, which may be over when this returns."""
        self._members.append(fiber)
        if len(self._members) >= self._expected():
            self._round()
        elif self._patience is None:
            self._patience = loop.call_soon(self._wait, loop, PATIENCE)

    def leave(self) -> None:
        """A fiber's thread, which has the house lock, has come to where it waits, or to its end."""
        self._stops += 1
        self.house.release()
        self._wake.put(None)

    def _wait(self, loop: asyncio.AbstractEventLoop, patience: int) -> None:
        if patience:
            self._patience = loop.call_soon(self._wait, loop, patience - 1)
        else:
            self._round()

    def _round(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        members, self._members = self._members, []
        self.rounds += 1
        self.parallel += len(members) > 1
        interrupt: BaseException | None = None
        waiting, running = deque(members), 0
        while waiting or running:
            while waiting and running < self.threads:
                waiting.popleft().go()
                running += 1
            interrupt = self._one_stops() or interrupt
            running -= 1
        for fiber in members:
            fiber.round_over()
        if interrupt is not None:
            raise interrupt

    def _one_stops(self) -> BaseException | None:
        """Wait until a thread has stopped. Returns what came meanwhile, such as Ctrl-C: the threads still run."""
        interrupt: BaseException | None = None
        self._seen += 1
        while self._stops < self._seen:  # what comes out of the queue may be lost to an interrupt
            try:
                self._wake.get()
            except BaseException as error:
                interrupt = error
        return interrupt


class ThreadFiber:
    """A ``Fiber`` in a thread of its own; see the module."""

    def __init__(self, rounds: Rounds, function: Callable[[], None], name: str) -> None:
        self._rounds = rounds
        self._function = function
        self._name = name
        self._thread: threading.Thread | None = None
        self._turn = threading.Lock()
        self._turn.acquire()
        self._in_round = False
        self._over: asyncio.Future[None] | None = None
        self._awaitable: Awaitable[Any] | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    # -- the task's side

    async def run(self) -> None:
        """Run the function; see ``Fiber.run``."""
        loop = asyncio.get_running_loop()
        if loop.get_debug():
            raise RuntimeError("several threads and asyncio's debug mode do not go together: use threads=1")
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._body, loop), name=self._name, daemon=True)
        self._thread.start()
        await self._go(None, None)
        while self._awaitable is not None:
            try:
                result = await self._awaitable
            except BaseException as error:
                await self._go(None, error)
            else:
                await self._go(result, None)
        self._thread.join()
        self._thread = None
        failure, self._error = self._error, None
        if failure is not None:
            raise failure

    async def _go(self, result: Any, error: BaseException | None) -> None:
        """Let the thread go on in the next round. Cancelled meanwhile, the task is once more, when the thread waits again."""
        self._result, self._error, self._awaitable = result, error, None
        task, cancelled = asyncio.current_task(), False
        loop = asyncio.get_running_loop()
        self._in_round = True
        self._rounds.enter(self, loop)
        while self._in_round:
            self._over = loop.create_future()
            try:
                await self._over
            except asyncio.CancelledError:
                cancelled = True
                if task is not None:
                    task.uncancel()
        if cancelled and task is not None:
            task.cancel()

    def go(self) -> None:
        """Let the thread run."""
        self._turn.release()

    def round_over(self) -> None:
        """The round has ended: the thread waits again, or has ended."""
        self._in_round = False
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    # -- the thread's side

    def _body(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio._set_running_loop(loop)  # futures are made here, while the loop stands still
        try:
            self._resumed()
            self._function()
        except BaseException as error:
            self._error = error
        finally:
            asyncio._set_running_loop(None)
            self._rounds.leave()

    def wait(self, awaitable: Awaitable[Any]) -> Any:
        """Hand the awaitable to the task; see ``Fiber.wait``."""
        self._awaitable = awaitable
        self._rounds.leave()
        return self._resumed()

    def _resumed(self) -> Any:
        self._turn.acquire()
        self._rounds.house.acquire()
        (result, self._result), (error, self._error) = (self._result, None), (self._error, None)
        if error is not None:
            raise error
        return result

    @property
    def inside(self) -> bool:
        """Whether the caller runs in the thread."""
        return threading.current_thread() is self._thread
