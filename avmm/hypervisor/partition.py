"""A partition: one virtual machine as the hypervisor sees it. It is the board that device models are plugged into.

It owns the processor, the memory, the buses, the interrupt lines and the clock, dispatches each VM exit to the device
inside or, as an I/O request packet, to the service OS outside, and carries the machine through its life: start, pause,
reset, power off, failure.

The invariant: lifecycle changes happen between two slices of the vCPU, and a pause returns only when no work is in flight.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from avmm.clock import MILLISECOND, Clock, VirtualClock, WallClock
from avmm.cpu.engine import LAST_TIME, Callbacks, CpuState, Processor
from avmm.devices.device import Device, PortRange
from avmm.devices.line import InterruptLine
from avmm.hypervisor.bus import BusError
from avmm.hypervisor.features import Msrs, cpuid
from avmm.hypervisor.irp import Irp
from avmm.hypervisor.plugboard import Plugboard
from avmm.hypervisor.ram import Ram
from avmm.hypervisor.report import GuestFailure, failure_report
from avmm.hypervisor.trace import Trace
from avmm.hypervisor.vcpu import ProcessorFailure, Stop, Vcpu
from avmm.hypervisor.work import Work
from avmm.memory import GuestMemory

T = TypeVar("T")
RESET_NS = 10 * MILLISECOND  # what RESET# takes in virtual time: a machine that resets for ever does not stand still in time


class RunState(enum.Enum):
    """Where a machine is in its life."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether it is off or has failed: only a saved state brings it back."""
        return self in (RunState.OFF, RunState.FAILED)


class Service(Protocol):
    """The service OS as the hypervisor sees it: someone who takes I/O request packets."""

    def submit(self, irp: Irp) -> Irp:
        """Take a packet; awaiting it gives the feedback."""


