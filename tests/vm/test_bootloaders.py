"""Other people's boot loaders on the built-in BIOS: GRUB, SYSLINUX, memdisk and iPXE from Debian's packages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import avmm
from avmm.devices.block import SECTOR
from tests import third_party
from tests.vm.pc import boot_sector, running, write_disk

pytestmark = [pytest.mark.asyncio, pytest.mark.guests]

QUICKLY = 0.004
"""s between keys: boot loaders poll the keyboard all the time, which costs the host more than the guest."""
FLOPPY = 2880 * SECTOR
IPXE_BANNER = "Open Source Network Boot Firmware"


def run(tool: str, *arguments: str | Path) -> None:
    subprocess.run([third_party.tool(tool), *map(str, arguments)], check=True, env=third_party.tool_environment(), capture_output=True)


def syslinux_disk(image: Path, config: str, files: dict[str, bytes], *, floppy: bool = True) -> Path:
    """Make a FAT disk that boots SYSLINUX."""
    image.write_bytes(bytes(FLOPPY if floppy else 8 * 16 * 63 * SECTOR))
    run("mformat", "-i", image, *(("-f", "1440") if floppy else ("-t", "8", "-h", "16", "-s", "63")), "-v", "AVMM", "::")
    run("syslinux", "--install", image)
    for name, data in {"syslinux.cfg": config.encode(), **files}.items():
        part = image.with_name(name)
        part.write_bytes(data)
        run("mcopy", "-i", image, part, f"::{name}")
    return image


async def grub_prompt(vm: avmm.Vm) -> None:
    """From the menu of Debian's rescue images to the command line."""
    menu = await vm.screen.wait_for("command-line.", timeout=5)
    assert "GNU GRUB  version 2." in menu
    assert "*GNU/Linux" in menu
    await vm.keyboard.type("c", QUICKLY)
    await vm.screen.wait_for("grub>", timeout=5)


@pytest.mark.parametrize("medium", ["floppy", "cd", "disk"])
async def test_grub(tmp_path: Path, medium: str) -> None:
    folder = third_party.file("usr/lib/grub-rescue/grub-rescue-floppy.img").parent
    other = avmm.Disk(write_disk(tmp_path / "disk.img", "jmp stop"))
    configs: dict[str, dict[str, Any]] = {
        "floppy": {"floppies": [avmm.Disk(folder / "grub-rescue-floppy.img", "ro")], "disks": [other]},
        "cd": {"cdrom": folder / "grub-rescue-cdrom.iso", "disks": [other], "boot": "d"},
        "disk": {"disks": [avmm.Disk(folder / "grub-rescue-usb.img", "overlay"), other]},
    }
    listed = {"floppy": "(hd0) (fd0)", "cd": "(hd0) (cd)", "disk": "(hd0) (hd0,msdos1) (hd1)"}[medium]
    async with running(**configs[medium]) as vm:
        await grub_prompt(vm)
        await vm.keyboard.type("ls\n", QUICKLY)
        await vm.screen.wait_for(listed, timeout=5)  # each drive is shown when it has been looked at


SYSLINUX = """\
PROMPT 1
DISPLAY boot.msg
DEFAULT nothing
LABEL ipxe
  KERNEL ipxe.krn
LABEL diskette
  KERNEL memdisk
  INITRD small.img
"""


@pytest.fixture
def syslinux(tmp_path: Path) -> Path:
    small = boot_sector("mov si, name\n call puts\n jmp stop\n name: db 'A diskette in memory', 0") + bytes(719 * SECTOR)
    files = {
        "boot.msg": b"\x0c\x0f1eA message from the diskette\x0f07\r\n",
        "ipxe.krn": third_party.file("boot/ipxe.lkrn").read_bytes(),
        "memdisk": third_party.file("usr/lib/syslinux/memdisk").read_bytes(),
        "small.img": small,
    }
    return syslinux_disk(tmp_path / "syslinux.img", SYSLINUX, files)


async def test_syslinux_prompt_and_typing(syslinux: Path) -> None:
    async with running(floppies=[avmm.Disk(syslinux)]) as vm:
        text = await vm.screen.wait_for("boot:")
        assert text.splitlines() == ["A message from the diskette", "boot:"]
        assert vm.machine.vga.cells()[0][0] == (ord("A"), 0x1E)
        await vm.keyboard.type("nonsnese\b\b\b\bense\n", QUICKLY)
        text = await vm.screen.wait_for(lambda text: text.count("boot:") == 2)
        assert "boot: nonsense\nLoading nonsense... failed: No such file or directory" in text


async def test_syslinux_starts_memdisk(syslinux: Path) -> None:
    async with running(floppies=[avmm.Disk(syslinux)]) as vm:
        await vm.screen.wait_for("boot:")
        await vm.keyboard.type("diskette\n", QUICKLY)
        text = await vm.screen.wait_for("A diskette in memory")
        assert "Disk is fd0, 360 K, C/H/S = 40/2/9" in text
        assert f"{(16 << 20) - 0x100000:016x} 1" in text, "memdisk shows the E820 map"


async def test_syslinux_starts_ipxe(syslinux: Path) -> None:
    async with running(floppies=[avmm.Disk(syslinux)]) as vm:
        await vm.screen.wait_for("boot:")
        await vm.keyboard.type("ipxe\n", QUICKLY)
        await vm.screen.wait_for(IPXE_BANNER)


async def test_ipxe_from_its_cd() -> None:
    async with running(cdrom=third_party.file("usr/lib/ipxe/ipxe.iso")) as vm:
        assert "ISOLINUX" in await vm.screen.wait_for("iPXE ISO boot image")
        await vm.screen.wait_for(IPXE_BANNER)
        await vm.screen.wait_for("Ctrl-B")
        await vm.sleep(0.1)
        await vm.keyboard.key("ctrl", "b")
        await vm.screen.wait_for("iPXE>", timeout=1)
        await vm.keyboard.type("show version\n")
        await vm.screen.wait_for("builtin/version:string", timeout=1)


async def test_ipxe_as_a_kernel() -> None:
    """ipxe.lkrn has no 32-bit entry point: it is started in real mode, with its command line, after the BIOS's self-test."""
    kernel = third_party.file("boot/ipxe.lkrn")
    async with running(kernel=kernel, append="echo one and two && shell") as vm:
        text = await vm.screen.wait_for("iPXE>", timeout=5)
        assert IPXE_BANNER in text.replace("\n", "")
        assert "one and two" in text
        await vm.keyboard.type("echo typed\n", QUICKLY)
        await vm.screen.wait_for("\ntyped\n", timeout=1)


async def test_grub_loads_a_sector_of_another_disk(tmp_path: Path) -> None:
    """GRUB's chainloader: from the diskette to the boot sector of the hard disk."""
    floppy = third_party.file("usr/lib/grub-rescue/grub-rescue-floppy.img")
    disk = write_disk(tmp_path / "disk.img", "mov ax, 3\n int 0x10\n mov si, name\n call puts\n jmp stop\n name: db 'by GRUB', 0")
    copy = tmp_path / "floppy.img"
    shutil.copy(floppy, copy)
    async with running(floppies=[avmm.Disk(copy)], disks=[avmm.Disk(disk)]) as vm:
        await grub_prompt(vm)
        await vm.keyboard.type("chainloader (hd0)+1\nboot\n", QUICKLY)
        assert await vm.screen.wait_for("by GRUB", timeout=5) == "by GRUB"
    assert copy.read_bytes() == floppy.read_bytes()
