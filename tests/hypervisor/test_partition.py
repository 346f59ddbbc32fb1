"""A machine's life, the board it is for its devices, and what happens when something goes wrong."""

from __future__ import annotations

import asyncio
import gc
import threading
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.cpu.script import ScriptCpu
from avmm.devices.device import Device, MemoryRange, PortRange
from avmm.hypervisor.bus import BusError
from avmm.hypervisor.irp import Irp, IrpKind
from avmm.hypervisor.partition import Partition, RunState
from tests.hypervisor.rig import Machine, Toy
from tests.turns import turns, until

COUNT = "mov dx, 0x300\nagain: inc dword [0x3000]\nout dx, al\njmp again"
HALTED = "mov word [0x80], handler\nmov word [0x82], 0\nsti\nagain: hlt\ninc dword [0x3000]\njmp again\nhandler: inc dword [0x3004]\niret"
WAITING = "mov dx, 0x300\nagain: in al, dx\ninc dword [0x3000]\njmp again"


@pytest.mark.asyncio
@pytest.mark.parametrize("virtual", [True, False])
@pytest.mark.parametrize("source", [COUNT, HALTED, WAITING], ids=["running", "halted", "waiting"])
async def test_pause_resume_reset_and_stop(source: str, virtual: bool) -> None:
    machine = Machine(source, virtual=virtual, inside=source != WAITING)
    partition = machine.partition
    pending: list[asyncio.Task[None]] = []

    async def answer() -> None:
        while True:
            await machine.service.arrived.wait()
            machine.service.arrived.clear()
            for irp in machine.service.irps:
                irp.complete(1)
            await asyncio.sleep(0)

    pending.append(asyncio.create_task(answer()))
    await partition.power_on()
    assert partition.state is RunState.RUNNING
    with pytest.raises(RuntimeError, match="is on already"):
        await partition.power_on()
    for _ in range(3):
        await turns()
        if source == HALTED:
            machine.controller.raise_()
        await until(lambda: machine.peek(0x3000))
        await partition.pause()
        assert partition.state is RunState.PAUSED  # type: ignore[comparison-overlap]
        now, count = partition.clock.now(), machine.peek(0x3000)  # type: ignore[unreachable]
        await turns()
        assert (partition.clock.now(), machine.peek(0x3000)) == (now, count)
        await partition.pause()  # again: nothing to do
        await partition.resume()
        await partition.resume()
        assert partition.state is RunState.RUNNING
    before = machine.boots
    partition.reset("test")
    await until(lambda: machine.boots == before + 1)
    assert (partition.resets, machine.toy.resets) == (1, 1)
    await partition.stop("enough")
    assert partition.state is RunState.OFF  # type: ignore[comparison-overlap]
    assert partition.off_reason == "enough"  # type: ignore[unreachable]
    assert machine.states[-1] == "off"
    await partition.ended()
    await partition.stop()
    partition.close()
    pending[0].cancel()


@pytest.mark.asyncio
@pytest.mark.parametrize("virtual", [True, False])
async def test_stop_while_waiting_for_an_irp_that_is_never_answered(virtual: bool) -> None:
    machine = Machine(WAITING, virtual=virtual, inside=False)
    await machine.partition.power_on()
    await machine.service.arrived.wait()
    await machine.partition.stop()
    assert machine.partition.state is RunState.OFF
    assert machine.service.irps[0].done
    machine.partition.close()


@pytest.mark.asyncio
async def test_stop_while_paused_and_before_power_on() -> None:
    machine = Machine(COUNT)
    await machine.partition.stop()
    assert machine.partition.state is RunState.OFF
    machine.partition.close()
    machine = Machine(COUNT)
    await machine.partition.power_on()
    await machine.partition.pause()
    await machine.partition.stop()
    assert machine.partition.state is RunState.OFF
    machine.partition.close()


def halted(machine: Machine, times: int) -> bool:
    return machine.peek(0x3000) == times and machine.partition.vcpu.halts == times


