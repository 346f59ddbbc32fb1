"""Scripted guests on the whole machine: devices programmed as a driver would, and the same wherever the devices live."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import avmm
from avmm.control.stats import Stats

Script = Callable[[avmm.ScriptCpu], Coroutine[Any, Any, Any]]
SMALL = avmm.VmConfig(memory="2M")

PIT_HZ = 1_193_182
PM_TIMER, PM_HZ = 0xB008, 3_579_545
COM1 = 0x3F8
LAPIC = 0xFEE00000
IOAPIC = 0xFEC00000


async def run(script: Script, config: avmm.VmConfig = SMALL) -> tuple[Any, Stats, avmm.Vm]:
    """Run a script to its end and return ((what it returned, machine time), the machine's counters, the machine, shut down)."""
    results: list[Any] = []

    async def guest(cpu: avmm.ScriptCpu) -> None:
        result = await script(cpu)
        results.append((result, vm.partition.clock.now()))

    async with avmm.Host() as host:
        vm = await host.create_vm(config, guest=guest)
        await vm.start()
        await vm.wait_until(lambda: bool(results), 20, "the script was done")
        return results[0], vm.stats, vm


# -- what a driver does


async def start_pics(cpu: avmm.ScriptCpu, *lines: int) -> None:
    """Program the 8259s for vectors 20h and 28h with only ``lines`` open."""
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xA0, 0x11), (0xA1, 0x28), (0xA1, 2), (0xA1, 1)):
        await cpu.outb(port, value)
    mask = 0xFFFF & ~sum(1 << line for line in lines) & ~(1 << 2)
    await cpu.outb(0x21, mask & 0xFF)
    await cpu.outb(0xA1, mask >> 8)


def on_line(cpu: avmm.ScriptCpu, line: int, work: Callable[[avmm.ScriptCpu], Awaitable[Any]] | None = None) -> list[int]:
    """Handle an interrupt line; returns the list to which each interrupt adds what ``work`` gave."""
    heard: list[int] = []

    async def handler(cpu: avmm.ScriptCpu) -> None:
        heard.append(int(await work(cpu) or 0) if work is not None else 0)
        if line >= 8:
            await cpu.outb(0xA0, 0x20)
        await cpu.outb(0x20, 0x20)

    cpu.on(0x20 + line, handler)
    return heard


async def pm_ticks(cpu: avmm.ScriptCpu) -> int:
    return await cpu.inl(PM_TIMER)


async def pit(cpu: avmm.ScriptCpu) -> object:
    """Ten periods of counter 0, by interrupts; then counter 2 by read-back."""
    await start_pics(cpu, 0)
    ticks = on_line(cpu, 0, pm_ticks)
    await cpu.outb(0x43, 0x34)
    await cpu.outb(0x40, 11932 & 0xFF)
    await cpu.outb(0x40, 11932 >> 8)
    cpu.sti()
    while len(ticks) < 10:
        await cpu.hlt()
    cpu.cli()
    await cpu.outb(0x43, 0xB0)  # counter 2, mode 0
    await cpu.outb(0x61, 1)
    await cpu.outb(0x42, 0x20)
    await cpu.outb(0x42, 0x00)
    polls = 0
    while not await cpu.inb(0x61) & 0x20:  # OUT2
        polls += 1
    await cpu.outb(0x43, 0xE8)  # read-back of status and count
    status = await cpu.inb(0x42)
    low, high = await cpu.inb(0x42), await cpu.inb(0x42)
    return ticks, polls, status, high << 8 | low


