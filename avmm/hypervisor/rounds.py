"""Guests of several machines at once, on several processors of the host: the ``threads`` option.

Each machine's run loop has a thread of its own. The threads run in rounds: the event loop stands still, those whose turn it is
run until they have something to wait for (the end of their slice, at the latest), and when the last one waits the event loop
goes on. Within a round guest code, which is native, executes in parallel; Python does not: a thread has the *house lock* from
the moment it comes back from guest code until it returns there, so that an exit is as undivided as with one thread.

The rule, for everybody: **what belongs to a machine (its devices, memory, processor, clock, timers) is touched by the event loop
between rounds, and by the machine's own thread with the house lock within one; what belongs to no machine (VM-H, asyncio's futures
and queues, the schedule) by whoever runs Python.** Nothing else needs a lock, a thread-safe queue or ``call_soon_threadsafe``.

Rounds begin and end where slices in one thread do, and in virtual time a machine computes the same. To wake the threads and to
stop them costs a fifth of a slice: a round of machines that want nothing but to go on has several slices of each, unless somebody
is known to need the event loop (:meth:`Schedule.quiet`), and ends with the slices during which the first of them stops.

The invariant: outside of a round every thread waits in :meth:`ThreadFiber.wait` or :meth:`ThreadFiber.turn`, or has ended.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any

from avmm.hypervisor.schedule import Schedule

SLICES = 4
"""Slices that a machine may have in one round."""
TURNS, BUSY_TURNS = 2, 12
"""Turns of the event loop between two rounds, at least; and while it has something to do for a guest: a packet's way to VM-H and back."""
ALONE = 8
"""Rounds that machines in the middle of a slice may have for themselves between two rounds of all."""
PATIENCE = 4
"""Turns of the event loop for which a round waits for machines that have a turn and are on their way to it."""


class Rounds:
    """The rounds of one event loop: as many machines run at once as the schedule has turns."""

    def __init__(self, schedule: Schedule) -> None:
        self.house = threading.Lock()
        self.rounds = 0
        """How often the event loop stood still for guests."""
        self.parallel = 0
        """In how many of them more than one machine ran."""
        self._schedule = schedule
        self._members: list[ThreadFiber] = []
        self._next: asyncio.Handle | None = None
        self._waiting: deque[ThreadFiber] = deque()
        self._running: set[ThreadFiber] = set()
        self._alone = 0
        self._ends = False
        self._quiet = 0  # host time until which nobody needs the event loop
        self._over: SimpleQueue[None] = SimpleQueue()

    def fiber(self, function: Callable[[], None], name: str) -> ThreadFiber:
        """Return a fiber for ``function`` that takes part in the rounds."""
        return ThreadFiber(self, function, name)

    def enter(self, fiber: ThreadFiber, loop: asyncio.AbstractEventLoop) -> None:
        """Let a fiber take part in the next round, which may be over when this returns."""
        if fiber.midway and self._alone < ALONE:
            self._alone += 1
            self._round([fiber], loop, short=True)  # the event loop may not have had a turn since the last one
            return
        self._members.insert(0, fiber)  # whoever has just woken goes first
        if self._next is not None:
            return
        if len(self._members) >= len(self._schedule.holders) and not fiber.midway:
            self._all(loop, short=True)
        else:
            self._next = loop.call_soon(self._wait, loop, TURNS)

    def leave(self, fiber: ThreadFiber) -> None:
        """A fiber's thread, which has the house lock, has come to where it waits, or to its end."""
        self._ends = True
        self._running.discard(fiber)
        if self._waiting:
            following = self._waiting.popleft()
            self._running.add(following)
            following.go()
        over = not self._running
        self.house.release()
        if over:
            self._over.put(None)

    def goes_on(self, slices: int) -> bool:
        """Whether a fiber that had so many slices in this round, and has the house lock, may have another one at once."""
        schedule = self._schedule
        return not self._ends and slices < SLICES and not schedule.outside and schedule.now() < self._quiet

    def _wait(self, loop: asyncio.AbstractEventLoop, turns: int) -> None:
        """Begin the round, if the event loop had enough turns for its own work, and for the machines that are on their way to it."""
        self._next = None
        coming = len(self._members) < len(self._schedule.holders)
        if turns < (BUSY_TURNS if self._schedule.outside else PATIENCE if coming else TURNS):
            self._next = loop.call_soon(self._wait, loop, turns + 1)
        elif self._members:
            self._all(loop, short=len(self._members) > self._schedule.turns)

    def _all(self, loop: asyncio.AbstractEventLoop, short: bool) -> None:
        members, self._members, self._alone = self._members, [], 0
        self._round(members, loop, short)

    def _round(self, members: list[ThreadFiber], loop: asyncio.AbstractEventLoop, short: bool) -> None:
        self.rounds += 1
        self.parallel += len(members) > 1
        schedule = self._schedule
        self._ends, self._quiet = short, schedule.quiet()
        at_once = members[: schedule.turns]
        self._waiting.extend(members[schedule.turns :])
        self._running.update(at_once)
        for fiber in at_once:
            fiber.go()
        interrupt = self._until_over()
        for fiber in members:
            if fiber.turned and interrupt is None:
                self._members.append(fiber)
            else:
                fiber.round_over()
        if self._members and self._next is None:
            self._next = loop.call_soon(self._wait, loop, 1)
        if interrupt is not None:
            raise interrupt

    def _until_over(self) -> BaseException | None:
        """Wait until all threads have stopped. Returns what came meanwhile, such as Ctrl-C: the threads still run."""
        interrupt: BaseException | None = None
        while self._running:  # what comes out of the queue may be lost to an interrupt
            try:
                self._over.get()
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
        self._in_round = self._turned = self._cancelled = False
        self._slices = 0  # of this round
        self.midway = False
        """Whether it waits in the middle of a slice."""
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
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        self._in_round = True
        self._rounds.enter(self, loop)
        while self._in_round:
            self._over = loop.create_future()
            try:
                await self._over
            except asyncio.CancelledError:
                self._cancelled = True
                if task is not None:
                    task.uncancel()
        cancelled, self._cancelled = self._cancelled, False
        if cancelled and task is not None:
            task.cancel()

    def go(self) -> None:
        """Let the thread run."""
        self._turn.release()

    @property
    def turned(self) -> bool:
        """Whether the thread, which waits again, wants nothing but the next round."""
        return self._turned and not self._cancelled

    def round_over(self) -> None:
        """The round has ended: the thread waits for something, or has ended."""
        self._in_round = False
        if self._turned:
            self._awaitable = asyncio.sleep(0)
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
            self._rounds.leave(self)

    def wait(self, awaitable: Awaitable[Any], *, midway: bool = False) -> Any:
        """Hand the awaitable to the task; see ``Fiber.wait``."""
        self._awaitable, self.midway = awaitable, midway
        self._rounds.leave(self)
        return self._resumed()

    def turn(self) -> None:
        """Let the event loop have a turn when the round is over, of which the task need not know; see ``Fiber.turn``."""
        self._slices += 1
        if self._rounds.goes_on(self._slices):
            return
        self._turned = True
        self._rounds.leave(self)
        self._resumed()

    def _resumed(self) -> Any:
        self._turn.acquire()
        self._rounds.house.acquire()
        self._turned, self._slices, self.midway = False, 0, False
        (result, self._result), (error, self._error) = (self._result, None), (self._error, None)
        if error is not None:
            raise error
        return result

    @property
    def inside(self) -> bool:
        """Whether the caller runs in the thread."""
        return threading.current_thread() is self._thread