@pytest.mark.asyncio
async def test_reset_while_halted_with_interrupts_off() -> None:
    machine = Machine("inc dword [0x3000]\ncli\nhlt", virtual=False)
    await machine.partition.power_on()
    for n in range(1, 4):
        await until(partial(halted, machine, n))
        machine.partition.reset("button")
    await until(lambda: machine.peek(0x3000) == 4)
    await machine.partition.stop()
    machine.partition.close()


@pytest.mark.asyncio
async def test_a_device_resets_the_machine_from_within_an_access() -> None:
    machine = Machine("inc dword [0x3000]\nmov dx, 0x300\nmov al, [0x3000]\nout dx, al\nhlt")
    machine.toy.on_write = lambda port, value: machine.partition.reset("toy") if value < 3 else machine.partition.power_off("toy")
    await machine.partition.power_on()
    await machine.partition.ended()
    assert machine.peek(0x3000) == 3
    assert machine.partition.resets == 2
    assert machine.partition.off_reason == "toy"
    machine.partition.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("virtual", [True, False])
async def test_a_machine_that_resets_for_ever_leaves_the_event_loop_its_turn(virtual: bool) -> None:
    machine = Machine("lidt [z]\nint3\nz: dw 0\ndd 0", on_triple_fault="reset", virtual=virtual)
    partition = machine.partition
    await partition.power_on()
    for _ in range(20):
        before = partition.resets
        await asyncio.sleep(0)
        assert partition.resets <= before + 1
    assert partition.resets >= 10
    await partition.stop()
    partition.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(("policy", "boots"), [("stop", 1), ("reset", 3)])
async def test_triple_fault(policy: str, boots: int) -> None:
    machine = Machine("lidt [z]\nint3\nz: dw 0\ndd 0", on_triple_fault=policy)
    partition = machine.partition
    partition.observers.append(lambda state: None)
    boot = partition.boot_state

    def counted() -> object:
        if machine.boots == boots - 1 and policy == "reset":
            partition.power_off("seen enough")
        return boot()

    partition.boot_state = counted  # type: ignore[assignment]
    await partition.power_on()
    await partition.ended()
    assert machine.boots == boots
    assert partition.off_reason == ("triple fault" if policy == "stop" else "seen enough")
    partition.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("virtual", [True, False])
async def test_a_device_exception_stops_this_machine_only(virtual: bool) -> None:
    bad, good = Machine(COUNT, virtual=virtual, name="bad"), Machine(COUNT, virtual=virtual, name="good")

    def broken(port: int, value: int) -> None:
        if len(bad.toy.log) > 3:
            raise ZeroDivisionError("the toy is broken")

    bad.toy.on_write = broken
    await bad.partition.power_on()
    await good.partition.power_on()
    await bad.partition.ended()
    assert bad.partition.state is RunState.FAILED
    assert bad.states[-1] == "failed"
    assert isinstance(bad.partition.failure, Exception)
    report = str(bad.partition.failure)
    for part in ("bad failed", "the toy is broken", "rip ", "next instructions", "last exits", "0x0300", "broken"):
        assert part in report, report
    seen = good.peek(0x3000)
    await until(lambda: good.peek(0x3000) > seen)
    assert good.partition.state is RunState.RUNNING
    for machine in (bad, good):
        await machine.partition.stop()
        machine.partition.close()
    assert bad.partition.state is RunState.FAILED


@pytest.mark.asyncio
async def test_a_failed_irp_fails_the_machine() -> None:
    machine = Machine(WAITING, inside=False)
    await machine.partition.power_on()
    await machine.service.arrived.wait()
    machine.service.irps[0].fail(OSError("the outside is gone"))
    await machine.partition.ended()
    assert machine.partition.state is RunState.FAILED
    assert "the outside is gone" in str(machine.partition.failure)
    machine.partition.close()


@pytest.mark.asyncio
async def test_a_timer_that_raises_fails_the_machine() -> None:
    machine = Machine("hlt")

    def bad() -> None:
        raise KeyError("timer")

    machine.partition.clock.timer(bad).arm(1000)
    await machine.partition.power_on()
    await machine.partition.ended()
    assert machine.partition.state is RunState.FAILED
    machine.partition.close()


# -- work in the background


