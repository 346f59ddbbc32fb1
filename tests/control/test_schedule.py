"""Sharing the thread: weights, caps and waking with a made-up clock; then sixteen machines of different kinds."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import avmm_guests
from avmm.control.config import ConfigError, Disk, VmConfig
from avmm.control.host import Host
from avmm.control.vm import Vm
from avmm.cpu.script import Guest, ScriptCpu
from avmm.hypervisor.partition import RunState
from avmm.hypervisor.schedule import BURST, LAG, Schedule, Share, jain
from tests.control.panels import BUSY, ECHO, image
from tests.turns import turns

MS = 1_000_000


class Bench:
    """Machines that only use time, on a clock that goes on by what they use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        self.schedule = Schedule(lambda: self.now)
        self.order: list[str] = []
        monkeypatch.setattr("avmm.hypervisor.schedule.asyncio.sleep", self.sleep)
        self._real_sleep = asyncio.sleep

    async def sleep(self, seconds: float) -> None:
        """The scheduler's sleep: others may use the time, or it just passes."""
        end = self.now + int(seconds * 1e9)
        while self.now < end:
            before = self.now
            await _turn()
            if self.now == before:
                self.now = end
        await _turn()

    async def busy(self, share: Share, until: int, slice_ns: int = MS) -> None:
        await (share.wake() or _turn())
        while self.now < until:
            self.now += slice_ns
            share.charge(slice_ns, slice_ns)
            self.order.append(share.name)
            await (share.next() or _turn())
        share.close()


async def _turn() -> None:
    await asyncio.tasks.__sleep0()  # type: ignore[attr-defined]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


async def together(*work: Awaitable[None]) -> None:
    async with asyncio.timeout(20):
        await asyncio.gather(*work)


@pytest.mark.asyncio
@pytest.mark.parametrize("weights", [(100, 100), (100, 200), (100, 200, 300), (1, 99), (10_000, 5_000)])
async def test_weights(bench: Bench, weights: tuple[int, ...]) -> None:
    """I10: processor time is shared by weight."""
    shares = [bench.schedule.share(str(n), weight) for n, weight in enumerate(weights)]
    await together(*(bench.busy(share, 2_000 * MS) for share in shares))
    total = sum(share.work for share in shares)
    for share, weight in zip(shares, weights, strict=True):
        assert share.work / total == pytest.approx(weight / sum(weights), abs=0.01)


@pytest.mark.asyncio
async def test_equal_weights_alternate_whatever_the_slices(bench: Bench) -> None:
    shares = [bench.schedule.share(str(n)) for n in range(3)]
    await together(*(bench.busy(share, 3_000 * MS, (n + 1) * MS) for n, share in enumerate(shares)))
    assert jain(share.work for share in shares) > 0.999


@pytest.mark.asyncio
@pytest.mark.parametrize("cap", [0.5, 0.1, 0.01])
async def test_cap(bench: Bench, cap: float) -> None:
    """Alone on the host a capped machine uses its part of the time, and no more."""
    share = bench.schedule.share("capped", cap=cap)
    await together(bench.busy(share, 20_000 * MS))
    assert share.work / bench.now == pytest.approx(cap, rel=0.1)
    assert share.rests > 0


@pytest.mark.asyncio
async def test_cap_leaves_the_rest_to_others(bench: Bench) -> None:
    capped, free = bench.schedule.share("capped", cap=0.2), bench.schedule.share("free")
    await together(bench.busy(capped, 5_000 * MS), bench.busy(free, 5_000 * MS))
    assert capped.work / bench.now == pytest.approx(0.2, abs=0.02)
    assert free.work / bench.now == pytest.approx(0.8, abs=0.02)


