"""The built-in guest as its user works with it, started by the built-in BIOS and by SeaBIOS."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import avmm
import guests
from guests.filearea import File, read_area
from tests import third_party
from tests.vm.pc import running

pytestmark = pytest.mark.asyncio

PROMPT = re.compile(r"ok>$")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return Path(shutil.copy(guests.image(), tmp_path / "guest.img"))


@pytest.fixture(params=["builtin", pytest.param("seabios", marks=pytest.mark.guests)])
def bios(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "seabios":
        monkeypatch.setenv("AVMM_FIRMWARE", str(third_party.file("usr/share/seabios/bios.bin").parent))
    return str(request.param)


def files_in(image: Path) -> dict[str, File]:
    return {file.name: file for file in read_area(image.read_bytes())}


async def say(vm: avmm.Vm, line: str) -> str:
    """Type a command and return what it printed, when the prompt is back."""
    await vm.keyboard.type("echo ---\n")
    await vm.screen.wait_for(lambda text: text.endswith("---\nok>"))
    await vm.keyboard.type(line + "\n")
    text = await vm.screen.wait_for(lambda text: line in text.rsplit("---\n", 1)[-1] and bool(PROMPT.search(text)))
    return text.rsplit("---\n", 1)[1].split("\n", 1)[1].rsplit("ok>", 1)[0]


async def test_a_session(bios: str, disk: Path) -> None:
    """Files, clock, memory, disk speed and speaker; and what was written is there after a reset."""
    files = files_in(disk)
    async with running(disks=[avmm.Disk(disk)], bios=bios, epoch=1234567890) as vm:
        text = await vm.screen.wait_for(PROMPT)
        assert "avmm guest 1.0" in text
        assert "disk: AVMM HARDDISK, 2048 KiB" in text

        listing = await say(vm, "dir")
        for file in files.values():
            assert re.search(rf"^  {re.escape(file.name)} +{len(file.data)}  {file.crc:08x}", listing, re.MULTILINE)
        assert (await say(vm, "read motd.txt")).strip() == files["motd.txt"].data.decode().strip()
        assert "as written" in await say(vm, "sum pattern.txt")

        assert await say(vm, "write note.txt kept over a reset") == ""
        assert await say(vm, "read note.txt") == "kept over a reset\n"
        assert "2009-02-13 23:31:" in await say(vm, "time")
        usable = re.search(r"(\d+) KiB usable", await say(vm, "mem"))
        assert usable is not None
        assert 15000 < int(usable[1]) < 16384
        speeds = re.findall(r"(\d+) B: +(\d+) KB/s", await say(vm, "bench disk"))
        assert [size for size, _ in speeds] == ["65536", "4096", "512"]
        assert all(int(speed) > 100 for _, speed in speeds)
        await say(vm, "beep 1000")
        assert [hz for *_, hz in vm.machine.speaker.tones()][-1:] == pytest.approx([1000], abs=1)
        assert await say(vm, "nonsense") == "what? (try help)\n"

        await vm.reset()
        await vm.wait_until(lambda: vm.stats.resets == 1, 1)
        await vm.screen.wait_for(PROMPT)
        assert await say(vm, "read note.txt") == "kept over a reset\n"
        await vm.keyboard.type("halt\n")
        assert await vm.wait_off(5) == "the guest entered ACPI S5"
        assert "System halted." in vm.screen.text()
    assert files_in(disk)["note.txt"].data == b"kept over a reset\n"
    async with running(disks=[avmm.Disk(disk)], bios=bios) as vm:  # another machine, the same disk
        await vm.screen.wait_for(PROMPT)
        assert await say(vm, "read note.txt") == "kept over a reset\n"


async def test_crashes_and_restarts(bios: str, disk: Path) -> None:
    async with running(disks=[avmm.Disk(disk)], bios=bios) as vm:
        await vm.screen.wait_for(PROMPT)
        text = await say(vm, "crash shell")
        assert re.search(r"(?i)fault", text), text
        assert "ok" in await say(vm, "echo ok"), "the shell runs again"
        before = vm.now
        await vm.keyboard.type("reboot\n")
        await vm.wait_until(lambda: vm.stats.resets >= 1, 2)
        await vm.screen.wait_for(lambda text: bool(PROMPT.search(text)) and "reboot" not in text)
        assert vm.now - before < 2
        await vm.keyboard.type("crash kernel\n")
        assert "*** The kernel has crashed" in await vm.screen.wait_for("Reset the machine")
        await vm.reset()
        assert "The last run crashed" in await vm.screen.wait_for(lambda text: "last run" in text and bool(PROMPT.search(text)))


async def test_pio_and_dma_read_the_same(disk: Path) -> None:
    async with running(disks=[avmm.Disk(disk, "overlay")]) as vm:
        await vm.screen.wait_for(PROMPT)
        sums = []
        for way in ("pio", "dma"):
            assert await say(vm, f"disk {way}") == ""
            sums.append(await say(vm, "sum pattern.txt"))
            assert "retries 0, resets 0, timeouts 0, lost interrupts 0" in await say(vm, "disk")
        assert sums[0] == sums[1]
        assert "as written" in sums[0]
        assert any(port.device == "bmide" and port.writes for port in vm.stats.ports)


async def test_the_same_session_twice(disk: Path) -> None:
    """In virtual time two runs do the same, to the nanosecond."""
    runs = []
    for _ in range(2):
        async with running(disks=[avmm.Disk(disk, "overlay")]) as vm:
            await vm.screen.wait_for(PROMPT)
            await say(vm, "bench disk")
            await say(vm, "write a b")
            stats = vm.stats
            runs.append((vm.now, vm.screen.text(), bytes(vm.serial.output), stats.exits, stats.injected, stats.outside))
    assert runs[0] == runs[1]