async def rtc(cpu: avmm.ScriptCpu) -> object:
    """Read the date, and hear the periodic interrupt at 1024 Hz."""

    async def register(index: int) -> int:
        await cpu.outb(0x70, index)
        return await cpu.inb(0x71)

    async def acknowledge(cpu: avmm.ScriptCpu) -> int:
        await cpu.outb(0x70, 0x0C)
        return await cpu.inb(0x71)

    date = [await register(index) for index in (0, 2, 4, 7, 8, 9, 0x32, 0x0D)]
    await start_pics(cpu, 8)
    heard = on_line(cpu, 8, acknowledge)
    await acknowledge(cpu)
    await cpu.outb(0x70, 0x0A)
    await cpu.outb(0x71, 0x26)
    await cpu.outb(0x70, 0x0B)
    await cpu.outb(0x71, 0x42)
    begin = await pm_ticks(cpu)
    cpu.sti()
    while len(heard) < 6:
        await cpu.hlt()
    cpu.cli()
    return date, heard, await pm_ticks(cpu) - begin


async def uart(cpu: avmm.ScriptCpu) -> object:
    """Loop bytes back, with interrupts."""
    await start_pics(cpu, 4)

    async def take(cpu: avmm.ScriptCpu) -> int:
        reason = await cpu.inb(COM1 + 2)
        return (reason & 0x0F) << 8 | (await cpu.inb(COM1) if reason & 0x0F == 4 else 0)

    heard = on_line(cpu, 4, take)
    for offset, value in ((3, 0x80), (0, 1), (1, 0), (3, 3), (2, 0x07), (4, 0x18 | 0x0B), (1, 1)):
        await cpu.outb(COM1 + offset, value)
    cpu.sti()
    for byte in b"ring":
        await cpu.outb(COM1, byte)
        while len(heard) == 0 or heard[-1] & 0xFF != byte:
            await cpu.hlt()
    cpu.cli()
    await cpu.outb(COM1 + 4, 0x0B)  # no loop any more: this goes out
    for byte in b"out":
        await cpu.outb(COM1, byte)
        while not await cpu.inb(COM1 + 5) & 0x40:
            pass
    return heard, await cpu.inb(COM1 + 5), await cpu.inb(COM1 + 6)


async def keyboard(cpu: avmm.ScriptCpu) -> object:
    """Self-test of the controller, echo and identification of the keyboard."""
    said = []

    async def answer() -> int:
        for _ in range(200_000):
            if await cpu.inb(0x64) & 1:
                return await cpu.inb(0x60)
        return -1

    await cpu.outb(0x64, 0xAA)
    said.append(await answer())
    await cpu.outb(0x60, 0xEE)
    said.append(await answer())
    await cpu.outb(0x60, 0xF2)
    said += [await answer(), await answer(), await answer()]
    await cpu.outb(0x64, 0x20)
    said.append(await answer())
    return said


async def video(cpu: avmm.ScriptCpu) -> object:
    """Text in memory, the cursor, the palette."""
    for i, char in enumerate(b"scripted"):
        await cpu.store(0xB8000 + 2 * i, 0x1F00 | char, 2)
    await cpu.outw(0x3D4, 0x000F | 0x0700)
    await cpu.outb(0x3D4, 0x0F)
    cursor = await cpu.inb(0x3D5)
    await cpu.outb(0x3C8, 1)
    for value in (63, 0, 21):
        await cpu.outb(0x3C9, value)
    await cpu.outb(0x3C7, 1)
    colour = [await cpu.inb(0x3C9) for _ in range(3)]
    lines = [await cpu.inb(0x3DA) & 1 for _ in range(700)]  # two lines of 32 us
    return [await cpu.load(0xB8000 + 2 * i, 2) for i in range(8)], cursor, colour, lines


