"""Debian's Linux as installed on a disk: its boot loader, its kernel, its own drivers, and the enlightened stack on that same disk (M3, M10)."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest

import avmm
from avmm.devices.block import SECTOR
from tests import third_party
from tests.vm import initrd
from tests.vm.linux import BOOT, COMMAND_LINE, SHELL, Shell, ext4, read_file, tool
from tests.vm.test_bootloaders import run
from tests.vm.test_linux_storvsc import appears, complaints, sums

pytestmark = [pytest.mark.linux, pytest.mark.guests, pytest.mark.asyncio]

HEADS, TRACK = 16, 63
CYLINDER = HEADS * TRACK
BOOT_CYLINDERS, MEGABYTES = 60, 16
FAT16, LINUX, ACTIVE = 0x06, 0x83, 0x80
MODULES = ("ata_piix", "sd_mod", "hv_vmbus", "hv_storvsc")
CONFIG = f"""\
SERIAL 0
DEFAULT linux
LABEL linux
  KERNEL vmlinuz
  INITRD initrd.img
  APPEND {COMMAND_LINE}
"""


def entry(kind: int, first: int, count: int, flag: int = 0) -> bytes:
    """A partition table's entry. The geometry is small enough for CHS addresses to be right."""

    def chs(lba: int) -> bytes:
        cylinder, rest = divmod(lba, CYLINDER)
        return bytes((rest // TRACK, rest % TRACK + 1 | cylinder >> 8 << 6, cylinder & 0xFF))

    return bytes((flag, *chs(first), kind, *chs(first + count - 1))) + struct.pack("<II", first, count)


def installed(folder: Path, path: Path) -> tuple[int, int]:
    """Make a disk of two partitions: FAT with SYSLINUX, kernel and initrd; ext4. Return where the second is, and how long."""
    first, second = TRACK, BOOT_CYLINDERS * CYLINDER
    length = MEGABYTES * (1 << 20) // SECTOR
    total = second + -(-length // CYLINDER) * CYLINDER
    code = third_party.file("usr/lib/syslinux/mbr/mbr.bin").read_bytes().ljust(446, b"\0")
    table = entry(FAT16, first, second - first, ACTIVE) + entry(LINUX, second, length) + bytes(32)
    files = {
        "syslinux.cfg": CONFIG.encode(),
        "vmlinuz": initrd.kernel().read_bytes(),
        "initrd.img": initrd.build(f"rmmod hv_storvsc\n{SHELL}", MODULES),
    }
    with path.open("wb") as disk:
        disk.write(code + table + b"\x55\xaa")
        disk.seek(second * SECTOR)
        disk.write(ext4(folder / "data.img", MEGABYTES).read_bytes())
        disk.truncate(total * SECTOR)
    place = f"{path}@@{first * SECTOR}"
    run("mformat", "-i", place, "-T", str(second - first), "-h", str(HEADS), "-s", str(TRACK), "-H", str(first), "::")
    run("syslinux", "--offset", str(first * SECTOR), "--install", path)
    for name, data in files.items():
        (folder / name).write_bytes(data)
        run("mcopy", "-i", place, folder / name, f"::{name}")
    return second * SECTOR, length * SECTOR


@pytest.mark.parametrize("bios", ["builtin", "seabios"])
async def test_m10_from_the_boot_loader_to_the_enlightened_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bios: str) -> None:
    """The BIOS and SYSLINUX read kernel and initrd from the emulated disk, Linux mounts it, and goes on with it over StorVSP."""
    monkeypatch.setenv("AVMM_FIRMWARE", str(third_party.file("usr/share/seabios/bios.bin").parent))
    disk = tmp_path / "disk.img"
    start, length = installed(tmp_path, disk)
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="192M", bios=bios, hyperv=True, disks=[avmm.Disk(disk)]))
        await vm.start()
        await vm.serial.wait_for("SYSLINUX", BOOT)
        shell = Shell(vm)
        await shell.ready()
        assert vm.machine.scsi is not None
        emulated = await appears(shell, "[0-9]:0:0:0")
        await shell.run(f"mount -t ext4 {emulated}2 /mnt; dd if=/dev/urandom of=/mnt/emulated bs=16k count=20 conv=fsync")
        before = await sums(shell, "/mnt/emulated")
        await shell.run("umount /mnt; insmod /modules/hv_storvsc.ko")
        requests = vm.machine.scsi.stats.requests
        others = f"ls /sys/block | grep '^sd' | grep -v {emulated[5:]}"
        enlightened = "/dev/" + await shell.run(f"until {others} >/dev/null; do sleep 0.05; done; {others}")
        await shell.run(f"mount -t ext4 {enlightened}2 /mnt")
        assert await sums(shell, "/mnt/emulated") == before
        await shell.run("dd if=/dev/urandom of=/mnt/enlightened bs=64k count=30 conv=fsync")
        after = await sums(shell, "/mnt/enlightened")
        assert vm.machine.scsi.stats.requests > requests + 20
        await shell.run("umount /mnt")
        assert complaints(await shell.run("dmesg")) == []
        vm.serial.write("poweroff -f\n")
        assert await vm.wait_off(BOOT) == "the guest entered ACPI S5"
    data = tmp_path / "after.img"
    data.write_bytes(disk.read_bytes()[start : start + length])
    tool("e2fsck", "-f", "-n", str(data))
    assert [hashlib.sha256(read_file(data, name)).hexdigest() for name in ("/emulated", "/enlightened")] == before + after
