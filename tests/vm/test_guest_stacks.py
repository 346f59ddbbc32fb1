"""The built-in guest's two storage stacks and the shunt between them: one disk, reached by port accesses or over VMBus (M3 to M10)."""
# ruff: noqa: ASYNC240 - a test may block its own loop

from __future__ import annotations

import asyncio
import random
import re
import shutil
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

import avmm
import guests
from avmm.devices.block import BlockFault
from guests.filearea import SECTOR, format_area, read_area
from tests.vm.pc import running

pytestmark = pytest.mark.asyncio

MODES = ("emulated", "enlightened", "shunt-only")
KEYS = {"emulated": "f2", "enlightened": "f3", "shunt-only": "f4"}
DUMP_LBA, DUMP_SECTORS = 240, 9
TICKS = re.compile(r"(\d+) ticks of 1/20 s")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return Path(shutil.copy(guests.image(), tmp_path / "guest.img"))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """The guest on a longer disk, with a file that takes many requests."""
    disk = bytearray(guests.image().read_bytes()[: 256 * SECTOR].ljust(6 << 20, b"\0"))
    format_area(disk, [("big", b"".join(b"%08x" % i for i in range(75_000)))])
    path = tmp_path / "large.img"
    path.write_bytes(disk)
    return path


@asynccontextmanager
async def booted(image: Path, **config: Any) -> AsyncIterator[avmm.Vm]:
    async with running(**{"memory": "8M", "disks": [avmm.Disk(image)], "hyperv": True, **config}) as vm:
        await vm.serial.wait_for("ok> ")
        yield vm


async def say(vm: avmm.Vm, line: str) -> str:
    """Type a command on the serial line and return what it printed, when the prompt is back."""
    vm.serial.write(line + "\n")
    return (await vm.serial.wait_for("\nok> ")).partition("\n")[2].removesuffix("ok> ").replace("\r", "")


async def switch(vm: avmm.Vm, mode: str) -> None:
    assert await say(vm, f"mode {mode}") == f"mode: {mode}\n"


def ata(vm: avmm.Vm) -> int:
    """Accesses to the emulated controller's ports so far."""
    return sum(port.reads + port.writes for port in vm.stats.ports if port.device in ("ata0", "ata1", "bmide"))


def scsi(vm: avmm.Vm) -> int:
    """Requests over VMBus so far."""
    assert vm.machine.scsi is not None
    return vm.machine.scsi.stats.requests


def bytes_moved(vm: avmm.Vm) -> tuple[int, int, int]:
    """Bytes that VM-H's disk has read and written so far, and how many of them were asked for over VMBus."""
    assert vm.machine.scsi is not None
    disk, over_bus = vm.machine.disks[0].stats, vm.machine.scsi.stats
    return disk.bytes_read, disk.bytes_written, over_bus.bytes_read + over_bus.bytes_written


def files_in(path: Path) -> dict[str, bytes]:
    found = read_area(path.read_bytes())
    assert all(file.intact for file in found)
    return {file.name: file.data for file in found}


async def test_m3_m4_m9_each_mode_reads_what_the_others_wrote(image: Path) -> None:
    async with booted(image) as vm:
        assert await say(vm, "mode") == "mode: emulated\n"
        for mode in MODES:
            await switch(vm, mode)
            ports, requests, moved = ata(vm), scsi(vm), bytes_moved(vm)
            await say(vm, f"write {mode} by way of {mode}")
            assert await say(vm, f"copy pattern.txt {mode}-copy") == ""
            read, written, over_bus = (after - before for after, before in zip(bytes_moved(vm), moved, strict=True))
            assert read >= 65536
            assert written >= 65536
            assert over_bus == (0 if mode == "emulated" else read + written), "all data, or none"
            if mode == "emulated":
                assert (ata(vm) > ports, scsi(vm)) == (True, requests)
            elif mode == "enlightened":
                assert (ata(vm), scsi(vm) > requests) == (ports, True), "nothing traps on its way to the disk"
            else:  # the data go straight to VM-H, the flushes through the trap
                assert (ata(vm) > ports, scsi(vm) > requests) == (True, True)
        for mode in MODES[::-1]:
            await switch(vm, mode)
            for other in MODES:
                assert await say(vm, f"read {other}") == f"by way of {other}\n"
                assert "as written" in await say(vm, f"sum {other}-copy")
    files = files_in(image)
    assert all(files[f"{mode}-copy"] == files["pattern.txt"] for mode in MODES)


