"""Going back in time: snapshots every so often, and a deterministic run from the last of them.

A :class:`History` keeps snapshots of one machine in virtual time and everything that reached it from outside in between. To be at
an earlier moment is to restore the last snapshot before it and to run up to it, giving the same inputs at the same moments.
A moment is a machine time in ns, or a number of *units of work* since power-on (code bytes executed, ``Processor.units``): the
machine stops at the first block boundary there or behind it, and a moment once seen is reached again exactly.

What comes after the moment may be kept: the machine then goes on as it did, inputs included, until somebody interferes.

The invariant: the entries lie in the order of their moments, and between two snapshots that are kept there is every input.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from avmm.clock import SECOND, VirtualClock
from avmm.control import snapshot as snapshots
from avmm.control.inputs import Input
from avmm.control.snapshot import Snapshot, SnapshotError
from avmm.hypervisor.advance import run_to
from avmm.hypervisor.partition import RunState

if TYPE_CHECKING:
    from avmm.control.vm import Vm

EVERY = 0.25
"""Seconds of machine time between two snapshots."""
MOST = 64
"""Snapshots that are kept; when there are more, every second one of the older half goes."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A snapshot with the number of inputs that came before it, and the units of work done by then."""

    snapshot: Snapshot
    inputs: int
    units: int

    @property
    def now(self) -> int:
        """Its machine time, ns."""
        return self.snapshot.partition.now


class History:
    """The past of one machine. Made by ``vm.keep_history()``; ends with the machine, or by :meth:`close`."""

    def __init__(self, vm: Vm, every: float = EVERY, most: int = MOST) -> None:
        if not isinstance(vm.partition.clock, VirtualClock):
            raise SnapshotError(f"{vm.name} is in real time, where no run can be repeated: give it clock='virtual'")
        self.moments: list[Moment] = []
        self._vm = vm
        self._every = int(every * SECOND)
        self._most = max(4, most)
        self._entries: list[Input] = []
        self._bell = asyncio.Event()
        self._timer = vm.partition.clock.timer(self._bell.set)
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Take the first snapshot, of a machine that runs or is paused: nobody goes back behind it."""
        self._vm.inputs.record(self._note)
        try:
            await self._remember()
        except BaseException:
            self._vm.inputs.stop(self._note)
            raise
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"history:{self._vm.name}")

    async def close(self) -> None:
        """Keep no history any more, and forget what there is."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
            self._vm.inputs.stop(self._note)
        self.moments.clear()
        self._entries.clear()

    @property
    def start(self) -> int:
        """The earliest moment that can be gone back to, in ns of machine time."""
        return self.moments[0].now

    # -- keeping

    def _note(self, entry: Input) -> None:
        self._entries.append(entry)

    def _interfered(self) -> None:
        """Something else happens from now on than what had happened."""
        del self._entries[len(self._entries) - self._vm.inputs.left :]
        self._forget_after(self._vm.partition.clock.now())

    async def _keep(self) -> None:
        while True:
            await self._bell.wait()
            self._bell.clear()
            async with self._lock:
                try:
                    await self._remember()
                except SnapshotError as error:  # it cannot be saved now; later perhaps
                    self._vm.partition.trace("no snapshot", reason=str(error))
                    self._timer.arm(self._vm.partition.clock.now() + self._every)

    async def _remember(self) -> None:
        async with self._vm.partition.still():
            now, units = self._vm.partition.clock.now(), self._vm.partition.processor.units
            if not self.moments or now > self.moments[-1].now:
                taken = await snapshots.take(self._vm)
                self.moments.append(Moment(taken, len(self._entries) - self._vm.inputs.left, units))
                self._thin_out()
        self._timer.arm(self.moments[-1].now + self._every)

    def _thin_out(self) -> None:
        if len(self.moments) > self._most:
            half = len(self.moments) // 2
            self.moments = [self.moments[0], *self.moments[2:half:2], *self.moments[half:]]

    def _forget_after(self, now: int) -> None:
        while len(self.moments) > 1 and self.moments[-1].now > now:
            self.moments.pop()

    # -- going back

    async def goto(self, *, now: int | None = None, units: int | None = None, keep: bool = False) -> None:
        """Be at a moment, and stand still there: at machine time ``now`` (ns), or where ``units`` of work were first done since power-on.

        A moment that lies ahead is run to. With ``keep`` what happened after the moment happens again when the machine goes
        on, until another input comes; otherwise it is forgotten. A machine that ends on the way has ended again: its state
        tells. Raises SnapshotError for a moment before :attr:`start`.
        """
        if (now is None) == (units is None):
            raise ValueError("goto wants a machine time or a number of units")
        vm, partition = self._vm, self._vm.partition
        async with self._lock:
            await partition.pause()
            vm.inputs.on_interference = None
            ahead = now >= partition.clock.now() if now is not None else (units or 0) > partition.processor.units
            if not ahead or partition.state is not RunState.PAUSED:
                await self._back_to(self._before(now, units))
            if (now or 0) > partition.clock.now() or (units or 0) > partition.processor.units:
                await run_to(partition, now=now, units=units)
            if keep:
                vm.inputs.on_interference = self._interfered
            else:
                self._interfered()
                vm.inputs.replay(())
            self._timer.arm(self.moments[-1].now + self._every)

    async def rewind(self, seconds: float) -> None:
        """Go back by so much machine time, or to the beginning, forget what came after, and go on from there unless paused."""
        paused = self._vm.state is RunState.PAUSED
        await self.goto(now=max(self.start, self._vm.partition.clock.now() - int(seconds * SECOND)))
        if not paused:
            await self._vm.resume()

    def _before(self, now: int | None, units: int | None) -> Moment:
        """Return the last snapshot from which a moment lies ahead."""
        if now is not None:
            at = bisect_right(self.moments, now, key=lambda moment: moment.now)
        else:
            at = max(1, bisect_left(self.moments, units or 0, key=lambda moment: moment.units))
        first = self.moments[0]
        if at == 0 or (units is not None and units < first.units):
            raise SnapshotError(f"the history of {self._vm.name} begins at {self.start / SECOND:.9f} s, after {first.units} units of work")
        return self.moments[at - 1]

    async def _back_to(self, moment: Moment) -> None:
        """Restore a snapshot, standing still, with the inputs behind it still to come."""
        await snapshots.restore(self._vm, moment.snapshot, paused=True)
        self._vm.inputs.replay(self._entries[moment.inputs :])
