"""Reverse execution: the instruction before this one, and the breakpoint met last, by going back and running forward again.

A machine in virtual time that keeps a history (avmm.control.history) does again what it did. So the instruction before this one is
found by going back a little and stepping until this one comes; the last stop before this one by running from one snapshot after
another, the latest first, and counting stops.

The invariant: positions are compared by what tells one moment from another, units of work and program counter, never by host time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from avmm.control.history import History
from avmm.debug.debugger import DebugError, Debugger, Stop
from avmm.hypervisor.advance import run_on, run_to

if TYPE_CHECKING:
    from avmm.control.vm import Vm

NEAR, FARTHER = 64, 16  # units to go back at first; by how much more when that was not enough


@dataclass(frozen=True, slots=True)
class Position:
    """A moment between two instructions. ``inside`` a block its units are counted already; so it comes before the block's end."""

    units: int
    inside: bool
    pc: int

    def behind(self, other: Position) -> bool:
        """Whether it comes after ``other``, or is it."""
        if self == other:
            return True
        if self.units != other.units or not (self.inside or other.inside):
            return self.units > other.units
        return other.inside and (not self.inside or self.pc > other.pc)


class Reverse:
    """Runs one machine backwards. Raises DebugError without a history."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._over: asyncio.Future[None] | None = None
        """Done when the :meth:`resume` that is under way has ended."""
        self._called_off = self._searching = False

    @property
    def available(self) -> bool:
        """Whether there is a history to go back in."""
        return self._vm.history is not None

    @property
    def _debugger(self) -> Debugger:
        return self._vm.debugger

    def _history(self) -> History:
        history = self._vm.history
        if history is None:
            raise DebugError(f"{self._vm.name} has no history to go back in: call keep_history() before, or give it --gdb-reverse")
        self._debugger.check_stopped()
        return history

    def _here(self) -> Position:
        processor = self._vm.partition.processor
        return Position(processor.units, self._debugger.unit.in_block, self._debugger.pc)

    async def step(self) -> Stop:
        """Be before the instruction that was executed last."""
        history = self._history()
        with self._debugger.travelling() as arrived:
            arrived(await self._step_back(history))
        return self._debugger.last or Stop("begin", 0)

    async def resume(self) -> Stop:
        """Be where a breakpoint stopped it last, or before the instruction that touched what is watched, or at the beginning."""
        history = self._history()
        self._called_off, self._over = False, asyncio.get_running_loop().create_future()
        try:
            with self._debugger.travelling() as arrived:
                arrived(await self._resume_back(history))
        finally:
            self._over.set_result(None)
            self._over = None
        return self._debugger.last or Stop("begin", 0)

    async def call_off(self) -> bool:
        """End a :meth:`resume` that is under way, whose stop is a pause then, and wait for that; returns whether there was one."""
        if self._over is None:
            return False
        self._called_off = True
        if self._searching:
            await self._vm.partition.pause()
        if self._over is not None:
            await asyncio.shield(self._over)
        return True

    async def _search(self, running: Awaitable[None]) -> None:
        """Let the machine run, as long as nobody calls that off."""
        self._searching = True
        try:
            await running
        finally:
            self._searching = False

    async def _step_back(self, history: History) -> Stop:
        here, first, back = self._here(), history.moments[0].units, NEAR
        self._debugger.unload()
        while True:
            start = max(first, here.units - back)
            steps = await self._steps_to(history, start, here)
            if steps:
                await history.goto(units=start, keep=True)
                for _ in range(steps - 1):
                    await self._one_step()
                return Stop("step", self._debugger.pc)
            if start == first:
                await history.goto(units=first, keep=True)
                return Stop("begin", self._debugger.pc)
            back *= FARTHER

    async def _steps_to(self, history: History, start: int, here: Position) -> int:
        """Return how many instructions there are from the moment ``start`` to ``here``; 0 when it does not come, or is that moment."""
        await history.goto(units=start, keep=True)
        count = 0
        while not (now := self._here()).behind(here):
            await self._one_step()
            count += 1
        return count if now == here else 0

    async def _one_step(self) -> None:
        self._debugger.unit.step(interrupts=True)
        await run_on(self._vm.partition)

    async def _resume_back(self, history: History) -> Stop:
        here, searched = self._here(), None
        for start in [moment.units for moment in reversed(history.moments) if moment.units < here.units]:
            hits = await self._hits(history, start, here)
            found = await self._hit(history, start, hits) if hits else None
            if self._called_off:
                return await self._stay(history, here, searched)
            if found is not None:
                return found
            searched = start
        await history.goto(units=history.moments[0].units, keep=True)
        return Stop("begin", self._debugger.pc)

    async def _stay(self, history: History, here: Position, searched: int | None) -> Stop:
        """Be at the moment ``searched``, behind which there is nothing, or as long as there is none where it all began, ``here``."""
        self._debugger.unload()
        if searched is not None:
            await history.goto(units=searched, keep=True)
        else:
            await self._steps_to(history, max(history.moments[0].units, here.units - NEAR), here)
        return Stop("pause", self._debugger.pc)

    async def _hits(self, history: History, start: int, here: Position) -> int:
        """Return how often the machine is stopped from the moment ``start`` until it is ``here``, where a watchpoint may stop it too."""
        await history.goto(units=start, keep=True)
        self._debugger.load()
        hits = 0
        while not self._called_off:
            await self._search(run_to(self._vm.partition, units=here.units))
            if not self._vm.partition.debug_stop:
                break
            now = self._here()
            watched = self._debugger.why().cause == "watchpoint"
            hits += watched if now == here else not now.behind(here)
            if now.behind(here):
                break
        self._debugger.unload()
        return hits

    async def _hit(self, history: History, start: int, number: int) -> Stop:
        await history.goto(units=start, keep=True)
        self._debugger.load()
        for _ in range(number):
            if self._called_off:
                break
            await self._search(run_on(self._vm.partition))
        stop = self._debugger.why()
        if self._called_off:
            return stop
        if stop.cause == "watchpoint":  # forward it stops behind the access, backward before it
            before = await self._step_back(history)
            return Stop("watchpoint", before.pc, stop.point)
        return stop
