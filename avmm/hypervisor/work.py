"""What devices have under way in the event loop: disk requests, packets, whatever a register access began and cannot wait for.

In virtual time such work ends, for the guest, a fixed time after it began, however long the host took; machine time
waits for the host where it has to.

The invariant: work is in flight until its ``done`` has been called or it was cancelled, and then it is forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from avmm.clock import Clock, Timer, VirtualClock
from avmm.started import Started

T = TypeVar("T")


class Work:
    """The work of one machine's devices. ``busy`` hears in real time whether there is any, ``failed`` of a ``done`` that raised."""

    def __init__(self, name: str, clock: Clock, busy: Callable[[bool], None], failed: Callable[[Exception], None]) -> None:
        self._name = f"{name}:work"
        self._clock = clock
        self._busy = busy
        self._failed = failed
        self._in_flight: set[asyncio.Future[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None  # once known: asking for it costs a system call
        self._idle = asyncio.Event()
        self._idle.set()

    def start(
        self, work: Coroutine[Any, Any, T], done: Callable[[T | BaseException], None], latency: int = 0, *, inline: bool = False
    ) -> Timer | None:
        """Run a device's work in the background; see ``Board.start``."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        timer: Timer | None = None
        task: asyncio.Future[T]
        if isinstance(self._clock, VirtualClock):
            task = loop.create_task(work, name=self._name)
            timer = self._clock.timer(lambda: self._deliver(task, done))
            timer.ready = loop.create_future()
        else:  # most work does not have to wait, and needs no task
            try:
                blocker = work.send(None)
            except StopIteration as stop:
                if inline:
                    self._hand_over(stop.value, done)
                    return None
                task = loop.create_future()
                task.set_result(stop.value)
            except Exception as error:
                if inline:
                    self._hand_over(error, done)
                    return None
                task = loop.create_future()
                task.set_exception(error)
            else:
                task = loop.create_task(_go_on(Started(work, blocker)), name=self._name)
            self._busy(True)
        self._in_flight.add(task)
        self._idle.clear()

        def finished(task: asyncio.Future[Any]) -> None:
            self._in_flight.discard(task)
            if timer is None:
                self._deliver(task, done)
            elif timer.ready is not None and not timer.ready.done():
                timer.ready.set_result(None)
            if not self._in_flight:
                self._idle.set()
                self._busy(False)

        task.add_done_callback(finished)
        if timer is not None:
            timer.arm(self._clock.now() + latency)
        return timer

    async def idle(self) -> None:
        """Wait until none is in flight; what ends last may start more."""
        while self._in_flight:
            await self._idle.wait()

    def cancel(self) -> None:
        """Cancel what is in flight; its ``done`` is not called."""
        for task in list(self._in_flight):
            task.cancel()

    async def cancelled(self) -> None:
        """Cancel what is in flight and wait until it has ended."""
        self.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=True)

    def _deliver(self, task: asyncio.Future[Any], done: Callable[[Any], None]) -> None:
        if not task.cancelled():
            error = task.exception()
            self._hand_over(error if error is not None else task.result(), done)

    def _hand_over(self, result: Any, done: Callable[[Any], None]) -> None:
        try:
            done(result)
        except Exception as bug:
            self._failed(bug)


async def _go_on(started: Started[T]) -> T:
    return await started