@pytest.mark.parametrize("embodiment", ["late", "told", "default", "port"])
async def test_m5_m6_embodiments_of_the_shunt(image: Path, embodiment: str) -> None:
    async with booted(image) as vm:
        shown = await say(vm, f"shunt {embodiment}")
        assert f"embodiment: {embodiment} " in shown
        assert shown.startswith("shunt: absent, passing" if embodiment == "late" else "shunt: present, passing")
        await say(vm, "read motd.txt")
        assert "diverted 0," in await say(vm, "shunt status")
        await switch(vm, "enlightened")
        ports = ata(vm)
        assert "as written" in await say(vm, "sum pattern.txt")
        shown = await say(vm, "shunt status")
        assert shown.startswith("shunt: present, diverting\n")
        assert re.search(r"diverted [1-9]", shown)
        assert "shunt back: inert" in shown
        assert ata(vm) == ports
        await switch(vm, "emulated")
        requests = scsi(vm)
        assert "as written" in await say(vm, "sum pattern.txt")
        assert (scsi(vm), ata(vm) > ports) == (requests, True)
        assert "passing" in await say(vm, "shunt status")


async def test_m8_a_program_sees_one_disk(image: Path) -> None:
    async with booted(image) as vm:
        models = {"emulated": "AVMM HARDDISK", "enlightened": "AVMM Virtual Disk", "shunt-only": "AVMM HARDDISK"}
        drivers = {"emulated": "ata pio", "enlightened": "vmbus storvsc", "shunt-only": "shunt, ata pio"}
        for mode in (*MODES, *MODES):
            await switch(vm, mode)
            shown = await say(vm, "devices")
            assert shown == f"  {models[mode]}, serial AVMM00001, 4096 sectors, driver {drivers[mode]}\n1 disk.\n"
            hidden, open_ = ("emulating", "enlightened") if mode == "enlightened" else ("enlightened", "emulating")
            assert await say(vm, f"devices {hidden}") == f"The {hidden} class driver tells nothing.\n"
            assert models[mode] in await say(vm, f"devices {open_}")
            assert f"driver: {drivers[mode]}" in await say(vm, "disk")
        await switch(vm, "enlightened")
        assert await say(vm, "disk dma") == "This machine has no bus-master DMA.\n", "nor is the hidden disk to be had this way"


async def test_m6_the_host_tells_the_mode(image: Path) -> None:
    async with booted(image) as vm:
        assert vm.mode == "emulated"
        for mode in (*MODES[1:], *MODES, *MODES[::-1]):
            assert await vm.set_mode(mode) == mode
            assert vm.mode == mode
            assert await say(vm, "mode") == f"mode: {mode}\n"
            ports, requests = ata(vm), scsi(vm)
            assert "as written" in await say(vm, "sum pattern.txt")
            assert (ata(vm) > ports, scsi(vm) > requests) == (mode == "emulated", mode != "emulated")
        await switch(vm, "shunt-only")
        assert vm.mode == "shunt-only", "it tells of its own switches, too"
        with pytest.raises(avmm.ModeError, match="no mode 'fast': choose emulated, enlightened, shunt-only"):
            await vm.set_mode("fast")
        await vm.pause()
        with pytest.raises(avmm.ModeError, match="paused: only a running guest"):
            await vm.set_mode("emulated")
        await vm.resume()
        await vm.reset()
        await vm.wait_until(lambda: vm.mode is None)
        with pytest.raises(avmm.ModeError, match="nobody in the guest listens"):
            await vm.set_mode("enlightened")


async def test_a_guest_that_is_reset_meanwhile_has_not_switched(image: Path) -> None:
    async with booted(image) as vm:
        asked = asyncio.create_task(vm.set_mode("enlightened"))
        await asyncio.sleep(0)
        await vm.reset()
        with pytest.raises(avmm.ModeError, match="vm was reset before its guest was enlightened"):
            await asked
        await vm.serial.wait_for("ok> ")
        assert vm.mode == "emulated"
        assert await vm.set_mode("enlightened") == "enlightened"


