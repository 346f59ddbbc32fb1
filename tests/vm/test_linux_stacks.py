"""Debian's unmodified Linux with both of its stacks on one disk: the emulated controller by each of its drivers, then StorVSP."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from pathlib import Path

import pytest

import avmm
from tests import third_party
from tests.vm.linux import BOOT, PROMPT, SHELL, Boot, Shell, ext4, read_file, tool
from tests.vm.test_linux_storvsc import MODULES, appears, complaints, fails, sums

pytestmark = [pytest.mark.linux, pytest.mark.guests]

MIB = 1 << 20
PATIENCE = 300  # s of the host's time, far more than it takes


@pytest.mark.asyncio
@pytest.mark.parametrize(("driver", "options", "ide"), [("ata_piix", "", False), ("pata_legacy", "all=1", True)])
async def test_m10_from_the_emulated_stack_to_the_enlightened_one(tmp_path: Path, driver: str, options: str, ide: bool) -> None:
    """Linux starts from the emulated disk, loads the enlightened stack, goes on with the same filesystem there, and back. With ``ide`` it
    finds an accelerator beside the drive, and an empty SCSI controller.
    """
    disk = ext4(tmp_path / "disk.img", 16)
    boot = Boot(tmp_path, modules=(driver, *MODULES), parameters={driver: options}, init=f"rmmod hv_storvsc\n{SHELL}")
    async with avmm.Host() as host:
        vm = await host.create_vm(boot.config(hyperv=True, hyperv_ide=ide, disks=[avmm.Disk(disk)]))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        server = vm.machine.accelerators[0] if ide else vm.machine.scsi
        assert server is not None
        emulated = await shell.drive("[0-9]:0:0:0")
        await shell.run(f"mount -t ext4 {emulated} /mnt; mkdir /mnt/root; cp /bin/busybox /mnt/root/; seq 1 5000 >/mnt/root/numbers")
        # What runs from now on comes from the emulated disk.
        await shell.run("cp -a /dev/null /mnt/root/; chroot /mnt/root /busybox sha256sum numbers >/tmp/sum")
        before = server.stats.requests
        await shell.run("umount /mnt; insmod /modules/hv_storvsc.ko")
        others = f"ls /sys/block | grep '^sd' | grep -v {emulated[5:]}"
        enlightened = "/dev/" + await shell.run(f"until {others} >/dev/null; do sleep 0.05; done; {others}")
        await shell.run(f"mount -t ext4 {enlightened} /mnt; dd if=/dev/urandom of=/mnt/root/random bs=64k count=30 conv=fsync")
        assert await shell.run("chroot /mnt/root /busybox sha256sum numbers | cmp - /tmp/sum && echo same") == "same"
        assert server.stats.requests > before + 20
        (random_sum,) = await sums(shell, "/mnt/root/random")
        await shell.run(f"umount /mnt; blockdev --flushbufs {emulated}; mount -t ext4 -o ro {emulated} /mnt")
        assert await sums(shell, "/mnt/root/random") == [random_sum]
        await shell.run("umount /mnt")
        assert complaints(await shell.run("dmesg")) == []
        vm.serial.write("poweroff -f\n")
        assert await vm.wait_off(BOOT) == "the guest entered ACPI S5"
        assert vm.machine.vmbus is not None
        assert not vm.machine.vmbus.connected, "it unloaded VMBus when it went off"
    tool("e2fsck", "-f", "-n", str(disk))
    assert hashlib.sha256(read_file(disk, "/root/random")).hexdigest() == random_sum


@pytest.mark.asyncio
@pytest.mark.parametrize("megabytes", [24, pytest.param(1024, marks=pytest.mark.long)])
async def test_much_is_written_and_read_back(tmp_path: Path, megabytes: int) -> None:
    source, disk = tmp_path / "source.img", ext4(tmp_path / "disk.img", megabytes + megabytes // 8 + 16)
    chance = random.Random(megabytes)
    total = hashlib.md5(usedforsecurity=False)
    with source.open("wb") as file:
        for _ in range(megabytes):
            block = chance.randbytes(MIB)
            total.update(block)
            file.write(block)
    async with avmm.Host() as host:
        vm = await host.create_vm(Boot(tmp_path, modules=MODULES).config(hyperv=True, disks=[avmm.Disk(source, "ro"), avmm.Disk(disk)]))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        raw, drive = await appears(shell, "0:0:0:0"), await appears(shell, "0:0:0:1")
        limit = 60 + megabytes  # s of machine time
        await shell.run(f"mount -t ext4 {drive} /mnt; dd if={raw} of=/mnt/all bs=1M conv=fsync", limit)
        await shell.run("echo 3 >/proc/sys/vm/drop_caches")
        assert (await shell.run("md5sum /mnt/all", limit)).split()[0] == total.hexdigest()
        await shell.run("umount /mnt")
        # A disk that is only read: the guest knows, and a program that writes is told.
        assert await shell.run(f"blockdev --getro {raw}") == "1"
        assert "Read-only file system" in await fails(shell, f"dd if=/dev/zero of={raw} bs=4k count=1 conv=fsync,notrunc")
        assert complaints(await shell.run("dmesg")) == []
        vm.serial.write("poweroff -f\n")
        assert await vm.wait_off(BOOT) == "the guest entered ACPI S5"
    tool("e2fsck", "-f", "-n", str(disk))
    whole = hashlib.md5(read_file(disk, "/all"), usedforsecurity=False)
    assert whole.hexdigest() == total.hexdigest()


@pytest.mark.asyncio
@pytest.mark.parametrize(("stack", "second"), [("emulated", "0:0:1:0"), ("enlightened", "0:0:0:1")])
async def test_in_real_time_the_data_are_the_same(tmp_path: Path, stack: str, second: str) -> None:
    """Where sectors go straight between page cache and guest memory, or through threads: several programs at a time, in no order."""
    source, disk = tmp_path / "source.img", ext4(tmp_path / "disk.img", 40)
    source.write_bytes(random.Random(9).randbytes(16 * MIB))
    modules = ("ata_piix", "sd_mod") if stack == "emulated" else MODULES
    async with avmm.Host() as host:
        disks = [avmm.Disk(source), avmm.Disk(disk)]
        vm = await host.create_vm(Boot(tmp_path, modules=modules).config(hyperv=stack == "enlightened", disks=disks, clock="real"))
        await vm.start()
        await vm.serial.wait_for(PROMPT, PATIENCE)
        shell = Shell(vm)
        raw, drive = await appears(shell, "0:0:0:0"), await appears(shell, second)
        part = f"dd if={raw} of=/mnt/$i bs=64k skip=$((i*64)) count=64"
        await shell.run(f"mount -t ext4 {drive} /mnt && for i in 0 1 2 3; do {part} & done; wait", PATIENCE)
        await shell.run("sync; echo 3 >/proc/sys/vm/drop_caches", PATIENCE)
        # Back to where it came from, each part in another's place, by small requests, and read again.
        back = f"dd if=/mnt/$i of={raw} bs=4k seek=$(((3-i)*1024)) conv=fsync,notrunc"
        await shell.run(f"for i in 0 1 2 3; do {back} & done; wait; echo 3 >/proc/sys/vm/drop_caches", PATIENCE)
        total = (await shell.run(f"sha256sum {raw}; umount /mnt", PATIENCE)).split()[0]
        assert [line for line in complaints(await shell.run("dmesg", PATIENCE)) if "sd" in line or "ata" in line or "hv_" in line] == []
        vm.serial.write("poweroff -f\n")
        assert await vm.wait_off(PATIENCE) == "the guest entered ACPI S5"
    tool("e2fsck", "-f", "-n", str(disk))
    data = random.Random(9).randbytes(16 * MIB)
    parts = [data[at : at + 4 * MIB] for at in range(0, len(data), 4 * MIB)]
    assert [read_file(disk, f"/{number}") for number in range(4)] == parts
    assert source.read_bytes() == b"".join(reversed(parts))
    assert hashlib.sha256(source.read_bytes()).hexdigest() == total


KILLED = """
import asyncio, sys
from pathlib import Path
import avmm
from tests.vm.linux import Boot, Shell
from tests.vm.test_linux_storvsc import MODULES, appears, sums