class Partition:
    """One virtual machine. Implements ``Board`` for its devices."""

    def __init__(
        self,
        name: str,
        ram_size: int,
        *,
        virtual_time: bool = False,
        seed: int = 0,
        slice_ns: int = MILLISECOND,
        service: Service | None = None,
        make_processor: Callable[[Callbacks, bool], Processor],
        on_triple_fault: str = "reset",
    ) -> None:
        self.name = name
        self.service = service
        self.on_triple_fault = on_triple_fault
        self.state = RunState.CREATED
        self.off_reason = ""
        self.failure: GuestFailure | None = None
        self.random = random.Random(seed)
        self.trace_log = Trace(self._now)
        self.resets = 0
        self.irps = 0
        self.lines: dict[int, InterruptLine] = {}
        self.msrs = Msrs()
        self.boot_state: Callable[[], CpuState] = CpuState
        """Makes the state that the processor starts from, after power-on and after each reset; loads firmware into RAM."""
        self.observers: list[Callable[[RunState], None]] = []
        self.holders: list[Callable[[bool], None]] = []
        """Told True when the machine is to stand still: who has tasks of their own begin nothing new from then on, until False."""
        self.ram = Ram(ram_size)
        self.memories: dict[int, memoryview] = {}
        """RAM elsewhere than at 0, by its address: what a firmware is shadowed in."""
        self._plugboard = plugboard = Plugboard(name, self._wait, self._send)
        self.ports, self.address_space = plugboard.ports, plugboard.address_space
        self.devices, self.placement = plugboard.devices, plugboard.placement
        self.plug, self.replug, self.unplug = plugboard.plug, plugboard.replug, plugboard.unplug
        self._errands: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self.on_irp: list[Callable[[Irp], None]] = []
        """Called with each I/O request packet on its way out."""
        callbacks = Callbacks(
            port_in=self.ports.read,
            port_out=self.ports.write,
            memory_read=self.address_space.read,
            memory_write=self.address_space.write,
            acknowledge=_nobody,
            window_done=self._plugboard.window_done,
            cpuid=cpuid,
            rdmsr=self.msrs.read,
            wrmsr=self.msrs.write,
        )
        self.processor = make_processor(callbacks, virtual_time)
        self._time_base, self._time_end = 0, LAST_TIME
        self.clock: Clock = VirtualClock(lambda: self.processor.units) if virtual_time else WallClock()
        if isinstance(self.clock, WallClock):
            self.clock.on_change = self._set_time_base
            self.clock.pause()  # machine time begins with the first instruction
        elif isinstance(self.clock, VirtualClock):
            self.clock.on_skip = self._set_time_base
        self.msrs.on_adjust = self._set_tsc
        self.vcpu = Vcpu(self.processor, self.clock, self._boundary, self._triple_fault, self._debug_stop, slice_ns=slice_ns)
        callbacks.acknowledge = self.vcpu.acknowledge
        self.memory = GuestMemory(self.ram.view, self.processor.invalidate)
        self.processor.map_ram(0, self.ram.view)
        self._work = Work(name, self.clock, self.vcpu.busy, self.fail)
        self.start = self._work.start
        self._task: asyncio.Task[None] | None = None
        self.wanted_reset: str | None = None
        """Why the machine is to be reset at the next boundary; None when it is not."""
        self._want_off: str | None = None
        self._want_pause = False
        self._holds = 0
        self.debug_stop = False
        """Whether it is the processor's debug unit that stopped the machine, perhaps in the middle of a block."""
        self._paused: asyncio.Future[None] | None = None
        self._resumed: asyncio.Future[None] | None = None
        self._ended = asyncio.Event()

    def _now(self) -> int:
        return self.clock.now()

    def _set_time_base(self, base: int, end: int = LAST_TIME) -> None:
        """Machine time is the processor's own count, or the host's time up to ``end``, plus ``base`` from now on: the TSC goes along."""
        self._time_base, self._time_end = base, end
        self._set_tsc()

    def _set_tsc(self) -> None:
        self.processor.set_time_base(self._time_base + self.msrs.tsc_adjust, self._time_end)

    # -- the board

    def move_ports(self, device: Device, before: tuple[PortRange, ...]) -> None:
        """A device's ``ports`` changed. Where the guest moves them onto another device's they are not visible."""
        try:
            self._plugboard.move_ports(device, before)
        except BusError as error:
            self.trace("ports not moved", device=device.name, reason=str(error))

    def _send(self, irp: Irp) -> Irp:
        assert self.service is not None
        self.irps += 1
        for observer in self.on_irp:
            observer(irp)
        return self.service.submit(irp)

    def line(self, number: int) -> InterruptLine:
        """Return the wire to interrupt input ``number``."""
        return self.lines.setdefault(number, InterruptLine(number))

    def trace(self, event: str, **fields: object) -> None:
        """Record something worth knowing, rate-limited."""
        self.trace_log.add(event, fields)

    def reset(self, reason: str) -> None:
        """Ask for a machine reset at the next boundary."""
        self.wanted_reset = reason
        self._attention()

    def power_off(self, reason: str) -> None:
        """Ask for power off at the next boundary."""
        self._want_off = reason
        self._attention()

    def add_memory(self, address: int, buffer: memoryview) -> None:
        """Have more RAM at ``address``."""
        self.memories[address] = buffer
        self.processor.map_ram(address, buffer)

    def map_ram(self, first: int, size: int, buffer: memoryview | None) -> None:
        """Let a range go straight to ``buffer``, or to the device again."""
        if buffer is None:
            self.processor.unmap_ram(first, size)
        else:
            self.processor.map_ram(first, buffer[:size])

    def window(self, port: int, buffer: memoryview | None, *, out: bool = False, start: int = 0) -> None:
        """Serve ``port`` from or into ``buffer``."""
        self.processor.window(port, buffer, out=out, start=start)

    def window_position(self, port: int) -> int:
        """Return how many bytes of the port's window have been moved."""
        return self.processor.window_position(port)

    # -- VM exits

    def _wait(self, awaitable: Awaitable[Any]) -> int:
        value = self.vcpu.wait(awaitable)
        return value if isinstance(value, int) else 0

    def _triple_fault(self) -> None:
        if self.on_triple_fault == "reset":
            self.trace("triple fault", action="reset")
            self.wanted_reset = "triple fault"
        else:
            self._want_off = "triple fault"

    # -- life

    async def power_on(self, *, paused: bool = False) -> None:
        """Start the vCPU task. Returns at once; the machine runs until it is off. ``paused``: not before :meth:`resume`."""
        if self._task is not None:
            raise RuntimeError(f"{self.name} is on already")
        self._want_pause = paused
        self._boot()
        await self._go()

    async def revive(self, *, paused: bool = False) -> None:
        """Start the vCPU task of a machine that was never on, is off or has failed, and into which a saved state was put."""
        self.failure, self.off_reason = None, ""
        self._want_off, self._want_pause = None, paused
        self._ended.clear()
        self._paused = asyncio.get_running_loop().create_future() if paused else None
        await self._go()
        if self._paused is not None:
            await self._paused

    async def _go(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"vm:{self.name}")
        self.vcpu.yield_soon()  # whoever powers on can arm a wait before the first instruction: in virtual time HLT jumps far
        await asyncio.sleep(0)

    async def _run(self) -> None:
        try:
            if isinstance(self.clock, WallClock):
                self.clock.resume()
            self._enter(RunState.RUNNING)
            self._hold(False)
            await self.vcpu.run()
        except ProcessorFailure as failure:
            self.fail(failure)
        except Exception as bug:
            self.fail(bug)
        finally:
            self._work.cancel()
            if isinstance(self.clock, WallClock):
                self.clock.pause()
            if not self.state.ended:
                self._enter(RunState.OFF)
            self._run_errands()
            for future in (self._paused, self._resumed):
                if future is not None and not future.done():
                    future.set_result(None)
            self._ended.set()

    def _boot(self) -> None:
        self.processor.reset(self.boot_state())
        self.follow_processor()

    def follow_processor(self) -> None:
        """The processor's counter is another one since it was reset or restored."""
        if isinstance(self.clock, VirtualClock):
            self.clock.executed = self.processor.executed

    def _enter(self, state: RunState) -> None:
        self.state = state
        for observer in list(self.observers):
            observer(state)

    def fail(self, error: Exception) -> None:
        """Stop this machine because of ``error``; the report says in which state it was."""
        if self.failure is None:
            self.failure = GuestFailure(failure_report(self, error))
            self.failure.__cause__ = error
            self.trace("failure", error=str(error))
            self._enter(RunState.FAILED)
        self._attention()

    def _attention(self) -> None:
        self.processor.stop()
        self.vcpu.wake()

    def _boundary(self) -> None:
        """Between two slices: do what was asked for."""
        self._run_errands()
        if self.failure is not None:
            raise Stop
        if self._want_off is not None:
            self.off_reason = self._want_off
            self._enter(RunState.OFF)
            raise Stop
        if self.wanted_reset is not None:
            self._do_reset()
        while (self._want_pause or self._holds) and self._want_off is None:
            self.vcpu.stand(self._stand_still())

    def _debug_stop(self) -> None:
        """The debug unit has stopped the processor, between two instructions but not two slices: stand still as after :meth:`pause`."""
        self._want_pause = self.debug_stop = True
        while (self._want_pause or self._holds) and self._want_off is None and self.failure is None:
            self.vcpu.stand(self._stand_still())
        self.debug_stop = False
        if self._want_off is not None or self.failure is not None:
            self._boundary()  # raises Stop

    async def at_boundary(self, action: Callable[[], T]) -> T:
        """Call ``action`` between two instructions, when no access is in progress, and return its result or raise what it raised.

        Cancelled while waiting, the action is not called. A machine that is paused or off is between two instructions.
        """
        if self.state is not RunState.RUNNING:
            return action()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._errands.append((action, future))
        self._attention()
        return await future

    def _run_errands(self) -> None:
        if self._errands:
            self.vcpu.yield_soon()  # whoever waits goes on at this very moment, not some jumps of a halted machine later
        while self._errands:
            action, future = self._errands.popleft()
            if future.done():  # cancelled
                continue
            try:
                future.set_result(action())
            except Exception as error:
                future.set_exception(error)

    def _hold(self, held: bool) -> None:
        for holder in self.holders:
            holder(held)

    async def _stand_still(self) -> None:
        self._hold(True)
        try:
            await self._until_resumed()
        finally:
            self._hold(False)

    async def _until_resumed(self) -> None:
        await self._work.idle()
        if not (self._want_pause or self._holds):
            return
        if isinstance(self.clock, WallClock):
            self.clock.pause()
        self._resumed = asyncio.get_running_loop().create_future()
        if self._want_pause:
            self._enter(RunState.PAUSED)
        if self._paused is not None and not self._paused.done():
            self._paused.set_result(None)
        await self._resumed
        if isinstance(self.clock, WallClock):
            self.clock.resume()
        if self.failure is None and self.state is RunState.PAUSED and not self._want_pause:
            self._enter(RunState.RUNNING)

    def _do_reset(self) -> None:
        self.trace("reset", reason=self.wanted_reset)
        self.wanted_reset = None
        self.resets += 1
        for device in self.devices.values():
            device.reset()
        self.msrs.reset()
        self.vcpu.interrupt(False)
        if isinstance(self.clock, VirtualClock):
            self.clock.advance_to(self.clock.now() + RESET_NS)
        self._boot()
        self.vcpu.restarted()
        self.vcpu.yield_soon()  # whoever waits sees each reset: a machine that resets for ever executes hardly anything
        controller = self.vcpu.controller
        self.vcpu.interrupt(controller is not None and controller.intr)

    async def pause(self) -> None:
        """Stop machine time between two instructions; returns when no work is in flight."""
        if self.state is not RunState.RUNNING:
            return
        self._want_pause = True
        await self._standing_still()

    def pause_here(self) -> None:
        """Pause at this very moment; only from within the machine, such as a timer of its clock."""
        self._want_pause = True
        self.vcpu.yield_soon()

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Hold a machine that runs or is paused between two instructions with no work in flight, whoever resumes it meanwhile.

        That is nobody else's business: its state is what it was.
        """
        self._holds += 1
        try:
            if self.state is RunState.RUNNING and not self._stands_still:
                await self._standing_still()
            yield
        finally:
            self._holds -= 1
            if not (self._holds or self._want_pause):
                await self._look_around()

    @property
    def _stands_still(self) -> bool:
        return self._resumed is not None and not self._resumed.done()

    async def _standing_still(self) -> None:
        if self._paused is None or self._paused.done():
            self._paused = asyncio.get_running_loop().create_future()
        await self._look_around()
        self._attention()
        await asyncio.shield(self._paused)  # others may wait for the same pause

    async def _look_around(self) -> None:
        """Let a machine that stands still see whether it still has to."""
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
            self.vcpu.yield_soon()  # whoever let it go on goes on at this very moment
            await asyncio.sleep(0)

    async def resume(self) -> None:
        """Go on after :meth:`pause`."""
        self._want_pause = False
        if not self._holds and self._paused is not None and not self._paused.done():
            self._paused.set_result(None)  # it comes before the pause has begun
        await self._look_around()

    async def stop(self, reason: str = "stopped") -> None:
        """Power off now and wait for the end; the partition keeps its memory and registers for inspection until :meth:`close`."""
        if self._task is None:
            self._enter(RunState.OFF)
            return
        if self._want_off is None:
            self._want_off = reason
        self._want_pause = False
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        self._attention()
        done, _ = await asyncio.wait([self._task], timeout=1.0)
        if not done:  # it waits for something outside that does not answer
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._work.cancelled()

    async def ended(self) -> None:
        """Wait until the machine is off or has failed."""
        await self._ended.wait()

    def close(self) -> None:
        """Give back the memory. Only after the machine has ended."""
        self.processor.close()
        self.ram.close()
        self.memory.on_write = None


def _nobody() -> None:
    """Answer INTA where no vCPU is yet."""