@pytest.mark.asyncio
@pytest.mark.parametrize("latency", [0, 1, 5_000, 12_345_678])
@pytest.mark.parametrize("delay", [0, 500])
async def test_work_is_done_exactly_at_its_latency_in_virtual_time(latency: int, delay: int) -> None:
    """However long the host takes: the machine waits for it."""
    machine = Machine("mov word [0x80], handler\nmov word [0x82], 0\nmov dx, 0x300\nout dx, al\nsti\nagain: hlt\njmp again\nhandler: mov dx, 0x301\nout dx, al\ncli\nhlt")
    partition = machine.partition
    times: list[int] = []

    async def work() -> str:
        await turns(delay)
        return "result"

    def done(result: object) -> None:
        assert result == "result"
        times.append(partition.clock.now())
        machine.controller.raise_()

    def on_write(port: int, value: int) -> None:
        times.append(partition.clock.now())
        if port == 0x300:
            partition.start(work(), done, latency)
        else:
            partition.power_off("done")

    machine.toy.on_write = on_write
    await partition.power_on()
    await partition.ended()
    assert partition.state is RunState.OFF
    assert times[0] + latency <= times[1] <= times[0] + max(latency, 10_000)
    partition.close()


async def run_once(seed: int, delay: int) -> tuple[object, ...]:
    machine = Machine("mov word [0x80], handler\nmov word [0x82], 0\nsti\nmov dx, 0x300\nagain: out dx, al\nmov cx, 500\nspin: loop spin\ninc dword [0x3000]\njmp again\nhandler: inc dword [0x3004]\nmov eax, [0x3000]\nadd [0x3008], eax\niret", seed=seed)
    partition = machine.partition
    times: list[int] = []

    async def work() -> None:
        await turns(round(delay * partition.random.random()))

    def done(result: object) -> None:
        times.append(partition.clock.now())
        machine.controller.raise_()

    def on_write(port: int, value: int) -> None:
        if len(machine.toy.log) % 7 == 0:
            partition.start(work(), done, partition.random.randrange(20_000))
        if len(machine.toy.log) == 200:
            partition.power_off("enough")

    machine.toy.on_write = on_write
    await partition.power_on()
    await partition.ended()
    result = (times, [machine.peek(a) for a in (0x3000, 0x3004, 0x3008)], partition.clock.now(), partition.processor.units, partition.vcpu.injected)
    assert partition.failure is None
    partition.close()
    return result


@pytest.mark.asyncio
async def test_two_runs_in_virtual_time_are_identical() -> None:
    first = await run_once(1, 0)
    assert first[4]
    assert await run_once(1, 0) == first
    assert await run_once(1, 100) == first  # a slower host
    assert await run_once(2, 0) != first


@pytest.mark.asyncio
async def test_pause_waits_for_work_in_flight() -> None:
    machine = Machine(COUNT, virtual=False)
    release = asyncio.Event()
    results: list[object] = []

    async def work() -> int:
        await release.wait()
        return 5

    machine.toy.on_write = lambda port, value: machine.partition.start(work(), results.append) if len(machine.toy.log) == 1 else None
    await machine.partition.power_on()
    await until(lambda: machine.toy.log)
    pausing = asyncio.create_task(machine.partition.pause())
    await turns()
    assert not pausing.done()
    release.set()
    await pausing
    assert results == [5]
    assert machine.partition.state is RunState.PAUSED
    await machine.partition.stop()
    machine.partition.close()


@pytest.mark.asyncio
async def test_work_that_fails_hands_its_exception_to_the_device() -> None:
    machine = Machine(COUNT, virtual=False)
    results: list[object] = []

    async def work() -> int:
        raise OSError("disk")

    machine.toy.on_write = lambda port, value: machine.partition.start(work(), results.append) if len(machine.toy.log) == 1 else None
    await machine.partition.power_on()
    await until(lambda: results)
    assert str(results[0]) == "disk"
    assert machine.partition.state is RunState.RUNNING
    await machine.partition.stop()
    machine.partition.close()


