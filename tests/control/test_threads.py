"""Machines on several threads (I10): they compute what they compute on one, exits stay undivided, and nothing is left behind."""

from __future__ import annotations

import asyncio
import struct
import sys
import threading
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

import pytest

import avmm_guests
from avmm.control.config import ConfigError, Disk, VmConfig
from avmm.control.host import Host
from avmm.control.vm import Vm
from avmm.cpu.script import ScriptCpu
from avmm.devices.device import Device, PortRange
from avmm.hypervisor.partition import RunState
from tests.control.panels import BUSY, ECHO, machine
from tests.turns import until


@pytest.mark.parametrize("threads", [0, -1, 65])
def test_how_many(threads: int) -> None:
    with pytest.raises(ConfigError, match="choose 1 to 64"):
        Host(threads=threads)


# -- the same with and without


async def scene(folder: Path, threads: int) -> list[tuple[object, ...]]:
    """Play one scene with four machines of different kinds and return all that can be seen of it."""
    seen: list[tuple[object, ...]] = []

    def note(vm: Vm) -> None:
        partition = vm.partition
        screen = vm.screen.text() if vm.name.startswith("guest") else ""
        seen.append((vm.name, partition.processor.units, partition.clock.now(), partition.vcpu.injected, partition.irps, screen))

    async def shell(vm: Vm) -> None:
        await vm.start()
        await vm.screen.wait_for("ok>")
        for command in ("dir", "copy readme copied", "type copied", "dir"):
            await vm.keyboard.type(command + "\n")
            await vm.sleep(0.5)
            note(vm)
        await vm.pause()
        note(vm)

    async def polling(cpu: ScriptCpu) -> None:
        for n in range(20_000):
            await cpu.outb(0x43, 0)
            await cpu.store(0x8000 + n % 4096, await cpu.inb(0x40), 1)
        await cpu.hlt()

    async def timed(vm: Vm) -> None:
        await vm.start()
        for _ in range(3):
            await vm.sleep(0.05)
            note(vm)
        await vm.pause()
        note(vm)

    async with asyncio.timeout(60), Host(threads=threads) as host:
        guests = [VmConfig(name=f"guest{n}", memory="16M", disks=[Disk(avmm_guests.image(), "overlay")]) for n in range(2)]
        shells = [await host.create_vm(config) for config in guests]
        others = [await host.create_vm(machine(folder, "busy", BUSY)), await host.create_vm(VmConfig(name="polling", memory="2M"), polling)]
        await asyncio.gather(*map(shell, shells), *map(timed, others))
        if host.rounds is not None:
            assert host.rounds.parallel > 5
    return sorted(seen, key=lambda row: (row[0], row[2]))


@pytest.mark.asyncio
async def test_a_scene_is_the_same_on_any_number_of_threads(tmp_path: Path) -> None:
    """Screens, disks, executed code, interrupts and packets at every step, to the last unit."""
    alone = await scene(tmp_path, 1)
    assert len(alone) == 18
    assert "copied" in str(alone)
    for threads in (2, 3, 2):
        assert await scene(tmp_path, threads) == alone


# -- at the same time

MEETINGS, FIRST, SECOND = 30, 0x8000, 0xA000


def meeting(mine: int, other: int) -> bytes:
    """Code that counts at ``mine``, waits until the count at ``other`` is no less, and so on."""
    # xor ax, ax / mov ds, ax / mov cx, MEETINGS / k: inc word [mine] / mov ax, [mine] / l: cmp [other], ax / jb l / loop k / cli / hlt
    count, spin = b"\xff\x06" + struct.pack("<H", mine) + b"\xa1" + struct.pack("<H", mine), b"\x39\x06" + struct.pack("<H", other)
    return b"\x31\xc0\x8e\xd8\xb9" + struct.pack("<H", MEETINGS) + count + spin + b"\x72\xfa\xe2\xf1\xfa\xf4"


@pytest.mark.asyncio
async def test_guest_code_of_two_machines_runs_at_once(tmp_path: Path) -> None:
    """Two guests that wait for each other thirty times, in a few slices: impossible unless both run."""
    async with asyncio.timeout(100), Host(threads=2) as host:
        pages = {FIRST: mmap(-1, 4096), SECOND: mmap(-1, 4096)}
        vms = []
        for name, mine, other in (("first", FIRST, SECOND), ("second", SECOND, FIRST)):
            vm = await host.create_vm(machine(tmp_path, name, meeting(mine, other), slice_us=100_000))
            for address, page in pages.items():
                vm.partition.processor.map_ram(address, memoryview(page))
            vms.append(vm)
        for vm in vms:
            await vm.start()

        async def both(count: int) -> int:
            for vm, page in zip(vms, pages.values(), strict=True):
                await vm.wait_until(lambda page=page: struct.unpack_from("<H", page)[0] >= count, timeout=1000)  # type: ignore[misc]
            return host.rounds.rounds if host.rounds is not None else 0

        begun = await both(1)
        assert await both(MEETINGS) - begun < MEETINGS / 3