async def test_m10_the_host_hears_why_a_guest_stays_as_it_is(image: Path) -> None:
    async with booted(image, hyperv_disks=False) as vm:
        with pytest.raises(avmm.ModeError, match="the guest stays emulated: the host offers no disk controller on VMBus"):
            await vm.set_mode("enlightened")
        assert "as written" in await say(vm, "sum pattern.txt")
    async with booted(image, hyperv=False) as vm:
        assert vm.mode is None
        with pytest.raises(avmm.ModeError, match="hyperv = true"):
            await vm.set_mode("enlightened")


async def test_the_host_switches_while_a_file_is_written_and_loses_nothing(large: Path) -> None:
    async with booted(large) as vm:
        ports, requests, switches = ata(vm), scsi(vm), 0
        vm.serial.write("copy big copied\n")
        while vm.serial.take("\nok> ") is None:
            switches += 1
            await vm.set_mode(MODES[switches % 3])
        assert switches > 4
        assert ata(vm) > ports
        assert scsi(vm) > requests
        assert "as written" in await say(vm, "sum copied")
        vm.serial.write("halt\n")
        assert await vm.wait_off() == "the guest entered ACPI S5"
    files = files_in(large)
    assert files["copied"] == files["big"]


def session(seed: int, length: int) -> list[str]:
    """Commands that read and write files; some name a file that is not there, or a second one of a name."""
    chance = random.Random(seed)
    names = ["motd.txt", "pattern.txt", "bytes.bin", "a", "b", "c"]
    commands = []
    for number in range(length):
        what = chance.choice(["write", "write", "copy", "copy", "sum", "sum", "read", "delete"])
        name, other = chance.choice(names[3:]), chance.choice(names)
        commands.append({
            "write": f"write {name} {'line of ' * chance.randrange(9)}{number}", "copy": f"copy {other} {name}", "sum": f"sum {other}",
            "read": f"read {name}", "delete": f"delete {name}",
        }[what])  # fmt: skip
    return commands


async def played(image: Path, commands: list[str], before: str, after: str, at: int) -> tuple[list[str], dict[str, bytes]]:
    """Type the commands, the first ``at`` by one way to the disk and the rest by another; what was printed, and what is in the files."""
    path = image.with_name("played.img")
    shutil.copy(image, path)
    async with booted(path) as vm:
        await vm.set_mode(before)
        said = []
        for index, command in enumerate(commands):
            if index == at:
                await vm.set_mode(after)
            said.append(await say(vm, command))
    return said, files_in(path)


@pytest.mark.parametrize("length", [8, pytest.param(40, marks=pytest.mark.long)])
async def test_the_same_session_by_each_way_and_with_a_switch_at_every_command(image: Path, length: int) -> None:
    commands = session(24, length)
    expected = await played(image, commands, "emulated", "emulated", 0)
    assert any("There is no such file." in text for text in expected[0])
    assert any("as written" in text for text in expected[0])
    for mode in MODES[1:]:
        assert await played(image, commands, mode, mode, 0) == expected
    ways = list(permutations(MODES, 2))
    for at in range(length):
        before, after = ways[at % len(ways)]
        assert await played(image, commands, before, after, at) == expected, f"from {before} to {after} before {commands[at]}"


@pytest.mark.parametrize("first", range(3))
async def test_switching_while_a_file_is_written_loses_nothing(large: Path, first: int) -> None:
    async with booted(large) as vm:
        ports, requests, switches = ata(vm), scsi(vm), first
        vm.serial.write("copy big copied\n")
        while vm.serial.take("\nok> ") is None:
            key = KEYS[("enlightened", "emulated", "shunt-only")[switches % 3]]
            vm.keyboard.press(key)
            vm.keyboard.release(key)
            switches += 1
            await vm.sleep(0.0011)
        assert switches - first > 5, "it takes long enough to switch in its midst"
        assert ata(vm) > ports
        assert scsi(vm) > requests
        diverted, passed = map(int, re.findall(r"(?:diverted|passed on) (\d+)", await say(vm, "shunt status")))
        assert diverted > 4
        assert passed > 4
        assert "as written" in await say(vm, "sum copied")
        vm.serial.write("halt\n")
        assert await vm.wait_off() == "the guest entered ACPI S5"
    files = files_in(large)
    assert files["copied"] == files["big"]


