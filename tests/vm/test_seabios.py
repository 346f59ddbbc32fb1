"""SeaBIOS from Debian's package: the same boots by its own drivers on the emulated hardware (IDE, keyboard controller, timers)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import avmm
from avmm.devices.block import SECTOR
from tests import third_party
from tests.vm.pc import running, write_disk
from tests.vm.test_boot_sectors import DISK_TRAFFIC
from tests.vm.test_bootloaders import IPXE_BANNER, QUICKLY, grub_prompt, syslinux_disk

pytestmark = [pytest.mark.asyncio, pytest.mark.guests]

ECHO = """
    mov si, hello
    call puts
next:
    mov ah, 0
    int 0x16
    mov ah, 0x0e
    mov bx, 7
    int 0x10
    jmp next
hello: db "from the disk> ", 0
"""


@pytest.fixture(autouse=True)
def firmware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVMM_FIRMWARE", str(third_party.file("usr/share/seabios/bios.bin").parent))


@asynccontextmanager
async def seabios(**config: Any) -> AsyncIterator[avmm.Vm]:
    async with running(bios="seabios", **config) as vm:
        yield vm


def said(vm: avmm.Vm) -> str:
    """What SeaBIOS wrote to its debug port."""
    return vm.machine.debug.text()


async def test_boots_a_disk_and_takes_keys(tmp_path: Path) -> None:
    disk = write_disk(tmp_path / "disk.img", ECHO)
    async with seabios(disks=[avmm.Disk(disk)]) as vm:
        await vm.screen.wait_for("from the disk>")
        await vm.keyboard.type("Typing, to SeaBIOS")
        text = await vm.screen.wait_for("to SeaBIOS")
        assert "from the disk> Typing, to SeaBIOS" in text
        assert text.startswith("SeaBIOS (version 1.")
        assert vm.now < 0.6
        debug = said(vm)
        assert "ata0-0: AVMM HARDDISK ATA-6 Hard-Disk" in debug
        assert "PS2 keyboard initialized" in debug
        assert "Using pmtimer, ioport 0x608" in debug
        assert "Booting from 0000:7c00" in debug


@pytest.mark.parametrize("mode", ["rw", "overlay"])
async def test_int_13h_drives_the_ide_disk(tmp_path: Path, mode: str) -> None:
    """What test_boot_sectors does by the built-in BIOS, through SeaBIOS's ATA driver and the emulated registers."""
    disk = write_disk(tmp_path / "disk.img", DISK_TRAFFIC)
    before = disk.read_bytes()
    async with seabios(disks=[avmm.Disk(disk, mode)]) as vm:  # type: ignore[arg-type]
        text = await vm.screen.wait_for("done")
    after = disk.read_bytes()
    assert "00000066" in text
    assert "L0000100B0000101" in text
    if mode == "overlay":
        assert after == before
    else:
        assert after[1008 * SECTOR :].startswith(b"C0000066\0")
        assert after[1500 * SECTOR : 1501 * SECTOR] == b"L" + before[100 * SECTOR + 1 : 101 * SECTOR]
        assert after[1501 * SECTOR : 1502 * SECTOR] == b"B" + before[101 * SECTOR + 1 : 102 * SECTOR]
        rest = [lba for lba in range(2016) if lba not in (1008, 1500, 1501)]
        assert all(after[lba * SECTOR : (lba + 1) * SECTOR] == before[lba * SECTOR : (lba + 1) * SECTOR] for lba in rest)


async def test_boot_order_and_second_disk(tmp_path: Path) -> None:
    first = write_disk(tmp_path / "first.img", ECHO)
    cd = third_party.file("usr/lib/ipxe/ipxe.iso")
    async with seabios(disks=[avmm.Disk(first)], cdrom=cd) as vm:
        text = await vm.screen.wait_for("from the disk>")
        assert "Booting from Hard Disk" in text
    async with seabios(disks=[avmm.Disk(first)], cdrom=cd, boot="d") as vm:
        text = await vm.screen.wait_for("ISOLINUX")
        assert "Booting from DVD/CD" in text
        await vm.screen.wait_for(IPXE_BANNER)


async def test_disk_geometry_is_in_cmos(tmp_path: Path) -> None:
    disk = write_disk(tmp_path / "disk.img", "jmp stop", 20 * 16 * 63)
    async with seabios(disks=[avmm.Disk(disk)]) as vm:
        await vm.screen.wait_for("Booting from Hard Disk")
        assert "LCHS=20/16/63" in said(vm)
        cells = vm.machine.rtc.cells
        assert (cells[0x12], cells[0x19], cells[0x1B], cells[0x1D], cells[0x23]) == (0xF0, 47, 20, 16, 63)
        assert cells[0x3D] == 0x21, "floppy, then disk"


async def test_reset(tmp_path: Path) -> None:
    disk = write_disk(tmp_path / "disk.img", ECHO)
    async with seabios(disks=[avmm.Disk(disk)]) as vm:
        await vm.screen.wait_for("from the disk>")
        await vm.keyboard.key("ctrl", "alt", "delete")
        await vm.wait_until(lambda: said(vm).count("Booting from 0000:7c00") == 2, what="it booted again")
        await vm.screen.wait_for("from the disk>")
        await vm.keyboard.type("again")
        await vm.screen.wait_for("from the disk> again")


async def test_syslinux(tmp_path: Path) -> None:
    config = "PROMPT 1\nDISPLAY boot.msg\nDEFAULT nothing\n"
    disk = syslinux_disk(tmp_path / "disk.img", config, {"boot.msg": b"A message from the disk\r\n"}, floppy=False)
    async with seabios(disks=[avmm.Disk(disk)]) as vm:
        assert "A message from the disk" in await vm.screen.wait_for("boot:")
        await vm.keyboard.type("nonsense\n", QUICKLY)
        await vm.screen.wait_for("Loading nonsense... failed")


@pytest.mark.parametrize("medium", ["disk", "cd"])
async def test_grub(tmp_path: Path, medium: str) -> None:
    folder = third_party.file("usr/lib/grub-rescue/grub-rescue-usb.img").parent
    config: dict[str, Any] = {"disks": [avmm.Disk(folder / "grub-rescue-usb.img", "overlay")]}
    if medium == "cd":
        config = {"cdrom": folder / "grub-rescue-cdrom.iso"}
    async with seabios(**config) as vm:
        await grub_prompt(vm)
        await vm.keyboard.type("ls\n", QUICKLY)
        await vm.screen.wait_for({"disk": "(hd0) (hd0,msdos1)", "cd": "(cd"}[medium], timeout=3)


async def test_has_no_floppy_controller(tmp_path: Path) -> None:
    with pytest.raises(avmm.ConfigError, match="floppies are served by the built-in BIOS"):
        avmm.VmConfig(bios="seabios", floppies=[avmm.Disk(tmp_path / "floppy.img")])