@pytest.mark.asyncio
async def test_stop_cancels_work_in_flight() -> None:
    machine = Machine(COUNT, virtual=False)
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    machine.toy.on_write = lambda port, value: machine.partition.start(work(), lambda result: None) if len(machine.toy.log) == 1 else None
    await machine.partition.power_on()
    await until(lambda: machine.toy.log)
    await machine.partition.stop()
    assert cancelled.is_set()
    machine.partition.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# -- building


@pytest.mark.asyncio
async def test_plugging() -> None:
    machine = Machine(COUNT)
    partition = machine.partition
    with pytest.raises(ValueError, match="has a device called toy already"):
        partition.plug(machine.toy)

    class Clash(Device):
        name = "clash"
        ports = (PortRange(0x400, 2),)
        memory = (MemoryRange(0xFEC00000, 4096),)

    class Owner(Device):
        name = "owner"
        memory = (MemoryRange(0xFEC00000, 4096),)

    partition.plug(Owner(partition))
    with pytest.raises(BusError, match="belongs to owner"):
        partition.plug(Clash(partition))
    assert partition.ports.owner(0x400) is None
    assert "clash" not in partition.devices
    assert partition.line(5) is partition.line(5)
    partition.close()


@pytest.mark.asyncio
async def test_a_scripted_guest_on_the_same_path() -> None:
    got: list[int] = []

    async def handler(cpu: ScriptCpu) -> None:
        await cpu.outb(0x301, 0x20)

    async def guest(cpu: ScriptCpu) -> None:
        cpu.on(0x20, handler)
        await cpu.outb(0x300, 7)
        got.append(await cpu.inb(0x302))
        await cpu.store(0x3000, 0x55)
        cpu.sti()
        await cpu.hlt()
        await cpu.outb(0x307, 1)

    machine = Machine(guest)
    machine.toy.on_read = lambda port: 0x42
    machine.toy.on_write = lambda port, value: machine.partition.power_off("end") if port == 0x307 else None
    machine.partition.clock.timer(machine.controller.raise_).arm(1_000_000)
    await machine.partition.power_on()
    await machine.partition.ended()
    assert got == [0x42]
    assert machine.toy.log == [(0x300, 7), (0x302, None), (0x301, 0x20), (0x307, 1)]
    assert machine.peek(0x3000) == 0x55
    assert 1_000_000 <= machine.partition.clock.now() < 1_100_000
    machine.partition.close()


@pytest.mark.asyncio
async def test_many_machines_leave_nothing() -> None:
    async def one(n: int) -> None:
        machine = Machine((COUNT, HALTED, WAITING)[n % 3], virtual=bool(n % 2), inside=n % 3 != 2)
        await machine.partition.power_on()
        await asyncio.sleep(0)
        if n % 3 == 2:
            machine.partition._task.cancel()  # type: ignore[union-attr]
        await machine.partition.stop()
        machine.partition.close()

    def machines() -> int:
        gc.collect()
        return sum(isinstance(o, Partition) for o in gc.get_objects())

    threads, before = threading.active_count(), machines()
    for n in range(60):
        await one(n)
    assert machines() <= before + 1
    assert threading.active_count() == threads
    assert asyncio.all_tasks() == {asyncio.current_task()}


@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["pause", "resume", "reset", "irq", "wait", "off", "complete"]), max_size=12), st.sampled_from([COUNT, HALTED, WAITING]), st.booleans())
def test_any_order_of_lifecycle_requests(steps: list[str], source: str, virtual: bool) -> None:
    async def scenario() -> None:
        machine = Machine(source, virtual=virtual, inside=source != WAITING)
        partition = machine.partition
        await partition.power_on()
        pausing: list[asyncio.Task[None]] = []
        for step in steps:
            if step == "pause":
                pausing.append(asyncio.create_task(partition.pause()))
            elif step == "resume":
                await partition.resume()
            elif step == "reset":
                partition.reset("random")
            elif step == "irq":
                machine.controller.raise_()
            elif step == "off":
                partition.power_off("random")
            elif step == "complete":
                for irp in machine.service.irps:
                    irp.complete(3)
            await asyncio.sleep(0)
        for irp in machine.service.irps:
            irp.complete(3)
        await partition.stop()
        assert partition.failure is None
        assert partition.state is RunState.OFF
        async with asyncio.timeout(5):
            await asyncio.gather(*pausing)
        partition.close()

    asyncio.run(scenario())


