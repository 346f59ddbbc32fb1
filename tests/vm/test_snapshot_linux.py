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
