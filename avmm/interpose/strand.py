"""A strand: a coroutine that waits for devices and machine time, and not for the event loop.

The VMM's driver and the switch wait for interrupts and deadlines. Both come synchronously, in the middle of somebody's register
access or from the machine's clock; a coroutine that is resumed right there needs no task and no turn of the event loop, works
the same in real and in virtual time, and can be tested without a loop.

The invariant: a strand runs to its next :class:`Suspend` without interruption, and each suspension is resumed at most once.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

Resume = Callable[[Any], None]


class Suspend:
    """Awaited in a strand: ``begin(resume)`` is called, the strand goes on when ``resume(value)`` is, with that value or exception."""

    __slots__ = ("begin",)

    def __init__(self, begin: Callable[[Resume], object]) -> None:
        self.begin = begin

    def __await__(self) -> Generator[Suspend, Any, Any]:
        return (yield self)


class Strand:
    """Runs ``work`` at once up to its first suspension; ``done`` hears its result, or the exception it raised."""

    def __init__(self, work: Coroutine[Any, Any, Any], done: Callable[[Any], None]) -> None:
        self._work = work
        self._done = done
        self._turn = 0
        self.ended = False
        self.waited_ns = 0
        """Host time spent in suspensions so far."""
        self._step(None)

    def _step(self, value: Any) -> None:
        while True:
            try:
                wanted = self._work.throw(value) if isinstance(value, BaseException) else self._work.send(value)
            except StopIteration as stop:
                self._end(stop.value)
                return
            except Exception as error:  # handed on: who started the strand decides
                self._end(error)
                return
            if self.ended:  # cancelled from within
                self._work.close()
                return
            early = self._suspend(wanted)
            if not early:
                return
            value = early[0]

    def _suspend(self, wanted: Suspend) -> list[Any]:
        """Begin to wait; return what it was resumed with already, if it was."""
        turn, since = self._turn, time.monotonic_ns()
        early: list[Any] = []
        beginning = True

        def resume(value: Any) -> None:
            if self.ended or self._turn != turn:
                return
            self._turn += 1
            self.waited_ns += time.monotonic_ns() - since
            if beginning:
                early.append(value)
            else:
                self._step(value)

        wanted.begin(resume)
        beginning = False
        return early

    def _end(self, result: Any) -> None:
        if not self.ended:
            self.ended = True
            self._done(result)

    def cancel(self) -> None:
        """Give up: the coroutine is closed where it waits, and ``done`` hears nothing."""
        if not self.ended:
            self.ended = True
            if inspect.getcoroutinestate(self._work) != inspect.CORO_RUNNING:
                self._work.close()