@pytest.mark.asyncio
async def test_what_a_guest_writes_to_the_time_stamp_counter_is_kept_over_a_pause_and_forgotten_at_a_reset() -> None:
    source = """
        mov ecx, 0x10
        mov edx, 0x80000007
        xor eax, eax
        wrmsr
        mov ecx, 0x3b
        rdmsr
        mov [0x3000], edx
        mov dx, 0x300
        out dx, al
        rdtsc
        mov [0x3004], edx
        hlt
    """
    machine = Machine(source)
    partition = machine.partition
    await partition.power_on()
    await until(lambda: bool(machine.toy.log))
    await until(lambda: machine.peek(0x3004) != 0)
    await partition.pause()
    assert machine.peek(0x3000) == 0x80000006  # what had passed by then is a borrow
    assert machine.peek(0x3004) == 0x80000007
    adjust = partition.msrs.tsc_adjust
    assert adjust < -(1 << 62)
    saved = partition.msrs.save()
    partition.msrs.reset()
    assert partition.msrs.tsc_adjust == 0
    partition.msrs.restore(saved)
    assert partition.msrs.tsc_adjust == adjust
    await partition.stop()


class Plain(Toy):
    """A toy whose first register is plain as long as it holds less than 0x80."""

    value = 0

    def plain(self, port: int, size: int, value: int | None = None) -> bool:
        return port == 0x300 and max(self.value, value or 0) < 0x80

    def read(self, port: int, size: int) -> int:
        self.log.append((port, None))
        return self.value

    def write(self, port: int, size: int, value: int) -> None:
        self.log.append((port, value))
        self.value = value if port == 0x300 else self.value * 2


@pytest.mark.asyncio
async def test_i2_i4_plain_registers_of_a_device_outside_take_no_packet_and_what_does_more_finds_them_as_they_were_left() -> None:
    seen: list[int] = []

    async def guest(cpu: ScriptCpu) -> None:
        for port, value in ((0x300, 1), (0x300, 0x21), (0x301, 0), (0x300, None), (0x301, 0), (0x300, None), (0x300, 7), (0x300, None)):
            if value is None:
                seen.append(await cpu.inb(port))
            else:
                await cpu.outb(port, value)

    machine = Machine(guest)
    partition = machine.partition
    partition.unplug(machine.toy)
    toy = Plain(partition)
    partition.plug(toy, inside=False)
    heard: list[tuple[int, bool]] = []
    partition.ports.listen("toy", lambda port, writing: heard.append((port, writing)))

    def submit(irp: Irp) -> Irp:
        machine.service.irps.append(irp)
        if irp.kind is IrpKind.PORT_READ:
            irp.complete(toy.read(irp.address, 1))
        else:
            toy.write(irp.address, 1, irp.value)
            irp.complete()
        return irp

    machine.service.submit = submit  # type: ignore[method-assign]
    await partition.power_on()
    await until(lambda: len(seen) == 3)
    assert [(irp.address, irp.kind, irp.value) for irp in machine.service.irps] == [
        (0x301, IrpKind.PORT_WRITE, 0), (0x301, IrpKind.PORT_WRITE, 0), (0x300, IrpKind.PORT_READ, 0x84), (0x300, IrpKind.PORT_WRITE, 7),
    ]  # fmt: skip
    assert seen == [0x42, 0x84, 7]
    assert toy.log == [(0x300, 1), (0x300, 0x21), (0x301, 0), (0x300, None), (0x301, 0), (0x300, None), (0x300, 7), (0x300, None)]
    assert heard == [(0x300, True), (0x300, True), (0x300, False), (0x300, False)]
    assert (partition.ports.plain, partition.irps) == (4, 4)
    tallies = partition.ports.tallies()
    assert (tallies[0x300].reads, tallies[0x300].writes, tallies[0x300].inside) == (3, 3, False), "every access is counted"
    await partition.stop()
    partition.close()
