"""Machine time: nanoseconds since power-on, and the timers that wait for it.

Everything in a machine that needs time takes it from its :class:`Clock`, never from ``time`` or the event loop.
:class:`WallClock` follows the host and stands still while the machine is paused, and at a *horizon* that somebody has set.
:class:`VirtualClock` follows the processor's own count of executed code, so that two runs of one machine are identical; a
halted machine jumps to the next deadline.

The invariant: timers fire in the order of their deadlines, those with equal deadlines in the order they were armed.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

SECOND: Final = 1_000_000_000
MILLISECOND: Final = 1_000_000
MICROSECOND: Final = 1_000
FOREVER: Final = 1 << 62
HEAP_ROOM: Final = 64  # deadlines, past and cancelled ones included, before the heap is cleaned up


class Timer:
    """One deadline of a clock. Arm it again as often as needed; ``callback`` runs once for each arming that came due."""

    __slots__ = ("_clock", "_serial", "callback", "due", "ready")

    def __init__(self, clock: Clock, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._serial = 0
        self.callback = callback
        self.due: int | None = None
        """Machine time in ns at which the timer fires, None when not armed (in its callback it is not, unless armed anew)."""
        self.ready: asyncio.Future[None] | None = None
        """Host work that must be done before the timer may fire; machine time waits for it."""

    @property
    def armed(self) -> bool:
        """Whether a deadline is set."""
        return self.due is not None

    def arm(self, due: int) -> None:
        """Fire when machine time reaches ``due`` (ns). A deadline in the past fires at the next opportunity."""
        clock = self._clock
        earliest = clock.next_due()
        self.due = due
        self._serial = clock._push(self, due)
        if earliest is None or due < earliest:
            clock.on_earlier()

    def cancel(self) -> None:
        """Forget the deadline, if any."""
        self.due = None


class Clock(ABC):
    """Machine time and its timers; what both clocks share."""

    virtual: bool
    """Whether time comes from work done, so that what the host takes for something must not show."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timer]] = []
        self._serials = 0
        self._room = HEAP_ROOM
        self.on_earlier: Callable[[], None] = _nothing
        """Called when the earliest deadline moved closer, so that a running processor can end its slice in time."""

    @abstractmethod
    def now(self) -> int:
        """Machine time in ns since power-on."""

    def timer(self, callback: Callable[[], None]) -> Timer:
        """Return a timer of this clock, not yet armed."""
        return Timer(self, callback)

    def _push(self, timer: Timer, due: int) -> int:
        self._serials += 1
        if len(self._heap) >= self._room:  # armed anew over and over: drop what is not a deadline any more
            self._heap = [entry for entry in self._heap if entry[2].due == entry[0] and entry[2]._serial == entry[1]]
            heapq.heapify(self._heap)
            self._room = max(HEAP_ROOM, 2 * len(self._heap))
        heapq.heappush(self._heap, (due, self._serials, timer))
        return self._serials

    @abstractmethod
    def set_horizon(self, horizon: int) -> None:
        """Let machine time go no further than ``horizon``, until :meth:`lift_horizon`. Of several the nearest counts."""

    @abstractmethod
    def lift_horizon(self, horizon: int) -> None:
        """Let machine time go on from where it is: what the host's time went on meanwhile is lost."""

    def next_due(self) -> int | None:
        """Return the earliest deadline in ns of machine time, None when there is none."""
        heap = self._heap
        while heap:
            due, serial, timer = heap[0]
            if timer.due == due and timer._serial == serial:
                return due
            heapq.heappop(heap)  # cancelled, or armed anew
        return None

    def armed(self) -> list[Timer]:
        """Return the timers that are armed, in the order in which they will fire."""
        return [timer for due, serial, timer in sorted(self._heap, key=_order) if timer.due == due and timer._serial == serial]

    def run_due(self) -> asyncio.Future[None] | None:
        """Fire every timer that is due.

        Returns None when all were fired; otherwise the future that machine time has to wait for (an I/O whose deadline
        in virtual time has come, but which the host has not finished). Await it and call again.
        """
        while (due := self.next_due()) is not None and due <= self.now():
            timer = self._heap[0][2]
            if timer.ready is not None and not timer.ready.done():
                return timer.ready
            heapq.heappop(self._heap)
            timer.due = None
            timer.callback()
        return None


class WallClock(Clock):
    """Machine time that follows the host's monotonic clock, except while paused, or at a horizon."""

    virtual = False

    def __init__(self) -> None:
        super().__init__()
        self.origin = time.monotonic_ns()
        """Host monotonic time (ns) at which machine time was zero, had it never stood still."""
        self.on_change: Callable[[int, int], None] = _ignore
        """Hears, when it has changed, what to add to the host's time, and at what host time to stop: the time stamp counter goes along."""
        self._paused_at: int | None = None
        self._horizons: list[int] = []
        self._end = FOREVER

    def now(self) -> int:
        now = time.monotonic_ns() - self.origin
        return now if now < self._end else self._end

    def _change(self, now: int) -> None:
        """Let machine time be ``now``, and go on to where it has to stand still."""
        self.origin = time.monotonic_ns() - now
        self._end = min(self._horizons, default=FOREVER) if self._paused_at is None else self._paused_at
        self.on_change(-self.origin, self._end + self.origin)

    def set_horizon(self, horizon: int) -> None:
        self._horizons.append(horizon)
        if self._paused_at is None and horizon < self._end:
            self._end = horizon
            self.on_change(-self.origin, horizon + self.origin)

    def lift_horizon(self, horizon: int) -> None:
        now = self.now()
        self._horizons.remove(horizon)
        self._change(now)

    def set(self, now: int) -> None:
        """Let machine time go on from ``now``, which may lie before; timers keep their deadlines. Only while paused."""
        if self._paused_at is None:
            raise RuntimeError("machine time is set only while it stands still")
        self._paused_at = now
        self._change(now)

    def pause(self) -> None:
        """Let machine time stand still."""
        if self._paused_at is None:
            self._paused_at = now = self.now()
            self._change(now)

    def resume(self) -> None:
        """Let machine time go on from where it was paused."""
        if self._paused_at is not None:
            now, self._paused_at = self._paused_at, None
            self._change(now)


class VirtualClock(Clock):
    """Machine time computed from work done: ``executed()`` ns of execution so far, plus the time skipped while halted."""

    virtual = True

    def __init__(self, executed: Callable[[], int] = lambda: 0) -> None:
        super().__init__()
        self.executed = executed
        self.skipped = 0
        self.on_skip: Callable[[int], None] = lambda skipped: None
        """Hears the whole time skipped so far, ns: the processor's time stamp counter goes along."""

    def now(self) -> int:
        return self.executed() + self.skipped

    def set(self, now: int) -> None:
        """Let machine time go on from ``now``, which may lie before; timers keep their deadlines. Only while the machine stands still."""
        self.skipped = now - self.executed()
        self.on_skip(self.skipped)

    def set_horizon(self, horizon: int) -> None:
        """Machine time goes on by work only, and the machine stops for each deadline."""

    def lift_horizon(self, horizon: int) -> None:
        """There is none."""

    def advance_to(self, due: int) -> None:
        """Skip to ``due``; a halted machine does this instead of waiting. Going backwards is ignored."""
        skipped = due - self.executed()
        if skipped > self.skipped:
            self.skipped = skipped
            self.on_skip(skipped)


def _order(entry: tuple[int, int, Timer]) -> tuple[int, int]:
    return entry[:2]


def _nothing() -> None:
    pass


def _ignore(base: int, end: int) -> None:
    pass