@pytest.mark.asyncio
async def test_a_burst_is_free(bench: Bench) -> None:
    share = bench.schedule.share("capped", cap=0.1)
    share.charge(BURST // 2, BURST // 2)
    assert share.next() is None
    assert share.rests == 0


@pytest.mark.asyncio
async def test_waking_goes_first_but_is_no_savings_account(bench: Bench) -> None:
    """An interactive machine among busy ones gets its turn at once, each time; after it has become busy it has its share."""
    busy = [bench.schedule.share(f"busy{n}") for n in range(4)]
    interactive = bench.schedule.share("interactive")
    delays = []

    async def keys() -> None:
        for _ in range(50):
            interactive.leave()
            wanted = bench.now + 20 * MS
            while bench.now < wanted:
                await _turn()
            pressed = bench.now
            waiting = interactive.wake()
            if waiting is not None:
                await waiting
            delays.append(bench.now - pressed)
            bench.now += MS // 2
            interactive.charge(MS // 2, MS // 2)
        before, others = interactive.work, sum(share.work for share in busy)
        await (interactive.next() or _turn())
        await bench.busy(interactive, 5_000 * MS)
        mine, theirs = interactive.work - before, sum(share.work for share in busy) - others
        assert mine / (mine + theirs) == pytest.approx(0.2, abs=0.02)

    await together(keys(), *(bench.busy(share, 5_000 * MS) for share in busy))
    assert max(delays) <= 2 * MS


@pytest.mark.asyncio
async def test_nobody_waits_for_one_that_has_gone(bench: Bench) -> None:
    first, second, third = (bench.schedule.share(name) for name in ("first", "second", "third"))
    assert first.wake() is None
    second.virtual = third.virtual = LAG * 10
    waiting = [second.wake(), third.wake()]
    assert all(turn is not None for turn in waiting)
    assert bench.schedule.waiting == 2
    second.close()
    first.close()
    assert bench.schedule.holders == {third}
    await waiting[1]  # type: ignore[misc]
    third.close()
    assert not bench.schedule.holders
    assert bench.schedule.shares == []


def test_jain() -> None:
    assert jain([3, 3, 3]) == 1
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([]) == jain([0, 0]) == 1
    assert jain([1, 2]) == pytest.approx(0.9)


@pytest.mark.parametrize(("field", "value"), [("weight", 0), ("weight", 10_001), ("cap", 0.0), ("cap", 1.5)])
def test_checked(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"is no {field}"):
        VmConfig(**{field: value})  # type: ignore[arg-type]


# -- machines

UNITS = 1_000_000
"""Code bytes executed by the time that the shares are compared."""


async def ticking(cpu: ScriptCpu) -> None:
    """Count, then halt until the next tick of the PIT, for ever."""

    async def tick(cpu: ScriptCpu) -> None:
        await cpu.store(0x9000, await cpu.load(0x9000) + 1)
        await cpu.outb(0x20, 0x20)

    for _ in range(UNITS // 10):
        await cpu.inb(0x61)
    cpu.on(8, tick)
    for port, value in ((0x20, 0x11), (0x21, 8), (0x21, 4), (0x21, 1), (0x21, 0xFE), (0x43, 0x36), (0x40, 0), (0x40, 0)):
        await cpu.outb(port, value)
    cpu.sti()
    while True:
        await cpu.hlt()


async def reading(cpu: ScriptCpu) -> None:
    """Poll the PIT for a while, write to memory, and be done."""
    for n in range(UNITS // 10):
        await cpu.outb(0x43, 0)
        await cpu.store(0x8000 + n % 1024, n, 1)
    await cpu.hlt()


# mov ecx, 1000000 / l: dec ecx, jnz l / k: sti, hlt, inc dword [9000h], jmp k: work first, then one count for each timer tick
WORKER = bytes.fromhex("31c0 8ed8 66b9 40420f00 6649 75fc fb f4 66ff060090 ebf7")


def kinds(folder: Path) -> list[tuple[str, list[Disk], Guest | None]]:
    """Sixteen machines of five kinds."""
    guest = [Disk(avmm_guests.image(), "overlay")]
    sectors = {name: [Disk(image(folder, name, code), "ro")] for name, code in (("echo", ECHO), ("busy", BUSY), ("worker", WORKER))}
    plan: list[tuple[str, list[Disk], Guest | None]] = [*[("ticking", [], ticking)] * 3, ("reading", [], reading)]
    plan += [("worker", sectors["worker"], None)] * 6 + [("guest", guest, None)] * 4 + [("echo", sectors["echo"], None)] * 2
    return [(f"{kind}{n}", disks, script) for n, (kind, disks, script) in enumerate(plan)]


async def make(host: Host, name: str, disks: list[Disk], script: Guest | None, **more: object) -> Vm:
    hard = name.startswith("guest")
    config = VmConfig(
        name=name, memory="16M" if hard else "2M", disks=disks if hard else (), floppies=() if hard else disks, slice_us=25, **more  # type: ignore[arg-type]
    )  # fmt: skip
    return await host.create_vm(config, script)


@pytest.mark.asyncio
async def test_sixteen_busy_machines_get_the_same(tmp_path: Path) -> None:
    """Different kinds of guests that never halt: equal shares of executed code, whatever a piece of code costs the host."""
    async with asyncio.timeout(60), Host() as host:

        async def polling(cpu: ScriptCpu) -> None:
            while True:
                await cpu.inb(0x40)

        floppy = [Disk(image(tmp_path, "busy", BUSY), "ro")]
        vms = [await make(host, f"m{n}", [] if n < 4 else floppy, polling if n < 4 else None) for n in range(16)]
        for vm in vms:
            await vm.start()
        units: Callable[[], list[int]] = lambda: [vm.partition.processor.units for vm in vms]  # noqa: E731
        while max(units()) < UNITS // 2:
            await asyncio.sleep(0)
        begin = units()
        while max(units()) < 2 * UNITS:
            await asyncio.sleep(0)
        done = [now - before for now, before in zip(units(), begin, strict=True)]
        assert min(done) > 0
        assert jain(done) >= 0.99


@pytest.mark.asyncio
async def test_sixteen_machines_for_a_minute(tmp_path: Path) -> None:
    """A minute of guest time each: all alive, none starved on the way, memory bounded."""
    async with asyncio.timeout(100), Host() as host:
        vms = [await make(host, *one) for one in kinds(tmp_path)]
        for vm in vms:
            await vm.start()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        fair: list[float] = []
        done: list[str] = []

        async def minute(vm: Vm) -> None:
            await vm.sleep(60)
            await vm.pause()
            done.append(vm.name)

        async def watch() -> None:
            workers = [vm.partition.vcpu.share for vm in vms if vm.name.startswith("worker")]
            while len(done) < len(vms):
                work = [share.work for share in workers if share is not None]
                if min(work) > UNITS // 10 and max(work) < 3 * UNITS:
                    fair.append(jain(work))
                await turns()

        await asyncio.gather(watch(), *map(minute, vms))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert {vm.name: vm.state for vm in vms if vm.state is not RunState.PAUSED} == {}
        assert all(60 <= vm.now < 61 for vm in vms)
        assert min(fair) >= 0.95
        for vm in vms:
            if vm.name.startswith(("ticking", "worker")):  # 18.2 ticks a second from when the work is done
                assert 1070 <= vm.partition.memory.unpack("<I", 0x9000)[0] <= 1093, vm.name
            if vm.name.startswith("guest"):
                assert "ok>" in vm.screen.text()
            if vm.name.startswith("echo"):
                assert "ready>" in vm.screen.text()
        assert grown < 256 << 10  # KiB
