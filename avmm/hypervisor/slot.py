"""A slot: what one device model is plugged into, so that another instance can take its place between two accesses.

To its device a slot is the whole board. It passes everything through to the partition, and knows what the device has
there: timers, interrupt lines, memory and port windows, work in flight. A new instance is made and restored in a slot of
its own that is still dark: its lines drive nothing, its windows are not open and work it starts is only noted.
:meth:`Slot.take_over` then lights it in one step and darkens the old one. Nothing is awaited in between.

The invariants: of two slots for one device at most one is lit; a line's level, a deadline and a piece of work under way
pass from one to the other unchanged, so no interrupt is lost or doubled, time does not jump and no I/O is made twice.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from avmm.clock import Clock, Timer
from avmm.devices.line import InterruptLine
from avmm.hypervisor.slot_clock import SlotClock
from avmm.memory import GuestMemory

if TYPE_CHECKING:
    from avmm.hypervisor.partition import Partition

T = TypeVar("T")


class Light(enum.Enum):
    """Whether a slot's device is the one that the guest sees."""

    DARK = "dark"
    LIT = "lit"
    RETIRED = "retired"


@dataclass(slots=True)
class _Job:
    """Work in flight; who hears of its result may change while it is under way."""

    done: Callable[[Any], None]
    timer: Timer | None = None
    """What will tell the device, in virtual time."""


@dataclass(frozen=True, slots=True)
class SlotState:
    """What is saved of a slot besides its device: its end of the interrupt lines, as (number, level, edges)."""

    lines: tuple[tuple[int, bool, int], ...]
    version: int = 1


