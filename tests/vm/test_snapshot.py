"""Snapshots of whole machines: what is restored, or cloned, goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import avmm
import guests
from tests.vm.history import Moment, goes_on_from_each, moment

pytestmark = pytest.mark.asyncio

COMMANDS = ("dir\n", "sum pattern.txt\n", "write note hello\n", "read note\n", "disk dma\n", "sum bytes.bin\n", "bench disk\n", "time\n")


SIZE = Path(guests.image()).stat().st_size


def image_in(folder: Path) -> Path:
    return Path(shutil.copy(guests.image(), folder / "guest.img"))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def disk() -> avmm.Disk:
    return avmm.Disk(guests.image(), "overlay")


@pytest_asyncio.fixture
async def host() -> AsyncIterator[avmm.Host]:
    async with avmm.Host() as host:
        yield host


async def booted(host: avmm.Host, disk: avmm.Disk, **fields: object) -> avmm.Vm:
    vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[disk], **fields))  # type: ignore[arg-type]
    await vm.start()
    await vm.screen.wait_for("ok>")
    return vm


async def session(vm: avmm.Vm) -> Moment:
    """Work with the disk both ways, the keyboard, the clock and the screen."""
    for command in COMMANDS[:6]:
        await vm.keyboard.type(command)
        await vm.sleep(0.1)
    return await moment(vm)


async def test_a_restored_machine_and_a_clone_go_on_as_if_nothing_had_happened(host: avmm.Host, disk: avmm.Disk) -> None:
    vm = await booted(host, disk)
    taken = await vm.snapshot()
    first = await session(vm)
    assert b"hello" in first.serial
    await vm.restore(taken)
    assert (await moment(vm)).now == taken.partition.now
    await vm.resume()
    assert await session(vm) == first
    clone = await host.clone(taken)
    assert clone.name == "vm-1"
    assert await session(clone) == first


@pytest.mark.parametrize("seed", range(6))
async def test_at_any_moment(host: avmm.Host, disk: avmm.Disk, seed: int) -> None:
    """A snapshot in the middle of disk work, of a key, of an interrupt: the uninterrupted run and the restored ones end alike."""
    choice = random.Random(seed)
    typed = "".join(choice.sample(COMMANDS, 4))
    pauses = [choice.uniform(0.0001, 0.05) for _ in range(4)]
    await goes_on_from_each(host, await (await booted(host, disk)).snapshot(), typed, pauses)


async def test_overlays_belong_to_it(host: avmm.Host, disk: avmm.Disk, tmp_path: Path) -> None:
    image = image_in(tmp_path)
    before = digest(image)
    vm = await booted(host, avmm.Disk(image, "overlay", tmp_path / "changes"))
    await vm.keyboard.type("write one 1\n")
    await vm.sleep(0.5)
    taken = await vm.snapshot()
    await vm.keyboard.type("write two 2\n")
    await vm.sleep(0.5)
    clone = await host.clone(taken)
    await vm.restore(taken)
    for machine in (vm, clone):
        await machine.keyboard.type("dir\n")
        text = await machine.screen.wait_for(lambda text: "files" in text)
        assert "one" in text
        assert "two" not in text
    await host.remove_vm(vm)
    assert digest(image) == before
    again = await booted(host, avmm.Disk(image, "overlay", tmp_path / "changes"))  # a permanent overlay was put back on disk too
    await again.keyboard.type("dir\n")
    assert "two" not in await again.screen.wait_for("files")


async def test_after_a_failure_and_after_power_off(host: avmm.Host, disk: avmm.Disk) -> None:
    vm = await booted(host, disk)
    taken = await vm.snapshot()
    await vm.keyboard.type("halt\n")
    await vm.wait_off(5)
    with pytest.raises(avmm.SnapshotError, match="there is nothing to save of vm: it is off"):
        await vm.snapshot()
    await vm.restore(taken)
    assert vm.state is avmm.RunState.RUNNING
    vm.partition.fail(RuntimeError("a bug"))
    with pytest.raises(avmm.GuestFailure, match="a bug"):
        await vm.wait_off()
    await vm.restore(taken)
    await vm.keyboard.type("echo alive\n")
    await vm.screen.wait_for("\nalive")


async def test_a_paused_machine_stays_paused(host: avmm.Host, disk: avmm.Disk) -> None:
    vm = await booted(host, disk)
    await vm.pause()
    taken = await vm.snapshot()
    assert vm.state is avmm.RunState.PAUSED
    await vm.resume()
    await vm.sleep(1)
    await vm.pause()
    await vm.restore(taken)
    assert vm.state is avmm.RunState.PAUSED
    assert vm.now == taken.now


async def test_real_time(host: avmm.Host, disk: avmm.Disk) -> None:
    """In real time it is the same machine at the same machine time, which then follows the host again."""
    vm = await booted(host, disk, clock="real")
    taken = await vm.snapshot()
    await vm.sleep(0.02)
    await vm.pause()
    await vm.restore(taken)
    assert vm.now == taken.now
    await vm.resume()
    await vm.keyboard.type("echo alive\n")
    await vm.screen.wait_for("\nalive")


async def test_what_cannot_be_saved_is_refused_in_one_sentence(host: avmm.Host, disk: avmm.Disk, tmp_path: Path) -> None:
    image = image_in(tmp_path)
    vm = await booted(host, avmm.Disk(image), name="inplace")
    with pytest.raises(avmm.SnapshotError, match=r"guest.img is written in place, and cannot be brought back: give it to inplace with an"):
        await vm.snapshot()
    assert vm.state is avmm.RunState.RUNNING
    off = await host.create_vm(avmm.VmConfig(name="off", memory="16M", disks=[disk]))
    with pytest.raises(avmm.SnapshotError, match="there is nothing to save of off: it was not started"):
        await off.snapshot()

    physical = await booted(host, disk, name="hardware", physical=["ata0"])
    for switch in (physical.virtualize, physical.devirtualize):
        assert (await switch("ata0")).done
        with pytest.raises(avmm.SnapshotError, match="a physical device, ata0, which cannot be brought back: leave it out of `physical`"):
            await physical.snapshot()

    async def guest(cpu: avmm.ScriptCpu) -> None:
        await cpu.hlt()

    scripted = await host.create_vm(avmm.VmConfig(name="script", memory="1M"), guest)
    await scripted.start()
    with pytest.raises(avmm.SnapshotError, match="a guest written in Python keeps its state in a coroutine"):
        await scripted.snapshot()


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another image of the same size."""
    path = tmp_path / "other.img"
    path.write_bytes(bytes(SIZE))
    return path