async def test_bench_works_in_each_mode_and_through_a_switch(image: Path) -> None:
    line = re.compile(r"bench (\S+) (read|write) depth=(\d+) 65536:64:(\d+) 4096:256:(\d+) 512:256:(\d+)")
    async with booted(image) as vm:
        for mode in MODES:
            await switch(vm, mode)
            for operation, depth in (("read", 1), ("write", 8)):
                ports = ata(vm)
                last = (await say(vm, f"bench disk {operation} {depth}")).splitlines()[-1]
                match = line.fullmatch(last)
                assert match is not None, last
                assert match.group(1, 2, 3) == (mode, operation, str(depth))
                assert all(int(spent) > 0 for spent in match.group(4, 5, 6))
                assert (ata(vm) == ports) == (mode != "emulated")
        stats = vm.machine.scsi
        assert stats is not None
        assert stats.stats.most_in_flight == 8
        await switch(vm, "enlightened")
        before = scsi(vm)
        vm.serial.write("bench disk write\n")
        while scsi(vm) == before:
            await vm.sleep(0.0002)
        vm.keyboard.press(KEYS["emulated"])
        last = (await vm.serial.wait_for("\nok> ")).splitlines()[-2]
        assert last.startswith("bench emulated write depth=1 ")
        assert before < scsi(vm) < before + 400, "the rest went to the emulated disk, by the shunt back"
        assert await say(vm, "bench disk 17") == "Say: bench disk [read|write] [DEPTH]; the depth is 1 to 16.\n"
    assert files_in(image) == files_in(guests.image())


async def test_the_same_session_twice(image: Path) -> None:
    """In virtual time two enlightened runs do the same, to the nanosecond."""
    runs = []
    for _ in range(2):
        async with booted(image, disks=[avmm.Disk(image, "overlay")]) as vm:
            await switch(vm, "enlightened")
            await say(vm, "copy pattern.txt again")
            await say(vm, "bench disk 8")
            stats = vm.stats
            runs.append((vm.now, bytes(vm.serial.output), stats.exits, stats.injected))
    assert runs[0] == runs[1]


async def test_m10_a_crash_dump_is_written_through_the_emulating_stack(image: Path) -> None:
    async with booted(image) as vm:
        await switch(vm, "enlightened")
        await say(vm, "write note here before the crash")
        ports, requests = ata(vm), scsi(vm)
        vm.serial.write("crash\n")
        await vm.serial.wait_for("Writing the dump ... done.")
        assert (ata(vm) > ports, scsi(vm)) == (True, requests)
        dump = image.read_bytes()[DUMP_LBA * SECTOR : (DUMP_LBA + DUMP_SECTORS) * SECTOR]
        magic, _, cr2, _, length = struct.unpack_from("<4s4I", dump)
        assert (magic, cr2) == (b"NDUM", 0)
        assert dump[20:64].rstrip(b"\0") == b"page fault"
        text = dump[SECTOR : SECTOR + length].decode()
        assert "mode: enlightened" in text
        assert "*** The kernel has crashed: page fault ***" in text

        await vm.reset()
        assert "The last run crashed: page fault" in await vm.serial.wait_for("ok> ")
        assert await say(vm, "mode") == "mode: emulated\n", "the loader and the first of the kernel know nothing else"
        await switch(vm, "enlightened")
        assert await say(vm, "read note") == "here before the crash\n"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"hyperv": False}, "This machine has no hypervisor to speak to, only hardware: the emulating stack stays."),
        ({"hyperv_disks": False}, "The host offers no disk controller on VMBus: the mode stays."),
    ],
)
async def test_m10_the_same_image_where_there_is_only_hardware(image: Path, config: dict[str, Any], reason: str) -> None:
    async with booted(image, **config) as vm:
        for mode in ("enlightened", "shunt-only"):
            assert await say(vm, f"mode {mode}") == reason + "\n"
            assert await say(vm, "mode") == "mode: emulated\n"
        assert "driver ata pio\n1 disk." in await say(vm, "devices")
        vm.keyboard.press(KEYS["enlightened"])
        await say(vm, "write here still")
        assert await say(vm, "read here") == "still\n"


