"""Snapshots of an unmodified Linux: it goes on to the same instruction, the same interrupt and the same byte of RAM."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import avmm
from tests.vm.history import Moment, moment
from tests.vm.linux import DISK_MODULES, SHELL, Boot, Shell, ext4

pytestmark = [pytest.mark.linux, pytest.mark.guests, pytest.mark.asyncio]


async def work(vm: avmm.Vm, disk: str) -> Moment:
    vm.serial.write(f"i=0; while [ $i -lt 99 ]; do i=$((i+1)); done; dd if=/dev/urandom of={disk} bs=64k count=8; md5sum {disk}; date\n")
    await vm.sleep(0.05)
    vm.serial.write("cat /proc/interrupts; echo the end\n")
    await vm.serial.wait_for("\nthe end", 30)
    return await moment(vm)


async def test_linux_goes_on_identically(tmp_path: Path) -> None:
    async with avmm.Host() as host:
        image = avmm.Disk(ext4(tmp_path / "disk.img", 4), "overlay")
        vm = await host.create_vm(Boot(tmp_path, modules=DISK_MODULES).config(disks=[image]))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        drive = await shell.drive("0:0:0:0")
        taken = await vm.snapshot()
        first = await work(vm, drive)
        assert b"8+0 records out" in first.serial
        await vm.resume()
        await vm.restore(taken)
        vm.serial.write("echo somewhere else entirely\n")
        await vm.sleep(0.1)
        await vm.restore(taken)
        assert await work(vm, drive) == first
        clone = await host.clone(taken)
        assert await work(clone, drive) == first
        later = await clone.snapshot()  # of a machine that was made from one
        await clone.resume()
        await clone.sleep(0.3)
        after = await moment(clone)
        again = await host.clone(later)
        await again.resume()
        await again.sleep((after.now - later.partition.now + 0.5) / 1e9)
        assert await moment(again) == after


async def test_an_enlightened_linux_goes_on_identically(tmp_path: Path) -> None:
    """Its stock hv_vmbus and hv_storvsc are connected, its clock is a synthetic timer, and a copy is under way when it is taken."""
    async with avmm.Host() as host:
        image = avmm.Disk(ext4(tmp_path / "disk.img", 4), "overlay")
        modules = ("hv_vmbus", "hv_storvsc", "sd_mod", "hyperv-keyboard")
        vm = await host.create_vm(Boot(tmp_path, modules=modules).config(hyperv=True, disks=[image]))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        assert vm.machine.scsi is not None
        await shell.run("until ls /sys/bus/scsi/devices/0:0:0:0/block >/dev/null 2>&1; do sleep 0.05; done")
        assert "Hyper-V" in await shell.run("cat /sys/devices/system/clockevents/clockevent0/current_device")
        vm.serial.write("dd if=/dev/urandom of=/dev/sda bs=64k count=8; sync; md5sum /dev/sda; cat /proc/interrupts; echo the end\n")
        taken = []
        for pause in (0.001, 0.005):
            await vm.sleep(pause)
            while not vm.machine.scsi.in_flight:
                await vm.sleep(0.000_02)
            taken.append(await vm.snapshot())
        await vm.serial.wait_for("\nthe end", 30)
        await vm.sleep(0.1)
        last = await moment(vm)
        assert b"8+0 records out" in last.serial
        for one in taken:
            clone = await host.clone(one, paused=True)
            assert clone.machine.scsi is not None
            assert clone.machine.scsi.ready
            await clone.resume()
            await clone.sleep((last.now - one.partition.now + 0.5) / 1e9)
            assert await moment(clone) == last
            await host.remove_vm(clone)
        # What was written is what is read, past every cache, by a machine that was taken back.
        await vm.restore(taken[-1])
        await vm.resume()
        await vm.serial.wait_for("\nthe end", 30)
        written = next(line for line in last.serial.decode().splitlines() if line.endswith("/dev/sda") and len(line.split()[0]) == 32)
        assert await shell.run("echo 3 >/proc/sys/vm/drop_caches; md5sum /dev/sda") == written


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
async def test_linux_at_any_moment(tmp_path: Path, seed: int) -> None:
    """From power-on through the boot and disk work: whatever moment it is taken at, a clone ends as the uninterrupted run did."""
    choice = random.Random(seed)
    async with avmm.Host() as host:
        image = avmm.Disk(ext4(tmp_path / "disk.img", 4), "overlay")
        config = Boot(tmp_path, init=f"dd if=/dev/urandom of=/dev/sda bs=16k count=32; md5sum /dev/sda\n{SHELL}", modules=DISK_MODULES)
        vm = await host.create_vm(config.config(disks=[image]))
        await vm.start()
        taken = []
        for _ in range(5):
            await vm.sleep(choice.uniform(0.001, 1.2))
            taken.append(await vm.snapshot())
        await vm.sleep(2)
        last = await moment(vm)
        await host.remove_vm(vm)
        for one in taken:
            clone = await host.clone(one, paused=True)
            await clone.resume()
            await clone.sleep((last.now - one.partition.now + 0.5) / 1e9)
            assert await moment(clone) == last
            await host.remove_vm(clone)
