"""The vCPU task: slices, HLT, waiting inside an instruction, and who may end it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from avmm.clock import MILLISECOND, Clock, VirtualClock, WallClock
from avmm.cpu.engine import Callbacks, Exit
from avmm.cpu.script import Guest, ScriptCpu, ScriptProcessor
from avmm.hypervisor.vcpu import IDLE_NS, ProcessorFailure, Stop, Vcpu
from tests.hypervisor.rig import STATE
from tests.turns import turns

END = 7  # OUT there stops the vCPU


RIGS: list[Rig] = []


@pytest.fixture(autouse=True)
def _end_the_guests() -> Iterator[None]:
    yield
    while RIGS:
        RIGS.pop().cpu.close()


class Rig:
    """A vCPU with a scripted guest; ``stop()``, or the guest's OUT to END, ends it at the next boundary."""

    def __init__(self, guest: Guest, *, virtual: bool = True, port_in: Callable[[int, int], int] | None = None) -> None:
        self.log: list[tuple[int, int]] = []
        self.vectors: list[int] = []
        self.shutdowns = 0
        self.stopping = False
        callbacks = Callbacks(port_in or (lambda port, size: 0), self._out, lambda a, s: 0,
                              lambda a, s, v: None, self._acknowledge, lambda port: None,
                              lambda leaf, sub, native: native, lambda index: 0, lambda index, value: True)  # fmt: skip
        self.cpu = ScriptProcessor(callbacks, guest)
        self.cpu.reset(STATE)
        RIGS.append(self)
        self.clock: Clock = VirtualClock(lambda: self.cpu.units) if virtual else WallClock()
        self.vcpu = Vcpu(self.cpu, self.clock, self.boundary, self.shutdown)

    def _out(self, port: int, size: int, value: int) -> None:
        self.log.append((port, value))
        if port == END:
            self.stop()

    def _acknowledge(self) -> int | None:
        vector = self.vectors.pop(0) if self.vectors else None
        self.vcpu.interrupt(bool(self.vectors))
        return vector

    def boundary(self) -> None:
        if self.stopping:
            raise Stop

    def shutdown(self) -> None:
        self.shutdowns += 1
        self.stopping = True

    def stop(self) -> None:
        self.stopping = True
        self.cpu.stop()
        self.vcpu.wake()


async def spin(cpu: ScriptCpu) -> None:
    while True:
        await cpu.outb(1, 1)


@pytest.mark.asyncio
async def test_the_loop_stays_responsive() -> None:
    """The event loop has its turn after each slice."""
    rig = Rig(spin, virtual=False)
    task = asyncio.create_task(rig.vcpu.run())
    for slices in range(1, 6):
        while rig.vcpu.slices < slices:
            await asyncio.sleep(0)
        assert rig.vcpu.slices == slices
    rig.stop()
    await task


@pytest.mark.asyncio
@pytest.mark.parametrize("again", ["from its callback", "by the guest"])
async def test_a_timer_in_the_midst_of_a_slice_does_not_end_it(monkeypatch: pytest.MonkeyPatch, again: str) -> None:
    """The event loop has its turn after each millisecond of the host's time, however often timers fire and are armed meanwhile."""
    host = 0
    monkeypatch.setattr(time, "monotonic_ns", lambda: host)

    def port_in(port: int, size: int) -> int:
        nonlocal host
        host += 1000
        if not timer.armed:
            timer.arm(rig.clock.now() + 100_000)
        return 0

    async def guest(cpu: ScriptCpu) -> None:
        while True:
            await cpu.inb(1)

    def tick() -> None:
        fired.append(rig.clock.now())
        if again == "from its callback":
            timer.arm(rig.clock.now() + 100_000)

    rig = Rig(guest, virtual=False, port_in=port_in)
    fired: list[int] = []
    timer = rig.clock.timer(tick)
    task = asyncio.create_task(rig.vcpu.run())
    turns = []
    for _ in range(5):
        await asyncio.sleep(0)
        turns.append(rig.clock.now())
    rig.stop()
    await task
    assert all(MILLISECOND <= later - earlier <= MILLISECOND + 200_000 for earlier, later in pairwise(turns))  # runs end every 200 us
    assert len(fired) > 3 * len(turns)


@pytest.mark.asyncio
async def test_timers_fire_at_their_deadline_in_virtual_time() -> None:
    rig = Rig(spin)
    fired: list[int] = []
    timer = rig.clock.timer(lambda: fired.append(rig.clock.now()))
    timer.arm(5000)
    rig.clock.timer(rig.stop).arm(6000)
    await rig.vcpu.run()
    assert fired == [5000]