async def test_another_disk_is_not_taken_for_ours(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(bytes(image.stat().st_size))
    async with booted(image) as vm:
        await vm.detach_disk(0)
        assert await vm.attach_disk(avmm.Disk(other)) == 0
        assert await say(vm, "mode enlightened") == "The host's controller does not have the disk we run from: the mode stays.\n"
        assert "as written" in await say(vm, "sum pattern.txt")


async def test_m7_a_channel_taken_away_sends_requests_back(image: Path) -> None:
    async with booted(image) as vm:
        vmbus, controller = vm.machine.vmbus, vm.machine.scsi
        assert vmbus is not None
        assert controller is not None
        await switch(vm, "enlightened")
        vmbus.rescind(controller)
        ports = ata(vm)
        await say(vm, "write note by the emulated disk")
        assert ata(vm) > ports
        shown = await say(vm, "shunt status")
        assert "shunt back: diverting" in shown
        assert re.search(r"returned [1-9]", shown)
        assert "1 disk." in await say(vm, "devices")
        assert "The host took the channel away" in await say(vm, "mode")
        vmbus.offer(controller)
        await switch(vm, "enlightened")
        assert await say(vm, "read note") == "by the emulated disk\n"
        assert "shunt back: inert" in await say(vm, "shunt status")


@pytest.mark.parametrize(("embodiment", "diverting"), [("late", True), ("told", True), ("default", False), ("port", False)])
async def test_m6_embodiments_differ_when_the_enlightened_port_driver_accepts_no_more(image: Path, embodiment: str, diverting: bool) -> None:
    """Told by the mode, the shunt goes on diverting, and requests come back; told by that driver, or asking it, it lets them pass."""
    async with booted(image) as vm:
        vmbus, controller = vm.machine.vmbus, vm.machine.scsi
        assert vmbus is not None
        assert controller is not None
        await say(vm, f"shunt {embodiment}")
        await switch(vm, "enlightened")
        await say(vm, "write note by VMBus")
        vmbus.rescind(controller)
        before = await say(vm, "shunt status")
        assert before.startswith(f"shunt: present, {'diverting' if diverting else 'passing'}\n")
        ports = ata(vm)
        assert await say(vm, "read note") == "by VMBus\n"
        assert ata(vm) > ports
        diverted, passed, returned = (
            int(after) - int(number) for number, after in zip(re.findall(r"\d+", before), re.findall(r"\d+", await say(vm, "shunt status")), strict=True)
        )
        assert (diverted > 0, passed > 0, returned > 0) == (diverting, not diverting, diverting)


async def test_errors_of_the_disk_arrive(image: Path) -> None:
    async with booted(image) as vm:
        await switch(vm, "enlightened")
        assert vm.machine.scsi is not None
        disk = vm.machine.scsi.luns[0, 0, 0]
        disk.inject = lambda op, lba, count: BlockFault.MEDIUM if op == "read" else None
        assert await say(vm, "read motd.txt") == "The disk reported an error.\n"
        assert "retries 3," in await say(vm, "disk")
        disk.inject = None
        assert "Welcome" in await say(vm, "read motd.txt")


async def test_an_idle_guest_is_not_interrupted_and_knows_the_time(image: Path) -> None:
    async with booted(image, hyperv=False) as vm:
        await vm.sleep(1)  # the time stamp counter is measured meanwhile
        injected, slices = vm.stats.injected, vm.stats.slices
        await vm.sleep(60)
        assert vm.stats.injected == injected
        assert vm.stats.slices <= slices + 1
        ticks = TICKS.search(await say(vm, "time"))
        assert ticks is not None
        assert int(ticks[1]) == pytest.approx(vm.now * 20, abs=2)
        await say(vm, "beep 1000")  # waits for four ticks
        later = TICKS.search(await say(vm, "time"))
        assert later is not None
        assert int(later[1]) - int(ticks[1]) in (4, 5)