async def apics(cpu: avmm.ScriptCpu) -> object:
    """One-shot of the local APIC's timer, and an edge through the I/O APIC."""
    heard: list[tuple[int, int]] = []

    def handler(vector: int) -> Callable[[avmm.ScriptCpu], Coroutine[Any, Any, None]]:
        async def taken(cpu: avmm.ScriptCpu) -> None:
            heard.append((vector, await cpu.inl(PM_TIMER)))
            await cpu.store(LAPIC + 0xB0, 0)

        return taken

    cpu.on(0x51, handler(0x51))
    cpu.on(0x62, handler(0x62))
    await start_pics(cpu)
    await cpu.store(LAPIC + 0xF0, 0x1FF)
    await cpu.store(LAPIC + 0x3E0, 0xB)
    await cpu.store(LAPIC + 0x320, 0x51)
    await cpu.store(LAPIC + 0x380, 100_000)
    cpu.sti()
    while len(heard) < 1:
        await cpu.hlt()
    await cpu.store(IOAPIC, 0x10 + 2 * 2)  # input 2: the timer
    await cpu.store(IOAPIC + 0x10, 0x62)
    await cpu.outb(0x43, 0x34)
    await cpu.outb(0x40, 0)
    await cpu.outb(0x40, 16)
    while len(heard) < 4:
        await cpu.hlt()
    cpu.cli()
    versions = await cpu.load(LAPIC + 0x30), await cpu.load(LAPIC + 0x20)
    await cpu.store(IOAPIC, 1)
    return heard, versions, await cpu.load(IOAPIC + 0x10)


async def bridge(cpu: avmm.ScriptCpu) -> object:
    """PCI configuration space and the ACPI block."""
    ids = []
    for function in range(0, 0x400, 0x100):
        await cpu.outl(0xCF8, 0x80000000 | 0x800 | function)
        ids.append((await cpu.inl(0xCFC), await cpu.inw(0xCFE), await cpu.inb(0xCFD)))
    await cpu.outb(0xB2, 0xF1)
    control = await cpu.inw(0xB004)
    await cpu.outw(0xB002, 0x0100)
    return ids, control, await cpu.inw(0xB002), await cpu.inb(0xB2), await cpu.inl(0xCF8)


async def ata(cpu: avmm.ScriptCpu) -> object:
    """IDENTIFY, WRITE SECTORS and READ SECTORS with interrupts, on the primary master."""
    await start_pics(cpu, 14)

    async def status(cpu: avmm.ScriptCpu) -> int:
        return await cpu.inb(0x1F7)

    heard = on_line(cpu, 14, status)

    async def command(code: int, lba: int = 0, count: int = 0) -> None:
        await cpu.outb(0x1F6, 0xE0 | lba >> 24)
        for port, value in ((0x1F2, count), (0x1F3, lba), (0x1F4, lba >> 8), (0x1F5, lba >> 16)):
            await cpu.outb(port, value & 0xFF)
        await cpu.outb(0x1F7, code)

    async def interrupt(number: int) -> None:
        while len(heard) < number:
            await cpu.hlt()

    cpu.sti()
    await command(0xEC)
    await interrupt(1)
    identity = await cpu.insw(0x1F0, 256)
    data = random.Random(3).randbytes(1024)
    await command(0x30, 5, 2)
    while await cpu.inb(0x3F6) & 0x88 != 0x08:
        pass
    await cpu.outsw(0x1F0, data[:512])
    await interrupt(2)
    await cpu.outsw(0x1F0, data[512:])
    await interrupt(3)
    await command(0x20, 4, 3)
    back = b""
    for number in (4, 5, 6):
        await interrupt(number)
        back += await cpu.insw(0x1F0, 256)
    await command(0x20, 0x0FFFFFF, 1)  # beyond the end
    await interrupt(7)
    error = await cpu.inb(0x1F1)
    await command(0xE7)
    await interrupt(8)
    cpu.cli()
    assert back[512:] == data
    return identity, back[:512], heard, error


SCRIPTS = {
    "pit": pit, "rtc": rtc, "com1": uart, "keyboard": keyboard, "video": video, "lapic": apics, "pci": bridge, "ata0": ata,
}  # fmt: skip
ALSO = {"pic": pit, "ioapic": apics, "acpi-power": bridge, "bmide": ata}
"""Devices that a script uses beside the one it is named after."""


def disk(folder: Path) -> Path:
    image = folder / "disk.img"
    image.write_bytes(random.Random(8).randbytes(64 * 512))
    return image


# -- what they must see