@pytest.mark.asyncio
async def test_halted_virtual_time_jumps() -> None:
    async def handler(cpu: ScriptCpu) -> None:
        await cpu.outb(0x20, 0)

    async def guest(cpu: ScriptCpu) -> None:
        cpu.on(0x20, handler)
        cpu.sti()
        for _ in range(100):
            await cpu.hlt()
        await cpu.outb(END, 0)

    rig = Rig(guest)
    times: list[int] = []

    def tick() -> None:
        times.append(rig.clock.now())
        rig.vectors.append(0x20)
        rig.vcpu.interrupt(True)
        timer.arm(rig.clock.now() + 3600 * 1_000_000_000)

    timer = rig.clock.timer(tick)
    timer.arm(1_000_000)
    begin = time.monotonic()
    await rig.vcpu.run()
    assert time.monotonic() - begin < 5  # a hundred hours of machine time
    assert len(times) == 100
    assert all(b - a == 3600 * 1_000_000_000 for a, b in pairwise(times))
    assert rig.vcpu.halts >= 100


@pytest.mark.asyncio
@pytest.mark.parametrize("tick", [MILLISECOND // 100, MILLISECOND, 55 * MILLISECOND])
async def test_an_idle_machine_lets_the_loop_have_its_turn(tick: int) -> None:
    """Turns come after some jumps and after some machine time: a request that takes several turns is not seconds late."""

    async def guest(cpu: ScriptCpu) -> None:
        cpu.sti()
        await cpu.hlt()

    rig = Rig(guest)
    timer = rig.clock.timer(lambda: timer.arm(rig.clock.now() + tick))
    timer.arm(tick)
    task = asyncio.create_task(rig.vcpu.run())
    times = []
    for _ in range(20):
        await asyncio.sleep(0)
        times.append(rig.clock.now())
    rig.stop()
    await task
    longest = max(b - a for a, b in pairwise(times))
    assert longest <= max(tick, min(64 * tick, IDLE_NS + tick))


@pytest.mark.asyncio
async def test_halted_real_time_waits_for_the_interrupt() -> None:
    async def guest(cpu: ScriptCpu) -> None:
        cpu.sti()
        await cpu.hlt()
        await cpu.outb(7, 7)

    rig = Rig(guest, virtual=False)
    task = asyncio.create_task(rig.vcpu.run())
    await turns()
    assert rig.log == []
    rig.vcpu.wake()  # for nothing
    await turns()
    assert rig.log == []
    asleep = rig.vcpu.idle_ns
    await turns()
    assert rig.vcpu.idle_ns > asleep > 0  # it is counted while it sleeps
    rig.vectors.append(0x20)
    rig.vcpu.interrupt(True)
    await task
    assert rig.log == [(7, 7)]
    awake = rig.vcpu.idle_ns
    assert awake >= asleep
    assert rig.vcpu.idle_ns == awake


@pytest.mark.asyncio
async def test_waiting_inside_an_instruction() -> None:
    async def guest(cpu: ScriptCpu) -> None:
        await cpu.outb(END, await cpu.inb(0x60))

    async def answer() -> int:
        await turns()
        return 0x77

    rig = Rig(guest, port_in=lambda port, size: rig.vcpu.wait(answer()))
    await rig.vcpu.run()
    assert rig.log == [(END, 0x77)]
    assert rig.vcpu.outside_ns > 0


@pytest.mark.asyncio
async def test_an_exception_is_raised_inside_the_instruction() -> None:
    async def guest(cpu: ScriptCpu) -> None:
        await cpu.inb(0x60)

    async def answer() -> int:
        raise OSError("gone")

    rig = Rig(guest, port_in=lambda port, size: rig.vcpu.wait(answer()))
    with pytest.raises(OSError, match="gone"):
        await rig.vcpu.run()


@pytest.mark.asyncio
async def test_only_a_running_vcpu_waits() -> None:
    rig = Rig(spin)
    future = asyncio.get_running_loop().create_future()
    with pytest.raises(RuntimeError, match="only a running vCPU can wait"):
        rig.vcpu.wait(future)


@pytest.mark.asyncio
@pytest.mark.parametrize("virtual", [True, False])
async def test_cancelling_a_halted_or_running_vcpu(virtual: bool) -> None:
    async def halted(cpu: ScriptCpu) -> None:
        cpu.sti()
        await cpu.hlt()

    for guest in (spin, halted):
        rig = Rig(guest, virtual=virtual)
        task = asyncio.create_task(rig.vcpu.run())
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.asyncio
async def test_shutdown_and_error() -> None:
    rig = Rig(spin)
    rig.cpu.run = lambda budget, deadline=None: Exit.SHUTDOWN  # type: ignore[method-assign]
    await rig.vcpu.run()
    assert rig.shutdowns == 1
    rig = Rig(spin)
    rig.cpu.run = lambda budget, deadline=None: Exit.ERROR  # type: ignore[method-assign]
    rig.cpu.failure = "it gave up"
    with pytest.raises(ProcessorFailure, match="it gave up"):
        await rig.vcpu.run()


@pytest.mark.asyncio
async def test_machine_time_waits_for_the_host() -> None:
    rig = Rig(spin)
    ready = asyncio.get_running_loop().create_future()
    fired: list[int] = []

    def fire() -> None:
        fired.append(rig.clock.now())
        rig.stop()

    timer = rig.clock.timer(fire)
    timer.ready = ready
    timer.arm(1000)
    task = asyncio.create_task(rig.vcpu.run())
    await turns()
    assert fired == []
    assert rig.clock.now() == 1000  # it stands still
    ready.set_result(None)
    await task
    assert fired == [1000]
