"""Debian's unmodified Linux on StorVSP: its stock hv_vmbus and hv_storvsc modules find the disks, use them, lose them."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import sys
from pathlib import Path

import pytest

import avmm
from avmm.control.request_trace import trace_requests
from avmm.devices.block import BlockFault
from avmm.storage.controller import ScsiController
from avmm.storage.scsi_disk import ScsiDisk
from avmm.storage.wire import Version
from tests import third_party
from tests.storage.guest import INSTANCE
from tests.vm.linux import BOOT, Boot, Shell, ext4, read_file, tool, trouble

pytestmark = [pytest.mark.linux, pytest.mark.guests, pytest.mark.asyncio]

MODULES = ("hv_vmbus", "hv_storvsc", "sd_mod")
LOAD = "insmod /modules/hv_storvsc.ko"
COMPLAINT = re.compile(r"storvsc.*(tag#|status|fail|error)|hv_vmbus.*(fail|error|invalid)|sd .*(FAILED|Sense Key)")


def complaints(log: str) -> list[str]:
    """Return what the kernel, or one of the drivers in question, says is wrong. It says the one about the TSC on any Hyper-V."""
    said = trouble(log) + [line for line in log.splitlines() if COMPLAINT.search(line)]
    return [line for line in said if not line.endswith("tsc: Marking TSC unstable due to running on Hyper-V")]


def image(path: Path, megabytes: int, seed: int) -> Path:
    path.write_bytes(random.Random(seed).randbytes(megabytes << 20))
    return path


async def appears(shell: Shell, place: str) -> str:
    """Wait for the disk at a SCSI address (``*`` for any host) and return its device file."""
    await shell.run(f"until ls /sys/bus/scsi/devices/{place}/block >/dev/null 2>&1; do sleep 0.05; done")
    return "/dev/" + await shell.run(f"ls /sys/bus/scsi/devices/{place}/block")


async def vanishes(shell: Shell, place: str) -> None:
    await shell.run(f"while ls -d /sys/bus/scsi/devices/{place} >/dev/null 2>&1; do sleep 0.05; done")


async def sums(shell: Shell, *paths: str) -> list[str]:
    return [line.split()[0] for line in (await shell.run(f"sha256sum {' '.join(paths)}")).splitlines()]


async def fails(shell: Shell, command: str) -> str:
    return await shell.run(f"! {command} 2>&1")


async def follow(shell: Shell, drive: str, path: str, *hops: str) -> None:
    """Trace a read of a drive, and require these hops in this order."""
    await shell.run("echo 3 >/proc/sys/vm/drop_caches")
    tracing = asyncio.create_task(trace_requests(shell.vm, 1, "read", BOOT))
    await asyncio.sleep(0)
    await shell.run(f"dd if={drive} of=/dev/null bs=4k skip=700 count=2")
    (trace,) = await tracing
    assert (trace.path, trace.error) == (path, "")
    assert trace.id
    rest = iter([hop.what for hop in trace.hops])
    assert all(any(what.startswith(hop) for what in rest) for hop in hops), [hop.what for hop in trace.hops]


def sum_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_disks_are_used_and_shared_with_the_emulated_controller(tmp_path: Path) -> None:
    filesystem, raw = ext4(tmp_path / "ext4.img", 24), image(tmp_path / "raw.img", 8, 1)
    before = raw.read_bytes()
    boot = Boot(tmp_path, modules=(*MODULES, "ata_piix"))
    async with avmm.Host() as host:
        vm = await host.create_vm(boot.config(hyperv=True, disks=[avmm.Disk(filesystem), avmm.Disk(raw)]))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        assert vm.machine.scsi is not None
        assert vm.machine.scsi.protocol_version == Version.WIN10
        first, second = await appears(shell, "0:0:0:0"), await appears(shell, "0:0:0:1")
        assert await shell.run("cat /sys/bus/scsi/devices/0:0:0:*/vendor | sort -u") == "AVMM"
        assert await shell.run(f"cat /sys/class/block/{first[5:]}/queue/rotational") == "0"
        assert (await sums(shell, second)) == [sum_of(before)]

        # A filesystem, by way of StorVSP.
        await shell.run(f"mount -t ext4 {first} /mnt")
        await shell.run("dd if=/dev/urandom of=/mnt/random bs=64k count=40 && seq 1 20000 >/mnt/numbers")
        written = await sums(shell, "/mnt/random", "/mnt/numbers")

        # What the filesystem uses no more, the host has back (UNMAP).
        await shell.run("dd if=/dev/urandom of=/mnt/gone bs=64k count=64; sync")
        full = filesystem.stat().st_blocks
        await shell.run("rm /mnt/gone; sync; fstrim /mnt")
        assert (full - filesystem.stat().st_blocks) * 512 > 3 << 20
        await shell.run("umount /mnt")

        # An acknowledged fsync is a flush of the file, which has the data then.
        flushes = vm.machine.disks[1].stats.flushes
        await shell.run(f"dd if={first} of={second} bs=4k seek=3 skip=9 count=7 conv=fsync,notrunc")
        assert vm.machine.disks[1].stats.flushes > flushes
        expected = before[: 3 << 12] + filesystem.read_bytes()[9 << 12 : 16 << 12] + before[10 << 12 :]
        assert raw.read_bytes() == expected

        # The way of a request can be followed in a guest that tells nothing of itself, too.
        await follow(shell, second, "enlightened", "hypercall", "the packet is taken", "file:", "the completion is in the ring")

        # The driver goes and comes back, twice; what was written is still there.
        for cycle in range(2):
            await shell.run("rmmod hv_storvsc")
            assert await shell.run("grep -l AVMM /sys/bus/scsi/devices/*/vendor || true") == ""
            assert not vm.machine.scsi.ready
            await shell.run(LOAD)
            again = await appears(shell, "0:0:0:0")
            await shell.run(f"mount -t ext4 {again} /mnt")
            assert await sums(shell, "/mnt/random", "/mnt/numbers") == written, cycle
            await shell.run(f"echo cycle {cycle} >/mnt/cycle{cycle}; umount /mnt")

        # The same disk behind the emulated controller, and back.
        emulated = await appears(shell, "1:0:0:0")
        assert emulated != again
        await shell.run(f"mount -t ext4 {emulated} /mnt")
        assert await sums(shell, "/mnt/random", "/mnt/numbers") == written
        await shell.run("dd if=/dev/urandom of=/mnt/emulated bs=64k count=10")
        [by_ide] = await sums(shell, "/mnt/emulated")
        await follow(shell, emulated, "dma", "OUT 1F7h traps", "file:", "IRQ 14", "IN")
        await shell.run(f"umount /mnt; blockdev --flushbufs {again}")
        await shell.run(f"mount -t ext4 -o ro {again} /mnt")
        assert await sums(shell, "/mnt/emulated") == [by_ide]
        await shell.run("umount /mnt")
        assert complaints(await shell.run("dmesg")) == []
        stats = vm.machine.scsi.stats
        assert stats.errors == 0
        assert stats.bytes_written > 40 << 16
        vm.serial.write("poweroff -f\n")
        assert await vm.wait_off(BOOT) == "the guest entered ACPI S5"
    tool("e2fsck", "-f", "-n", str(filesystem))
    assert [sum_of(read_file(filesystem, name)) for name in ("/random", "/numbers", "/emulated")] == [*written, by_ide]
    assert read_file(filesystem, "/cycle1") == b"cycle 1\n"


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
        disk = await appears(shell, "0:0:0:0")
        await shell.run("dd if=/dev/urandom of=/tmp/data bs=4k count=200")
        await shell.run(f"dd if=/tmp/data of={disk} bs=4k seek=5 conv=fsync,notrunc")
        print("ACKNOWLEDGED", *(await sums(shell, "/tmp/data")), flush=True)
        await shell.run(f"while true; do dd if={disk} of=/dev/null bs=4k; done")

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_a_killed_vmm_leaves_what_was_synced(tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.img", 2, 6)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(tmp_path), stdout=asyncio.subprocess.PIPE, cwd=third_party.ROOT
    )
    try:
        assert child.stdout is not None
        word, total = (await asyncio.wait_for(child.stdout.readline(), 120)).decode().split()
    finally:
        child.kill()
        await child.communicate()
    assert word == "ACKNOWLEDGED"
    assert sum_of(disk.read_bytes()[5 << 12 : 205 << 12]) == total


async def test_luns_and_channels_come_and_go_and_errors_are_told(tmp_path: Path) -> None:
    base, extra, other = image(tmp_path / "base.img", 4, 3), ext4(tmp_path / "extra.img", 8), ext4(tmp_path / "other.img", 8)
    boot = Boot(tmp_path, modules=MODULES)
    async with avmm.Host() as host:
        vm = await host.create_vm(boot.config(hyperv=True, disks=[avmm.Disk(base)]))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        scsi, vmbus = vm.machine.scsi, vm.machine.vmbus
        assert scsi is not None
        assert vmbus is not None
        disk = await appears(shell, "0:0:0:0")

        # A LUN is plugged in, used, pulled out, and plugged in again.
        lun = await vm.attach_disk(avmm.Disk(extra))
        assert lun == 1
        added = await appears(shell, "0:0:0:1")
        await shell.run(f"mount -t ext4 {added} /mnt; dd if=/dev/urandom of=/mnt/file bs=4k count=100; sha256sum /mnt/file >/mnt/sum")
        await shell.run("umount /mnt")
        assert complaints(await shell.run("dmesg -c")) == []
        await vm.detach_disk(lun)
        await vanishes(shell, "0:0:0:1")
        # Linux asks a disk that has gone for a last flush, and says so.
        unsaid = re.compile(r"cmd 0x(0|35) status|Synchroniz.* [cC]ache|Sense Key : Illegal Request")
        assert [line for line in complaints(await shell.run("dmesg -c")) if not unsaid.search(line)] == []
        tool("e2fsck", "-f", "-n", str(extra))
        data = read_file(extra, "/file")
        assert read_file(extra, "/sum").split()[0].decode() == sum_of(data)
        assert await vm.attach_disk(avmm.Disk(extra)) == 1
        again = await appears(shell, "0:0:0:1")
        await shell.run(f"mount -t ext4 {again} /mnt && sha256sum -c /mnt/sum")
        assert complaints(await shell.run("dmesg -c")) == []

        # A whole controller more, and gone, while the other one is in use.
        opened = await host.service.open_disk("other", other)
        second = ScsiController(INSTANCE, [ScsiDisk(opened, "OTHER")], name="scsi2")
        vmbus.offer(second)
        more = await appears(shell, "1:0:0:0")
        await shell.run(f"mkdir /tmp/other; mount -t ext4 {more} /tmp/other; echo there >/tmp/other/hello; umount /tmp/other")
        await shell.run("{ while [ ! -e /tmp/stop ]; do dd if=/dev/urandom of=/mnt/busy bs=16k count=20 conv=fsync; done 2>/dev/null & }")
        gone = second.remove_lun(0)
        await vanishes(shell, "1:0:0:0")
        await shell.run("sleep 2")  # it looks for others on that controller; see below
        vmbus.rescind(second)
        await vanishes(shell, "host1")
        assert vmbus.channel(second) is None
        await shell.run("touch /tmp/stop; wait; sha256sum -c /mnt/sum")
        assert read_file(other, "/hello") == b"there\n"
        second.add_lun(gone)
        vmbus.offer(second)
        back = await appears(shell, "1:0:0:0")
        assert await shell.run(f"umount /mnt; mount -t ext4 {back} /mnt; cat /mnt/hello; umount /mnt") == "there"

        # What the medium says is what the application gets.
        scsi.luns[0, 0, 0].inject = lambda op, lba, count: BlockFault.MEDIUM if op == "read" and lba <= 800 < lba + count else None
        assert "Input/output error" in await fails(shell, f"dd if={disk} of=/dev/null bs=4k skip=100 count=1")
        await shell.run(f"dd if={disk} of=/dev/null bs=4k skip=200 count=1")
        for op in ("write", "flush"):
            scsi.luns[0, 0, 0].inject = lambda what, lba, count, op=op: BlockFault.MEDIUM if what == op else None
            assert "Input/output error" in await fails(shell, f"dd if=/dev/zero of={disk} bs=4k seek=300 count=1 conv=fsync,notrunc")
        scsi.luns[0, 0, 0].inject = None
        log = await shell.run("dmesg")
        assert re.search(rf"critical medium error, dev {disk[5:]}, sector 8\d\d op 0x0:\(READ\)", log)
        assert re.search(rf"I/O error, dev {disk[5:]}, sector 2400 op 0x1:\(WRITE\)", log)
        assert not re.search(r"Call Trace|BUG:|WARNING:|timed out", log)

        # A controller that is pulled out with its disk. Linux 6.1 marks the channel as rescinded, and then lets the disk's driver flush
        # the cache: its own ring refuses the packet (hv_ringbuffer_write), storvsc neither ends the command nor lets it time out, and the
        # worker waits for ever. Nothing comes to us that could be answered. The other controller goes on.
        assert vmbus.channel(second) is not None
        requests = second.stats.requests
        vmbus.rescind(second)
        await shell.run("sleep 2; echo w >/proc/sysrq-trigger")
        blocked = await shell.run("dmesg")
        stack = blocked[blocked.index("Show Blocked State") :]
        assert re.findall(r"(sd_sync_cache|storvsc_remove|vmbus_onoffer_rescind)\+", stack) == [
            "sd_sync_cache", "storvsc_remove", "vmbus_onoffer_rescind",
        ]  # fmt: skip
        assert (vmbus.channel(second), second.stats.requests) == (None, requests)
        await shell.run(f"dd if=/dev/zero of={disk} bs=4k seek=300 count=1 conv=fsync,notrunc; mount -t ext4 {again} /mnt")
        await shell.run("sha256sum -c /mnt/sum; umount /mnt")
    tool("e2fsck", "-f", "-n", str(extra))