async def test_another_machine_is_refused_in_one_sentence(host: avmm.Host, disk: avmm.Disk, other: Path) -> None:
    taken = await (await booted(host, disk)).snapshot()
    for number, (fields, sentence) in enumerate((
        ({"memory": "32M", "disks": [disk]}, "the snapshot is of a machine with 16M of memory, and vm1 has 32M"),
        ({"memory": "16M"}, "the snapshot needs disk0 .*avmm-guest.img., which vm2 does not have"),
        ({"memory": "16M", "disks": [avmm.Disk(other, "overlay")]}, "other.img is not what disk0 of the snapshot was"),
        ({"memory": "16M", "disks": [avmm.Disk(guests.image(), "ro")]}, "both have an overlay, or both are read-only"),
        ({"memory": "16M", "disks": [disk, avmm.Disk(other, "ro")]}, "vm5 has disk1 .*, which the machine of the snapshot did not have"),
        ({"memory": "16M", "disks": [disk], "clock": "real"}, "the state is of a machine in virtual time, and this one is in real time"),
        ({"memory": "16M", "disks": [disk], "hyperv": True}, "this one has guest-port, hyperv, synthetic-video, vmbus besides"),
    ), 1):  # fmt: skip
        vm = await host.create_vm(avmm.VmConfig(name=f"vm{number}", **fields))  # type: ignore[arg-type]
        with pytest.raises(avmm.SnapshotError, match=sentence):
            await vm.restore(taken)
        assert vm.state is avmm.RunState.CREATED, "it is as it was"


async def test_with_guests_in_threads(disk: avmm.Disk) -> None:
    async with avmm.Host(threads=2) as host:
        taken = await (await booted(host, disk)).snapshot()
        clones = [await host.clone(taken, paused=True) for _ in range(3)]

        async def go(clone: avmm.Vm) -> Moment:
            await clone.resume()
            return await session(clone)

        first, *others = await asyncio.gather(*(go(clone) for clone in clones))
        assert others == [first, first]


async def test_an_enlightened_machine_whose_guest_is_not_connected(host: avmm.Host, disk: avmm.Disk) -> None:
    """Also from when it was connected afterwards."""
    vm = await booted(host, disk, hyperv=True)
    taken = await vm.snapshot()
    first = await session(vm)
    await vm.resume()
    await vm.set_mode("enlightened")
    await vm.restore(taken)
    assert await session(vm) == first