# -- exits


class Teller(Device):
    """Counts accesses in a way that a second one in the middle of it would spoil; a read waits, a write is answered at once."""

    name = "teller"
    ports = (PortRange(0x300, 1),)
    total = 0
    threads: set[str] = set()  # noqa: RUF012 - of all of them

    def write(self, port: int, size: int, value: int) -> None:
        before = Teller.total
        for _ in range(20):
            pass
        Teller.total = before + 1
        Teller.threads.add(threading.current_thread().name)


# mov dx, 300h / mov ecx, 20000 / l: out dx, al / dec ecx / jnz l / cli / hlt
TELL = bytes.fromhex("ba0003 66b9204e0000 ee 6649 75fb fa f4")


@pytest.mark.asyncio
@pytest.mark.parametrize("place", ["hypervisor", "service"])
async def test_exits_are_undivided(tmp_path: Path, place: str) -> None:
    """A device shared by all its instances: no access comes in the middle of another, inside or outside."""
    Teller.total, count = 0, 20_000 if place == "hypervisor" else 500
    Teller.threads.clear()
    code = TELL.replace(struct.pack("<I", 20_000), struct.pack("<I", count))
    async with asyncio.timeout(60), Host(threads=3) as host:
        for n in range(3):
            await host.create_vm(machine(tmp_path, f"m{n}", code, devices=[Teller], placement={"teller": place}))
        for vm in host.vms.values():
            await vm.start()
        for vm in host.vms.values():
            await vm.wait_until(lambda: Teller.total == 3 * count, timeout=1000)
        assert Teller.threads == ({"vm:m0", "vm:m1", "vm:m2"} if place == "hypervisor" else {threading.main_thread().name})


@pytest.mark.asyncio
async def test_who_asks_outside_and_who_computes_both_go_on(tmp_path: Path) -> None:
    """Neither does each access wait for a slice of the busy machine, nor does that stand still meanwhile."""
    Teller.total, count = 0, 200
    code = TELL.replace(struct.pack("<I", 20_000), struct.pack("<I", count))
    async with asyncio.timeout(60), Host(threads=2) as host:
        asks = await host.create_vm(machine(tmp_path, "asks", code, devices=[Teller], placement={"teller": "service"}))
        busy = await host.create_vm(machine(tmp_path, "busy", BUSY))
        await busy.start()
        await asks.start()
        await until(lambda: Teller.total > 0)
        before = busy.partition.processor.units
        await until(lambda: Teller.total == count)
        slices = (busy.partition.processor.units - before) / (busy.config.slice_us * 1000)
        assert count / 20 < slices < count / 2


# -- life


@pytest.mark.asyncio
@pytest.mark.parametrize("clock", ["virtual", "real"])
async def test_pause_stop_reset_and_kick(tmp_path: Path, clock: str) -> None:
    """I10: what the control panel asks for is done at the end of the slice; afterwards no thread is left."""
    async with asyncio.timeout(60), Host(threads=2) as host:
        echo = await host.create_vm(machine(tmp_path, "echo", ECHO, clock=clock))
        busy = await host.create_vm(machine(tmp_path, "busy", BUSY, clock=clock))
        for vm in (echo, busy):
            await vm.start()
        assert {thread.name for thread in threading.enumerate()} >= {"vm:echo", "vm:busy"}
        await echo.screen.wait_for("ready>")
        await busy.pause()
        units, now = busy.partition.processor.units, busy.now
        await echo.keyboard.type("hello")
        await echo.screen.wait_for("hello")
        assert (busy.partition.processor.units, busy.now) == (units, now)
        await busy.resume()
        for _ in range(3):
            await busy.reset()
            await busy.sleep(0.05)
        assert busy.partition.resets == 3
        assert await busy.partition.at_boundary(lambda: threading.current_thread().name) == "vm:busy"
        await busy.partition.stop("enough")
        assert busy.state is RunState.OFF
        await echo.keyboard.type("!")
        await echo.screen.wait_for("hello!")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vm:")]


class Stuck(Device):
    """A device whose answer never comes."""

    name = "stuck"
    ports = (PortRange(0x301, 1),)

    def read(self, port: int, size: int) -> asyncio.Future[int]:  # type: ignore[override]
        return asyncio.get_running_loop().create_future()


