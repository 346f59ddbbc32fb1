"""The vCPU task: runs guest code in slices, fires timers between them, waits in HLT, and waits inside an instruction.

The processor's run loop lives in a fiber. Whatever it has to wait for, an I/O request packet in the middle of an IN,
the next deadline in HLT, or just its turn, it hands to the asyncio task around it and goes on with the result.

The invariant: between two slices, and only there, the vCPU's owner may pause, reset or stop it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mypy_extensions import mypyc_attr

from avmm.clock import MILLISECOND, Clock, VirtualClock, WallClock
from avmm.cpu.engine import Exit, Processor
from avmm.hypervisor.fiber import Fiber, GreenletFiber
from avmm.hypervisor.schedule import Share

QUANTUM: Final = 20_000  # units between two looks at the host's clock
BUSY_SLICE: Final = 50_000  # ns: the longest slice in real time while work for the guest is under way in the event loop
BUSY_ROUNDS: Final = 12  # turns of the event loop for that work between two slices: a request's way through VM-H and back
SPIN_NS: Final = 250_000  # a halted machine waits for less than this by looking at every turn of the event loop
IDLE_ROUNDS: Final = 64  # jumps of a halted virtual-time machine before the event loop gets its turn,
IDLE_NS: Final = 20 * MILLISECOND  # ... and machine time: whoever wants to pause it is not let wait for seconds of that


BUDGET: Final = Exit.BUDGET  # an attribute of an enumeration is looked up slowly
MORE: Final = 0x100  # in the answer to INTA: another interrupt waits (see ``Callbacks.acknowledge``)


class Stop(Exception):
    """Ends the vCPU's run loop; what to do next is its owner's business."""


class InterruptController(Protocol):
    """What acknowledges interrupts for the vCPU."""

    def acknowledge(self) -> int | None:
        """Return the vector to deliver, None when nothing is pending any more; drives the INTR pin anew before."""

    @property
    def intr(self) -> bool:
        """Whether an interrupt is pending."""


@dataclass(frozen=True, slots=True)
@mypyc_attr(native_class=False)
class VcpuState:
    """A saved vCPU, besides its processor. ``slept_units``: when the event loop had its last turn, in units of work."""

    halted: bool
    pending: bool
    halts: int
    slept_units: int
    version: int = 1


class Vcpu:
    """One virtual CPU as an asyncio task.

    ``boundary()`` is called between slices; it may raise Stop or call :meth:`wait`. ``on_shutdown()`` after a triple fault.
    ``on_debug()`` where the processor's debug unit stopped it, perhaps in the middle of a slice; it may do the same.
    """

    def __init__(
        self,
        processor: Processor,
        clock: Clock,
        boundary: Callable[[], None],
        on_shutdown: Callable[[], None],
        on_debug: Callable[[], None] = lambda: None,
        *,
        slice_ns: int = MILLISECOND,
    ) -> None:
        self.processor = processor
        self.clock = clock
        self.slice_ns = slice_ns
        self.controller: InterruptController | None = None
        """Who answers :meth:`acknowledge`."""
        self.injected = 0
        """Interrupts delivered so far."""
        self.outside_ns = 0
        """Host time spent waiting in the middle of an instruction, ns."""
        self.slices = 0
        self.halts = 0
        self.longest_slice = 0
        self.share: Share | None = None
        """Its part of the thread beside other machines; None when nobody schedules."""
        self.paced = False
        """Whether a halted machine in virtual time waits until the host's time has gone on as far, for a person in front of it."""
        self._pace = 0  # host time at machine time 0, if it had kept pace
        self.settled: Callable[[], bool] | None = None
        """Called between two slices when the timers that are due have fired, or wait for the host; returns whether it did anything."""
        self.limit: int | None = None
        """Units of work after which ``on_limit`` is called once, between two slices; None for no limit."""
        self.on_limit: Callable[[], None] = _nothing
        self.make_fiber: Callable[[Callable[[], None]], Fiber] = GreenletFiber
        """What its run loop runs in."""
        self._boundary = boundary
        self._on_shutdown = on_shutdown
        self._on_debug = on_debug
        self._fiber: Fiber | None = None
        self._sleeper: asyncio.Future[None] | None = None
        self._pending = False
        self._woken = False
        self._yield = False
        self._busy = False
        self._sooner = False  # a deadline has come closer during the slice
        self._slice_end = 0  # host time; 0 when the slice is over
        self._mid_block = False  # perhaps: see _finish_block
        self._restarted = self._halting = False
        self._slept_units = self._charged_units = 0
        self._idle_ns = 0
        self._asleep: int | None = None  # since when, in host time
        self._away_ns = 0  # host time that slices waited in their midst
        clock.on_earlier = self._earlier

    # -- what others do to it

    def interrupt(self, pending: bool) -> None:
        """Drive the INTR pin; wakes a halted vCPU."""
        self._pending = pending
        self.processor.interrupt(pending)
        if pending and self._sleeper is not None:
            self.wake()

    def acknowledge(self) -> int | None:
        """Answer INTA for the processor; see ``Callbacks.acknowledge``."""
        controller = self.controller
        vector = None if controller is None else controller.acknowledge()
        if vector is None:
            return None
        self.injected += 1
        return vector | MORE if self._pending else vector

    @property
    def pending(self) -> bool:
        """The level of the INTR pin."""
        return self._pending

    @property
    def idle_ns(self) -> int:
        """Host time spent halted, ns."""
        return self._idle_ns + (0 if self._asleep is None else time.monotonic_ns() - self._asleep)

    def wake(self) -> None:
        """Let a halted vCPU look around."""
        self._woken = True
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)
            self._outside(1)  # it is on its way

    def yield_soon(self) -> None:
        """Let the event loop have its turn before the next slice."""
        self._yield = True

    def busy(self, busy: bool) -> None:
        """Whether work that the guest started is under way in the event loop, which then gets its turn soon and more often."""
        if busy and not self._busy:
            self.processor.kick()
        if busy != self._busy:
            self._outside(1 if busy else -1)
        self._busy = busy

    def restarted(self) -> None:
        """The processor was reset: it is not halted any more."""
        self._restarted = True

    def save(self) -> VcpuState:
        """Return the state. Only between two slices."""
        return VcpuState(self._halting, self._pending, self.halts, self._slept_units)

    def restore(self, state: VcpuState) -> None:
        """Go on from a saved state, with the processor restored already. Only between two slices."""
        self.halts = state.halts - state.halted  # the processor will report that halt again
        self._slept_units, self._charged_units = state.slept_units, self.processor.units
        self.interrupt(state.pending)
        self.restarted()
        self._mid_block = True
        self.yield_soon()  # whoever restores can arm a wait before the first instruction

    def _earlier(self) -> None:
        self._sooner = True
        self.processor.kick()
        self.wake()

    # -- waiting inside an instruction

    def wait(self, awaitable: Awaitable[Any]) -> Any:
        """Suspend the vCPU until ``awaitable`` is done and return its result. Only from within the vCPU's own call stack."""
        fiber = self._fiber
        if fiber is None or not fiber.inside:
            raise RuntimeError("only a running vCPU can wait")
        share = self.share
        if share is not None:
            share.schedule.outside += 1
            share.leave()
        begin = time.monotonic_ns()
        try:
            return fiber.wait(awaitable, midway=True)
        finally:
            waited = time.monotonic_ns() - begin
            self._away_ns += waited
            self.outside_ns += waited
            if share is not None:
                share.schedule.outside -= 1

    def stand(self, awaitable: Awaitable[Any]) -> None:
        """Suspend it at a boundary, or where a debugger stopped it: the event loop is not in a hurry with what it waits for."""
        begin = time.monotonic_ns()
        self._leave()
        try:
            self._switch(awaitable)
        finally:
            self._away_ns += time.monotonic_ns() - begin

    def _blocked(self, blocker: asyncio.Future[None]) -> None:
        """Machine time waits for what the host has not finished yet."""
        self._leave()
        self._outside(1)
        try:
            self._switch(asyncio.shield(blocker))
        finally:
            self._outside(-1)

    def _outside(self, more: int) -> None:
        if self.share is not None:
            self.share.schedule.outside += more

    def _switch(self, awaitable: Awaitable[Any], *, midway: bool = False) -> None:
        assert self._fiber is not None
        self._fiber.wait(awaitable, midway=midway)

    def _leave(self) -> None:
        if self.share is not None:
            self.share.leave()

    def _yield_turn(self) -> None:
        """A slice is over: let the event loop have its turn, and other machines theirs."""
        assert self._fiber is not None
        waiting = None if self.share is None else self.share.next()
        if waiting is None:
            self._fiber.turn()
        else:
            self._switch(waiting)

    def _want_turn(self) -> None:
        """The machine starts, or goes on after HLT."""
        waiting = None if self.share is None else self.share.wake()
        if waiting is not None:
            self._switch(waiting)

    # -- the task

    async def run(self) -> None:
        """Run until :class:`Stop` is raised at a boundary. Anything else that is raised is a failure and goes on to the caller."""
        self._fiber = self.make_fiber(self._loop)
        self._halting = False
        if self.share is not None:
            self.share.open()
        try:
            await self._fiber.run()
        except Stop:
            return
        finally:
            self._fiber = None
            if self.share is not None:
                self.share.close()

    def _loop(self) -> None:
        virtual = isinstance(self.clock, VirtualClock)
        step = self._virtual_slice if virtual else self._real_slice
        self._want_turn()
        while True:
            self._boundary()
            if self._mid_block and self._finish_block():
                continue
            blocker = self.clock.run_due()
            if blocker is not None:
                self._blocked(blocker)
                continue
            if self._yield:
                self._yield = False
                self._switch(asyncio.sleep(0))
                continue
            if self.settled is not None and self.settled():
                continue
            why = step()
            if self.limit is not None and self.processor.units >= self.limit:
                self.limit = None
                self.on_limit()
            self._end_of_slice(why)

    def _finish_block(self) -> bool:
        """Go on to the end of the block in whose middle a debugger had stopped the machine whose state was put into this one: timers
        come there. Returns whether it was in the middle of one.
        """
        unit = self.processor.debug
        self._mid_block = unit is not None and unit.in_block
        if self._mid_block:
            self._end_of_slice(self._execute(0, None))
        return self._mid_block

    def _end_of_slice(self, why: Exit) -> None:
        if why is BUDGET:
            return
        if why is Exit.HALT:
            self.halts += 1
            self._halted()
        elif why is Exit.SHUTDOWN:
            self._on_shutdown()
        elif why is Exit.ERROR:
            raise ProcessorFailure(self.processor.failure)

    def _execute(self, budget: int, deadline: int | None) -> Exit:
        """Run a slice to its end: where a debugger stops it is no boundary."""
        why = self.processor.run(budget, deadline)
        while why is not BUDGET and why is Exit.DEBUG:
            self._on_debug()
            if self.limit is not None:  # perhaps nearer than the slice's end
                self.processor.kick()
            assert self.processor.debug is not None
            why = self.processor.debug.resume()
        return why

    def _real_slice(self) -> Exit:
        """Run to the end of the slice, or to a deadline: there timers fire, and the rest of the slice comes afterwards."""
        clock = self.clock
        assert isinstance(clock, WallClock)
        begin, away = time.monotonic_ns(), self._away_ns
        end = self._slice_end or begin + self.slice_ns
        if self._busy:
            end = min(end, begin + BUSY_SLICE)
        due = clock.next_due()
        alarm = end if due is None else min(end, due + clock.origin)
        self._sooner = False
        why = self._execute(QUANTUM, alarm)
        self.slices += 1
        now = time.monotonic_ns()
        used = now - begin - (self._away_ns - away)
        self.longest_slice = max(self.longest_slice, used)
        if self.share is not None:
            self.share.charge(used, used)
        self._slice_end = 0
        if why is BUDGET:
            if (self._sooner or now >= alarm) and now < end and not self._busy:
                self._slice_end = end
            else:
                self._yield_turn()
                if self._busy:
                    self._switch(self._work_goes_on(), midway=True)
        return why

    async def _work_goes_on(self) -> None:
        for _ in range(BUSY_ROUNDS):
            if not self._busy:
                break
            await asyncio.sleep(0)

    def _virtual_slice(self) -> Exit:
        now = self.clock.now()
        due = self.clock.next_due()
        budget = self.slice_ns if due is None else max(1, min(self.slice_ns, due - now))
        if self.limit is not None:
            budget = max(1, min(budget, self.limit - self.processor.units))
        before, away = (time.monotonic_ns(), self._away_ns) if self.share is not None else (0, 0)
        why = self._execute(budget, None)
        self.slices += 1
        units = self.processor.units
        if self.share is not None:
            self.share.charge(units - self._charged_units, time.monotonic_ns() - before - (self._away_ns - away))
            self._charged_units = units
        if units - self._slept_units >= self.slice_ns:  # by work done, so that every run yields at the same places
            self._slept_units = units
            self._yield_turn()
        return why

    def _can_wake(self) -> bool:
        return self._pending and self.processor.interruptible

    def _halted(self) -> None:
        """HLT: until an interrupt that the guest accepts. Timers go on; the boundary is looked at each time round."""
        clock = self.clock
        rounds = 0
        self._restarted, self._halting = False, True
        self._leave()
        while True:
            self._boundary()  # what was asked for is done at this very moment, before the jump to the next deadline
            if self._yield:
                self._yield = False
                self._switch(asyncio.sleep(0))
                continue
            if self._can_wake() or self._restarted:
                break
            if self.settled is not None and self.settled():
                continue
            due = clock.next_due()
            if isinstance(clock, VirtualClock) and self.paced:
                self._keep_pace(clock, due)
            elif isinstance(clock, VirtualClock) and due is not None:
                period = clock.now() // IDLE_NS
                clock.advance_to(due)
                rounds += 1
                if due // IDLE_NS > period or rounds % IDLE_ROUNDS == 0 or self.halts % IDLE_ROUNDS == 0:
                    self._switch(asyncio.sleep(0))
            else:
                self._sleep(None if due is None else due - clock.now())
            blocker = clock.run_due()
            if blocker is not None:
                self._blocked(blocker)
        self._halting = False
        self._want_turn()

    def _keep_pace(self, clock: VirtualClock, due: int | None) -> None:
        """Let virtual time go on with the host's, at most to ``due``. What was late, or paused, is not made up for."""
        self._pace = max(self._pace, time.monotonic_ns() - clock.now())
        self._sleep(None if due is None else due + self._pace - time.monotonic_ns())
        reached = time.monotonic_ns() - self._pace
        clock.advance_to(reached if due is None else min(due, reached))

    def _sleep(self, ns: int | None) -> None:
        woken, self._woken = self._woken, False
        if woken or (ns is not None and ns <= 0):  # woken since the last look around, perhaps while others had their turn
            return
        loop = asyncio.get_running_loop()
        self._sleeper = sleeper = loop.create_future()
        timer = None if ns is None else loop.call_later(_host_delay(ns), self.wake)
        self._asleep = begin = time.monotonic_ns()
        if self.share is not None and ns is not None:
            self.share.alarm = begin + ns
        try:
            self._switch(sleeper)
        finally:
            self._idle_ns, self._asleep = self.idle_ns, None
            if self.share is not None:
                self.share.alarm = None
            if sleeper.done() and not sleeper.cancelled():
                self._outside(-1)
            self._sleeper = None
            self._woken = False
            if timer is not None:
                timer.cancel()


def _host_delay(ns: int) -> float:
    """Seconds for the event loop to wait. uvloop counts whole milliseconds: up, not down, or it would wake early and spin."""
    return -(-ns // MILLISECOND) / 1000 if ns > SPIN_NS else 0.0


def _nothing() -> None:
    """Nobody set a limit."""


class ProcessorFailure(Exception):
    """The processor could not go on; the sentence says where and why."""