class Slot:
    """A ``Board`` for one device. ``inside`` says whether it is in the hypervisor; from outside, RAM windows stay shut."""

    def __init__(self, partition: Partition, *, inside: bool = True, lit: bool = True) -> None:
        self.partition = partition
        self.inside = inside
        self.clock: Clock = SlotClock(partition.clock)
        self._light = Light.LIT if lit else Light.DARK
        self._lines: dict[int, InterruptLine] = {}
        self._maps: dict[tuple[int, int], memoryview] = {}
        self._windows: dict[int, tuple[memoryview, bool, int]] = {}
        self._jobs: list[_Job] = []
        self._noted: list[tuple[Coroutine[Any, Any, Any], Callable[[Any], None], int]] = []

    @property
    def light(self) -> Light:
        """Whether the device is the one that the guest sees."""
        return self._light

    # -- the board

    @property
    def memory(self) -> GuestMemory:
        """Guest RAM."""
        return self.partition.memory

    @property
    def random(self) -> random.Random:
        """The machine's seeded generator."""
        return self.partition.random

    def line(self, number: int) -> InterruptLine:
        """Return the device's own end of the wire to interrupt input ``number``."""
        line = self._lines.get(number)
        if line is None:
            line = self._lines[number] = InterruptLine(number)
            if self._light is Light.LIT:
                line.connect(self.partition.line(number).set)
        return line

    def start(
        self, work: Coroutine[Any, Any, T], done: Callable[[T | BaseException], None], latency: int = 0, *, inline: bool = False
    ) -> Timer | None:
        """Run a device's work in the background; see ``Board.start``."""
        if self._light is Light.LIT:
            job = _Job(done)
            self._jobs.append(job)
            self._begin(job, work, latency, inline)
            return job.timer
        if self._light is Light.DARK:
            self._noted.append((work, done, latency))
        else:
            work.close()
        return None

    def _begin(self, job: _Job, work: Coroutine[Any, Any, Any], latency: int, inline: bool = False) -> None:
        jobs = self._jobs

        def finished(result: Any) -> None:
            jobs.remove(job)
            job.done(result)

        job.timer = self.partition.start(work, finished, latency, inline=inline)

    def trace(self, event: str, **fields: object) -> None:
        """Record something worth knowing, rate-limited."""
        if self._light is Light.LIT:
            self.partition.trace(event, **fields)

    def reset(self, reason: str) -> None:
        """Ask for a machine reset."""
        if self._light is Light.LIT:
            self.partition.reset(reason)

    def power_off(self, reason: str) -> None:
        """Ask for power off."""
        if self._light is Light.LIT:
            self.partition.power_off(reason)

    def map_ram(self, first: int, size: int, buffer: memoryview | None) -> None:
        """Let a range go straight to ``buffer``, as soon as the device is inside; accesses to an outside device trap."""
        if buffer is None:
            self._maps.pop((first, size), None)
        else:
            self._maps[first, size] = buffer
        if self._light is Light.LIT:
            self.partition.map_ram(first, size, buffer if self.inside else None)

    def window(self, port: int, buffer: memoryview | None, *, out: bool = False, start: int = 0) -> None:
        """Serve ``port`` from or into ``buffer``."""
        if buffer is None:
            self._windows.pop(port, None)
        else:
            self._windows[port] = (buffer, out, start)
        if self._light is Light.LIT:
            self.partition.window(port, buffer, out=out, start=start)

    def window_position(self, port: int) -> int:
        """Return how many bytes of the port's window have been moved."""
        if self._light is Light.LIT:
            return self.partition.window_position(port)
        return self._windows[port][2] if port in self._windows else 0

    def window_done(self, port: int) -> None:
        """Forget a window that was used up: the partition tells, as the processor closes it by itself."""
        self._windows.pop(port, None)

    # -- saved state

    def save(self) -> SlotState:
        """Return the state."""
        return SlotState(tuple((number, line.level, line.edges) for number, line in sorted(self._lines.items())))

    def restore(self, state: SlotState) -> None:
        """Forget what is under way and take the saved levels. Nobody hears them: controllers have their own state."""
        self._cancel_timers()
        for job in self._jobs:
            if job.timer is not None:
                job.timer.cancel()
        self._jobs.clear()
        for number, level, edges in state.lines:
            line = self.line(number)
            line.level, line.edges = level, edges

    def timers(self) -> list[Timer]:
        """Return the device's timers, then those of its work, in an order that is the same after it was restored."""
        assert isinstance(self.clock, SlotClock)
        return [*self.clock.timers, *(job.timer for job in self._jobs if job.timer is not None)]

    # -- changing places

    def take_over(self, old: Slot) -> None:
        """Light this slot and retire ``old``. The device here has been restored from the state of the one there."""
        if self._light is not Light.DARK or old._light is not Light.LIT:
            raise RuntimeError("only a dark slot can take over, and only from a lit one")
        old._darken()
        old._light = Light.RETIRED
        old._cancel_timers()
        self._jobs = old._jobs  # the same list: what is under way leaves it when it is done
        old._jobs = []
        self._adopt()
        self._kindle(old)

    def discard(self) -> None:
        """Throw away a dark slot whose device did not work out."""
        self._light = Light.RETIRED
        self._cancel_timers()
        for work, _, _ in self._noted:
            work.close()
        self._noted.clear()

    def _cancel_timers(self) -> None:
        assert isinstance(self.clock, SlotClock)
        for timer in self.clock.timers:
            timer.cancel()

    def _darken(self) -> None:
        for line in self._lines.values():
            line.connect(None)
        for port in self._windows:
            self.partition.window(port, None)
        if self.inside:
            for first, size in self._maps:
                self.partition.map_ram(first, size, None)

    def _kindle(self, before: Slot) -> None:
        self._light = Light.LIT
        for number, line in self._lines.items():
            line.connect(self.partition.line(number).set)
        for number in before._lines.keys() - self._lines.keys():
            self.partition.line(number).lower()
        for port, (buffer, out, start) in self._windows.items():
            self.partition.window(port, buffer, out=out, start=start)
        if self.inside:
            for (first, size), buffer in self._maps.items():
                self.partition.map_ram(first, size, buffer)

    def _adopt(self) -> None:
        """Give the device what is under way: what it has started while dark is what the old one started last."""
        under_way = len(self._jobs)
        fresh = max(0, len(self._noted) - under_way)
        for work, done, latency in self._noted[:fresh]:
            job = _Job(done)
            self._jobs.append(job)
            self._begin(job, work, latency)
        noted = self._noted[fresh:]
        for job, (work, done, _) in zip(self._jobs[under_way - len(noted) : under_way], noted, strict=True):
            work.close()
            job.done = done
        for job in self._jobs[: under_way - len(noted)]:
            job.done = _forget  # given up by the old device before
        self._noted = []


def _forget(result: object) -> None:
    """Hear of work that no device waits for any more."""