@pytest.mark.asyncio
async def test_a_machine_stuck_in_the_middle_of_an_instruction_can_be_ended(tmp_path: Path) -> None:
    async with asyncio.timeout(60), Host(threads=2) as host:
        code = bytes.fromhex("ba0103 ec f4")  # mov dx, 301h / in al, dx / hlt
        vm = await host.create_vm(machine(tmp_path, "stuck", code, devices=[Stuck], placement={"stuck": "service"}))
        await vm.start()
        busy = await host.create_vm(machine(tmp_path, "busy", BUSY))
        await busy.start()
        await busy.sleep(0.1)
        assert vm.partition.irps == 1
        await vm.shutdown()
        assert vm.state is RunState.OFF


@dataclass
class Bug(Exception):
    """What a broken device raises."""


class Broken(Device):
    """A device with a bug."""

    name = "broken"
    ports = (PortRange(0x302, 1),)

    def read(self, port: int, size: int) -> int:
        raise Bug


@pytest.mark.asyncio
async def test_a_failure_ends_one_machine_and_no_other(tmp_path: Path) -> None:
    async with asyncio.timeout(60), Host(threads=2) as host:
        code = bytes.fromhex("ba0203 ec f4")  # mov dx, 302h / in al, dx / hlt
        broken = await host.create_vm(machine(tmp_path, "broken", code, devices=[Broken]))
        busy = await host.create_vm(machine(tmp_path, "busy", BUSY))
        for vm in (broken, busy):
            await vm.start()
        await broken.partition.ended()
        assert broken.partition.failure is not None
        assert isinstance(broken.partition.failure.__cause__, Bug)
        await busy.sleep(0.05)
        assert busy.state is RunState.RUNNING


@pytest.mark.asyncio
async def test_engines_come_and_go_while_others_run(tmp_path: Path) -> None:
    """Each reset makes a new engine and ends the old one, in one machine's thread, while another machine's translates and runs code."""
    # mov cx, 2000 / l: loop l / lidt [zeros] / int3: a triple fault, hence a reset, for ever
    crash = bytes.fromhex("b9d007 e2fe 0f011e0e7c cc") + bytes(8)
    # xor ax, ax / mov es, ax / l: mov di, 7D00h / mov al, C3h / stosb / call 7D00h / jmp l: writes the code it calls, which is translated anew
    translate = bytes.fromhex("31c0 8ec0 bf007d b0c3 aa e8f300 ebf5")
    async with asyncio.timeout(60), Host(threads=2) as host:
        crashing = await host.create_vm(machine(tmp_path, "crash", crash))
        busy = [await host.create_vm(machine(tmp_path, f"busy{n}", code, slice_us=20)) for n, code in enumerate((BUSY, translate))]
        for vm in (crashing, *busy):
            await vm.start()
        await crashing.wait_until(lambda: crashing.partition.resets >= 40, timeout=100)
        assert all(vm.state is RunState.RUNNING for vm in (crashing, *busy))
        assert busy[1].partition.memory.read(0x7D00, 1) == b"\xc3"


@pytest.mark.asyncio
async def test_threads_get_the_interpreter_beside_a_busy_guest(tmp_path: Path) -> None:
    """Files are opened and closed by threads, and a guest in real time never leaves the interpreter alone for long."""
    async with asyncio.timeout(60), Host() as host:
        busy = await host.create_vm(machine(tmp_path, "busy", BUSY, clock="real"))
        await busy.start()
        vcpu = busy.partition.vcpu
        begun = vcpu.slices
        for _ in range(20):
            await asyncio.to_thread(sum, range(1000))
        assert vcpu.slices - begun < 20 * 20  # with Python's own interval it is hundreds for each
        await (await host.create_vm(machine(tmp_path, "other"))).shutdown()
        assert busy.state is RunState.RUNNING


@pytest.mark.asyncio
async def test_the_switch_interval_is_put_back() -> None:
    """It is the process's: hosts overlap in any order, and what somebody else sets meanwhile stays."""
    before = sys.getswitchinterval()
    first, second = Host(), Host()
    try:
        sys.setswitchinterval(0.003)
        theirs = sys.getswitchinterval()
        await first.__aenter__()
        shortened = sys.getswitchinterval()
        assert shortened < theirs
        await second.__aenter__()
        await first.__aexit__(None, None, None)
        assert sys.getswitchinterval() == shortened
        await second.__aexit__(None, None, None)
        assert sys.getswitchinterval() == theirs
        async with Host():
            sys.setswitchinterval(0.001)
        assert sys.getswitchinterval() == pytest.approx(0.001)
        async with Host():
            assert sys.getswitchinterval() == shortened
    finally:
        sys.setswitchinterval(before)
