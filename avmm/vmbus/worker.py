"""What runs a channel between VM-C and VM-H: one worker per open channel, with a doorbell for an inbox.

A signal says nothing but "look at the ring", so the inbox holds one ring of the bell and any number rung meanwhile are
the same one; the ring buffer itself is the bounded queue behind it. In real time the worker is an asyncio task with a
name; a guest that signals while it is idle has the ring looked at there and then, in its exit (:meth:`Worker.attend`), so
that a request that needs no waiting is answered before the guest goes on. In virtual time it is a timer a fixed latency
after the signal, so that the ring is looked at after exactly the same guest instruction in every run.

The invariant: after the bell was rung, the service runs once at least, unless the worker is closed; never while held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from avmm.clock import MICROSECOND, Clock, VirtualClock

SIGNAL_LATENCY = 2 * MICROSECOND
"""Machine time from a signal to the look at the ring, in virtual time."""


class Worker:
    """Runs the service it was started with after each :meth:`ring`. An exception from it goes to ``failed``."""

    def __init__(self, name: str, clock: Clock, failed: Callable[[Exception], None]) -> None:
        self.name = name
        self._clock = clock
        self._service: Callable[[], None] = _nothing
        self._failed = failed
        self._held = self._missed = False
        self.timer = clock.timer(self._turn) if isinstance(clock, VirtualClock) else None
        """In virtual time, when the service will run."""
        self._rung = self._turning = False
        self._bell: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None

    def start(self, service: Callable[[], None]) -> None:
        """Begin: ``service()`` is what looks at the ring."""
        self._service = service
        if self.timer is None:
            self.task = asyncio.get_running_loop().create_task(self._run(), name=self.name)

    def ring(self) -> None:
        """Have the service run soon."""
        if self.timer is None:
            self._rung = True
            if self._bell is not None and not self._bell.done():
                self._bell.set_result(None)
        elif not self.timer.armed:
            self.timer.arm(self._clock.now() + SIGNAL_LATENCY)

    def attend(self) -> bool:
        """The guest signalled and stands in its exit. Returns whether that was all: nothing is left for the event loop to do.

        In real time an idle worker looks at the ring here and now, as a task switch would cost more than most requests; whatever
        comes while it looks, or is too much for one turn, its task does.
        """
        if self._bell is None or self._bell.done() or self._turning:
            self.ring()
            return False
        self._turn()
        return not self._rung

    @property
    def rung(self) -> bool:
        """Whether the bell was rung and the service has not run since."""
        return self._rung or self._missed or (self.timer is not None and self.timer.armed)

    def hold(self, held: bool) -> None:
        """Stand still, or go on with what was rung for meanwhile."""
        self._held = held
        if not held and self._missed:
            self._missed = False
            self.ring()

    def close(self) -> None:
        """Never run again."""
        self._held, self._missed = True, False
        if self.timer is not None:
            self.timer.cancel()
        if self.task is not None:
            self.task.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()  # an Event would ask for it each time, by a system call
        while True:
            if not self._rung:
                self._bell = loop.create_future()
                await self._bell
            self._rung = False
            self._turn()

    def _turn(self) -> None:
        if self._held:
            self._missed = True
            return
        self._turning = True
        try:
            self._service()
        except Exception as bug:  # ours, not the guest's: it stops the machine, with a report
            self._failed(bug)
        finally:
            self._turning = False


def _nothing() -> None:
    """Not started yet."""