@pytest.mark.asyncio
async def test_the_interval_timer() -> None:
    """I5: the timer inside raises its interrupts by itself, on time, and they are injected."""
    ((ticks, polls, status, count), _), stats, _ = await run(pit)
    steps = {later - earlier for earlier, later in pairwise(ticks[1:])}
    assert steps <= {round(11932 * PM_HZ / PIT_HZ) + d for d in (-2, -1, 0, 1, 2)}  # the second clock agrees with the first
    assert 200 < polls < 300  # 32 ticks of 838 ns, 100 ns a poll
    assert status & 0xBF == 0xB0 | 0x80 & status
    assert status & 0x80  # OUT is high
    assert count == 0 or count > 0xFF00  # it is at zero, or went on past it
    assert stats.injected == 10
    assert stats.exits == dict.fromkeys(stats.exits, 0)  # a script's operations are not counted by the shim


@pytest.mark.asyncio
async def test_the_real_time_clock() -> None:
    ((date, heard, ticks), _), _, _ = await run(rtc)
    assert date == [0, 0, 0, 0x01, 0x01, 0x26, 0x20, 0x80]  # midnight, 1 January 2026, battery good
    assert heard == [0xC0] * 6
    assert 5 * PM_HZ // 1024 < ticks <= 6 * PM_HZ // 1024 + 2


@pytest.mark.asyncio
async def test_the_serial_port() -> None:
    ((heard, line, modem), _), _, vm = await run(uart)
    assert bytes(byte & 0xFF for byte in heard) == b"ring"
    assert all(byte >> 8 == 4 for byte in heard)
    assert line & 0x60 == 0x60
    assert modem & 0x30 == 0x30
    assert vm.serial.text() == "out"


@pytest.mark.asyncio
async def test_the_keyboard_controller() -> None:
    (said, _), _, _ = await run(keyboard)
    assert said[:5] == [0x55, 0xEE, 0xFA, 0xAB, 0x83] or said[:5] == [0x55, 0xEE, 0xFA, 0xAB, 0x41]


@pytest.mark.asyncio
async def test_the_screen() -> None:
    ((cells, cursor, colour, lines), _), _, vm = await run(video)
    assert bytes(cell & 0xFF for cell in cells) == b"scripted"
    assert {cell >> 8 for cell in cells} == {0x1F}
    assert (cursor, colour) == (7, [63, 0, 21])
    assert 2 <= sum(a != b for a, b in pairwise(lines)) <= 6  # blanked and shown in turn
    assert "scripted" in vm.screen.text()