async def main(folder):
    async with avmm.Host() as host:
        vm = await host.create_vm(Boot(folder, modules=MODULES).config(hyperv=True, disks=[avmm.Disk(folder / "disk.img")]))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        await shell.run(f"mount -t ext4 {await appears(shell, '0:0:0:0')} /mnt")
        await shell.run("dd if=/dev/urandom of=/mnt/synced bs=4k count=300 conv=fsync")
        print("ACKNOWLEDGED", *(await sums(shell, "/mnt/synced")), flush=True)
        await shell.run("while true; do dd if=/dev/urandom of=/mnt/lost bs=4k count=50; done")

asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_killed_vmm_leaves_the_synced_file_in_a_filesystem_that_mends_itself(tmp_path: Path) -> None:
    disk = ext4(tmp_path / "disk.img", 16)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=third_party.ROOT, text=True) as child:
        assert child.stdout is not None
        word, total = child.stdout.readline().split()
        child.kill()
    assert word == "ACKNOWLEDGED"
    replayed = subprocess.run(
        [third_party.tool("e2fsck"), "-p", str(disk)], env=third_party.tool_environment(), capture_output=True, text=True, check=False
    )
    assert replayed.returncode in (0, 1), replayed.stdout
    tool("e2fsck", "-f", "-n", str(disk))
    assert hashlib.sha256(read_file(disk, "/synced")).hexdigest() == total
