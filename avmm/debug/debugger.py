"""One machine under a debugger: stopping it, stepping it, breakpoints, memory and registers.

Several may debug one machine at once, gdb and a console say: each has breakpoints of its own, all hear of each stop.

The invariant: memory and registers are looked at and changed only while the machine stands still between two instructions; an
access by a debugger reaches RAM only, never a device.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from avmm.cpu.engine import Cause, DebugUnit, Watch
from avmm.debug import paging
from avmm.hypervisor.partition import Partition, RunState


class DebugError(Exception):
    """What a debugger asked for cannot be done; one sentence says why."""


@dataclass(frozen=True, slots=True)
class Point:
    """A breakpoint, or with ``kind`` read, write or access a watchpoint, at a linear address. ``owner`` set it."""

    number: int
    owner: str
    kind: str
    address: int
    length: int = 1


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a machine stands still: step, breakpoint, watchpoint, pause (somebody paused it), begin (of its history), or ended.

    ``pc`` is the linear address of the next instruction, ``point`` what stopped it.
    """

    cause: str
    pc: int
    point: Point | None = None


class Debugger:
    """Debugs one partition. Raises DebugError when its processor has no debug unit."""

    def __init__(self, partition: Partition) -> None:
        if partition.processor.debug is None:
            raise DebugError(f"{partition.name} runs a guest written in Python, which has no instructions to debug")
        self.partition = partition
        self.points: dict[int, Point] = {}
        self.listeners: list[Callable[[Stop], None]] = []
        """Called at each stop, from within the machine's task: not the place to do much."""
        self.last: Stop | None = None
        self._numbers = 0
        self._quiet = False
        self._watched: list[Point] = []
        """What each of the processor's watches is part of."""
        partition.observers.append(self._changed)

    @property
    def unit(self) -> DebugUnit:
        """The processor's debug unit."""
        unit = self.partition.processor.debug
        assert unit is not None
        return unit

    def close(self) -> None:
        """Take away all breakpoints and look away. The machine must stand still, or have ended."""
        self.points.clear()
        if self._changed in self.partition.observers:
            self.partition.observers.remove(self._changed)
        if not self.partition.state.ended:
            self.load()
            self.unit.forget_step()

    # -- standing still

    @property
    def stopped(self) -> bool:
        """Whether the machine stands still, so that it can be looked at. So does one that is off."""
        return self.partition.state is not RunState.RUNNING

    @contextmanager
    def travelling(self) -> Iterator[Callable[[Stop], None]]:
        """Let the machine be stopped and go on with nobody being told, and without points unless :meth:`load` is called.

        What the caller gives to the function that this is the context of, is told in the end.
        """
        found: list[Stop] = []
        self.unload()
        self._quiet = True
        try:
            yield found.append
        finally:
            self._quiet = False
            if not self.partition.state.ended:
                self.load()
            for stop in found:
                self._tell(stop)

    def unload(self) -> None:
        """Let the processor forget the points and a step on its way."""
        self.unit.set_breakpoints([])
        self.unit.set_watchpoints([])
        self.unit.forget_step()

    def _changed(self, state: RunState) -> None:
        if self._quiet:
            return
        if state is RunState.PAUSED:
            self._tell(self.why())
        elif state.ended:
            self._tell(Stop("ended", 0))

    def why(self) -> Stop:
        """Return why the machine stands still."""
        if not self.partition.debug_stop:
            return Stop("pause", self.pc)
        cause, watch = self.unit.cause()
        point = None
        if cause is Cause.WATCHPOINT:
            point = self._watched[watch]
        elif cause is Cause.BREAKPOINT:
            point = next((point for point in self.points.values() if point.kind == "code" and point.address == self.pc), None)
        return Stop(cause.name.lower(), self.pc, point)

    def _tell(self, stop: Stop) -> None:
        self.last = stop
        for listener in list(self.listeners):
            listener(stop)

    def _check_not_ended(self) -> None:
        if self.partition.state.ended:
            raise DebugError(f"{self.partition.name} has ended")

    def check_stopped(self) -> None:
        """DebugError unless the machine stands still."""
        self._check_not_ended()
        if self.partition.state is not RunState.PAUSED:
            raise DebugError(f"{self.partition.name} runs: stop it first")

    async def pause(self) -> None:
        """Stop the machine where it is. Returns when it stands still."""
        self._check_not_ended()
        await self.partition.pause()
        if self.partition.state is RunState.PAUSED:
            self.unit.forget_step()

    async def resume(self) -> None:
        """Let the machine go on until something stops it."""
        self.check_stopped()
        self.load()
        await self.partition.resume()

    async def step(self, inside: range = range(0), *, interrupts: bool = False) -> None:
        """Let it execute one instruction, or go on inside a range of linear addresses; see ``DebugUnit.step``."""
        self.check_stopped()
        self.load()
        self.unit.step(inside, interrupts=interrupts)
        await self.partition.resume()

    async def next_stop(self) -> Stop:
        """Wait until the machine is stopped, or has ended."""
        if self.partition.state.ended:
            return Stop("ended", 0)
        found: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()

        def heard(stop: Stop) -> None:
            if not found.done():
                found.set_result(stop)

        self.listeners.append(heard)
        try:
            return await found
        finally:
            self.listeners.remove(heard)

    # -- breakpoints and watchpoints

    async def add(self, kind: str, address: int, length: int = 1, owner: str = "console") -> Point:
        """Set a breakpoint (``code``) or a watchpoint (``read``, ``write``, ``access``). DebugError when it cannot be."""
        self._check_not_ended()
        return await self.partition.at_boundary(lambda: self.add_now(kind, address, length, owner))

    def add_now(self, kind: str, address: int, length: int, owner: str) -> Point:
        """The same, of a machine that stands still."""
        self._numbers += 1
        point = self.points[self._numbers] = Point(self._numbers, owner, kind, address, length)
        try:
            self.load()
        except DebugError:
            del self.points[point.number]
            self.load()
            raise
        return point

    async def remove(self, number: int) -> Point:
        """Take one away."""
        if number not in self.points:
            raise DebugError(f"there is no breakpoint {number}")
        point = self.points.pop(number)
        await self._apply()
        return point

    def remove_now(self, kind: str, address: int, length: int, owner: str) -> None:
        """Take away what is like that, of a machine that stands still."""
        like = (owner, kind, address, length)
        self.points = {n: point for n, point in self.points.items() if (point.owner, point.kind, point.address, point.length) != like}
        if not self.partition.state.ended:
            self.load()

    async def remove_all(self, owner: str) -> None:
        """Take away all that ``owner`` set."""
        self.points = {number: point for number, point in self.points.items() if point.owner != owner}
        await self._apply()

    async def _apply(self) -> None:
        if not self.partition.state.ended:
            await self.partition.at_boundary(self.load)

    def load(self) -> None:
        """Let the processor know what points there are, of a machine that stands still."""
        self.unit.set_breakpoints([point.address for point in self.points.values() if point.kind == "code"])
        watches, self._watched = [], []
        for point in self.points.values():
            if point.kind == "code":
                continue
            for address, length in paging.pieces(point.address, point.length):
                physical = self.translate(address)
                if physical is None:
                    raise DebugError(f"{address:#x} is not mapped: nothing to watch there")
                watches.append(Watch(physical, length, point.kind != "write", point.kind != "read"))
                self._watched.append(point)
        try:
            self.unit.set_watchpoints(watches)
        except ValueError as error:
            raise DebugError(str(error)) from None

    # -- memory

    def _ram(self, physical: int, length: int) -> memoryview | None:
        ram = self.unit.ram(physical)
        return ram[:length] if ram is not None and len(ram) >= length else None

    def _number(self, physical: int, size: int) -> int | None:
        ram = self._ram(physical, size)
        return None if ram is None else int.from_bytes(ram, "little")

    def translate(self, linear: int) -> int | None:
        """Return the guest-physical address of a linear one, None where it is not mapped."""
        return paging.translate(self.partition.processor, self._number, linear)

    def _place(self, address: int, length: int, physical: bool) -> memoryview | None:
        where: int | None = address if physical else self.translate(address)
        return None if where is None else self._ram(where, length)

    def read(self, address: int, length: int, *, physical: bool = False) -> bytes:
        """Return what RAM holds from a linear (or guest-physical) address on, as far as it is mapped and RAM: perhaps nothing."""
        data = bytearray()
        for at, size in paging.pieces(address, length):
            ram = self._place(at, size, physical)
            if ram is None:
                break
            data += ram
        return bytes(data)

    def write(self, address: int, data: bytes, *, physical: bool = False) -> None:
        """Write RAM. DebugError, and nothing was written, where some of it is not mapped or no RAM."""
        places = []
        for at, size in paging.pieces(address, len(data)):
            where = at if physical else self.translate(at)
            ram = None if where is None else self._ram(where, size)
            if ram is None or where is None:
                raise DebugError(f"{at:#x} is not mapped, or no RAM")
            places.append((where, ram))
        done = 0
        for where, ram in places:
            ram[:] = data[done : done + len(ram)]
            self.partition.processor.invalidate(where, len(ram))
            done += len(ram)

    # -- registers

    @property
    def pc(self) -> int:
        """The linear address of the next instruction."""
        self.unit.begin()
        cpu = self.partition.processor
        return cpu.segment("cs").linear(cpu.register("rip"))

    def register(self, name: str) -> int:
        """Return a register by its name in gdb. KeyError when there is none."""
        self.unit.begin()
        return self.unit.read_register(name)

    def set_register(self, name: str, value: int) -> None:
        """Set a register. DebugError when the processor refuses the value; KeyError."""
        self.unit.begin()
        try:
            self.unit.write_register(name, value)
        except ValueError as error:
            raise DebugError(f"{name} cannot be {value:#x}: {error}") from None
        if name == "rip":
            self.partition.vcpu.restarted()  # it is not halted any more