@pytest.mark.asyncio
async def test_the_apics() -> None:
    ((heard, versions, io_version), _), _, _ = await run(apics)
    assert [vector for vector, _ in heard] == [0x51, 0x62, 0x62, 0x62]
    period = heard[3][1] - heard[2][1]
    assert abs(period - 4096 * PM_HZ // PIT_HZ) <= 3
    assert versions[0] & 0xFF in range(0x10, 0x16)
    assert versions[1] >> 24 == 0
    assert io_version >> 16 & 0xFF == 23


@pytest.mark.asyncio
async def test_pci_and_acpi() -> None:
    ((ids, control, enable, command, address), _), _, _ = await run(bridge)
    assert [whole for whole, _, _ in ids] == [0x70008086, 0x71118086, 0xFFFFFFFF, 0x71138086]
    assert [(upper, second) for _, upper, second in ids][1] == (0x7111, 0x80)
    assert (control & 1, enable, command, address) == (1, 0x0100, 0xF1, 0x80000B00)


@pytest.mark.asyncio
async def test_the_disk_by_way_of_the_service_os(tmp_path: Path) -> None:
    image = disk(tmp_path)
    before = image.read_bytes()
    ((identity, first, heard, error), _), stats, _ = await run(ata, replace(SMALL, disks=[avmm.Disk(image)]))
    assert identity[54:94].decode().strip() == "" or b"AVMM" in bytes(identity[i ^ 1] for i in range(512))
    assert int.from_bytes(identity[120:124], "little") == 64
    assert first == before[4 * 512 : 5 * 512]
    assert [status & 0x89 for status in heard] == [0x08, 0x08, 0x00, 0x08, 0x08, 0x08, 0x01, 0x00]
    assert error & 0x10  # IDNF
    assert stats.outside > 10
    assert stats.outside + stats.plain > 40
    data = random.Random(3).randbytes(1024)
    assert image.read_bytes() == before[: 5 * 512] + data + before[7 * 512 :]


@pytest.mark.asyncio
@pytest.mark.parametrize("device", [*SCRIPTS, *ALSO])
async def test_the_same_wherever_it_lives(device: str, tmp_path: Path) -> None:
    """I6: keyboard, mouse, video, audio, disks, timers and interrupt controllers live inside as well as outside."""
    script = SCRIPTS.get(device) or ALSO[device]
    seen = []
    for place in ("hypervisor", "service"):
        folder = tmp_path / place
        folder.mkdir()
        config = replace(SMALL, disks=[avmm.Disk(disk(folder))], placement={device: place})
        result, stats, vm = await run(script, config)
        assert vm.partition.placement[device] == place
        asked = [port for port in (*stats.ports, *stats.memory) if port.device == device]
        assert asked or device == "bmide"
        assert all(port.inside == (place == "hypervisor") for port in asked)
        seen.append((result, stats.injected, vm.screen.text(), vm.serial.text(), (folder / "disk.img").read_bytes()))
    assert seen[0] == seen[1]


@pytest.mark.asyncio
async def test_everything_outside(tmp_path: Path) -> None:
    """I4, I6: and all of them at once outside."""
    image = disk(tmp_path)
    devices = ["pit", "rtc", "com1", "keyboard", "video", "pci", "acpi-power", "pic", "lapic", "ioapic", "speaker", "debug"]
    config = replace(SMALL, disks=[avmm.Disk(image)], placement=dict.fromkeys(devices, "service"))
    for script in (pit, uart, apics, video):
        result, _, _ = await run(script, config)
        assert result == (await run(script, replace(SMALL, disks=[avmm.Disk(image)])))[0]


@pytest.mark.asyncio
async def test_real_time_too(tmp_path: Path) -> None:
    image = disk(tmp_path)
    config = replace(SMALL, clock="real", disks=[avmm.Disk(image)])
    ticks = (await run(pit, config))[0][0][0]
    assert len(ticks) == 10
    assert 9 * 0.009 < ((ticks[-1] - ticks[0]) & 0xFFFFFF) / PM_HZ < 5
    assert len((await run(ata, config))[0][0][2]) == 8


@pytest.mark.asyncio
async def test_an_exception_in_a_script_is_the_machines_failure() -> None:
    async def guest(cpu: avmm.ScriptCpu) -> None:
        assert await cpu.inb(0x64) == 0xDEAD

    async with avmm.Host() as host:
        vm = await host.create_vm(SMALL, guest=guest)
        await vm.start()
        with pytest.raises(avmm.GuestFailure) as caught:
            await vm.wait_off()
        assert isinstance(caught.value.__cause__, AssertionError)
        assert vm.state is avmm.RunState.FAILED


@pytest.mark.asyncio
async def test_nonsense_widths_and_nobody_there() -> None:
    async def guest(cpu: avmm.ScriptCpu) -> object:
        seen = [await cpu.inb(0x5555), await cpu.inw(0x5555), await cpu.inl(0x5555), await cpu.load(0xD0000000, 8)]
        await cpu.outl(0x5555, 0x12345678)
        await cpu.store(0xD0000000, 1, 8)
        seen += [await cpu.inl(0xFFFF), await cpu.inw(0x41) >> 16, await cpu.inl(0x3FE) & 0]
        return seen

    (seen, _), stats, _ = await run(guest)
    assert seen == [0xFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF, 0, 0]
    assert stats.floating >= 6
