"""Snapshots of a machine whose guest is connected to VMBus: requests on the way, signals, messages and timers are in them."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import avmm
import guests
from avmm.hypervisor.hyperv.hyperv import HyperV
from avmm.storage.controller import ScsiController, ScsiState
from avmm.vmbus import bus
from avmm.vmbus.bus import VmBus
from avmm.vmbus.client import GuestClient
from tests.vm.history import goes_on_from_each, moment
from tests.vmbus.rig import Recorder

pytestmark = pytest.mark.asyncio

WORK = ("sum pattern.txt\n", "write note hello\n", "read note\n", "bench disk\n", "sum bytes.bin\n", "dir\n", "write other text\n", "time\n")

OTHER_PROCESS = """
import asyncio, sys, avmm
from tests.vm.history import goes_on_from_each, moment

async def main(path):
    async with avmm.Host() as host:
        vm = await host.clone(await avmm.Snapshot.load(path), paused=True)
        await vm.resume()
        await vm.sleep(1)
        print(repr(await moment(vm)))

asyncio.run(main(sys.argv[1]))
"""


@pytest_asyncio.fixture
async def host() -> AsyncIterator[avmm.Host]:
    async with avmm.Host() as host:
        yield host


async def enlightened(host: avmm.Host, **fields: Any) -> avmm.Vm:
    """Return a machine whose guest has its disk, keyboard and monitor over VMBus as far as it has drivers."""
    disk = avmm.Disk(guests.image(), "overlay")
    vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[disk], hyperv=True, **fields))
    await vm.start()
    await vm.screen.wait_for("ok>")
    await vm.set_mode("enlightened")
    return vm


def parts(vm: avmm.Vm) -> tuple[VmBus, ScsiController]:
    vmbus, scsi = vm.machine.vmbus, vm.machine.scsi
    assert vmbus is not None
    assert scsi is not None
    return vmbus, scsi


def rung(taken: avmm.Snapshot) -> bool:
    """Whether the guest had signalled, and nobody had looked yet."""
    return any(one.rung for one in of(taken, "vmbus").open)


def in_flight(taken: avmm.Snapshot) -> int:
    """How many requests had gone to the disk and were not completed."""
    return sum(len(one.server.in_flight) for one in of(taken, "vmbus").open if isinstance(one.server, ScsiState))


def of(taken: avmm.Snapshot, name: str) -> Any:
    return next(device.state for device in taken.partition.devices if device.name == name)


@pytest.mark.parametrize("seed", range(4))
async def test_at_any_moment(host: avmm.Host, seed: int) -> None:
    """The uninterrupted run, the one with a snapshot in it and the clone of that end alike, to the byte."""
    choice = random.Random(seed)
    typed = "".join(choice.sample(WORK, 5))
    pauses = [choice.uniform(0.0001, 0.03) for _ in range(4)]
    vm = await enlightened(host)
    whole = await goes_on_from_each(host, await vm.snapshot(), typed, pauses)
    assert parts(whole)[1].stats.requests


async def found(vm: avmm.Vm, wanted: Callable[[avmm.Snapshot], bool]) -> avmm.Snapshot:
    """Let a machine work on in small steps until a snapshot of it has what is wanted."""
    for _ in range(3000):
        await vm.sleep(0.000_001_7)
        taken = await vm.snapshot()
        if wanted(taken):
            return taken
    raise AssertionError("there was no such moment")


@pytest.mark.parametrize("wanted", [in_flight, rung])
async def test_what_is_on_the_way_arrives(host: avmm.Host, wanted: Callable[[avmm.Snapshot], bool]) -> None:
    """A request at the disk is completed once, with the data of then; a signal that nobody has seen yet is seen."""
    vm = await enlightened(host)
    vm.keyboard.feed("write note hello\nread note\nsum pattern.txt\n")
    await vm.sleep(0.002)
    taken = await found(vm, wanted)
    await vm.sleep(0.5)
    first = await moment(vm)
    assert b"as written" in first.serial
    await vm.restore(taken)
    clone = await host.clone(taken, paused=True)
    for again in (vm, clone):
        await again.resume()
        await again.sleep((first.now - taken.partition.now + 0.5) / 1e9)
        assert await moment(again) == first


async def test_a_file_goes_on_in_another_process(host: avmm.Host, tmp_path: Path) -> None:
    vm = await enlightened(host)
    vm.keyboard.feed("write x kept\nread x\nsum pattern.txt\n")
    await vm.sleep(0.002)
    taken = await found(vm, lambda taken: in_flight(taken) > 0)
    path = tmp_path / "guest.avmmsnap"
    await taken.save(path)
    await vm.pause()
    await vm.restore(taken)
    await vm.resume()
    await vm.sleep(1)
    expected = await moment(vm)
    assert b"kept" in expected.serial
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", OTHER_PROCESS, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == repr(expected), done.stderr


async def test_back_to_a_connection_and_back_to_none(host: avmm.Host) -> None:
    """Whatever the guest has done with the bus since, also after power off, the connection is the one of the snapshot."""
    disk = avmm.Disk(guests.image(), "overlay")
    vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[disk], hyperv=True))
    await vm.start()
    await vm.screen.wait_for("ok>")
    none = await vm.snapshot()
    await vm.set_mode("enlightened")
    connected = await vm.snapshot()
    await vm.set_mode("emulated")
    await vm.restore(connected)
    vmbus, scsi = parts(vm)
    assert (vmbus.connected, scsi.ready) == (True, True)
    await vm.keyboard.type("sum pattern.txt\n")
    await vm.screen.wait_for("as written")
    assert scsi.stats.requests
    await vm.keyboard.type("halt\n")
    await vm.wait_off(5)
    await vm.restore(connected)
    assert scsi.ready
    await vm.restore(none)
    assert (vmbus.connected, scsi.ready) == (False, False)
    await vm.set_mode("enlightened")
    assert scsi.ready


async def test_real_time(host: avmm.Host) -> None:
    """Workers stand still while it is taken; what was rung for is done when the machine goes on."""
    vm = await enlightened(host, clock="real")
    await vm.keyboard.type("sum pattern.txt\n")
    taken = await vm.snapshot()
    await vm.keyboard.type("write spoiled text\n")
    await vm.screen.wait_for("ok>")
    await vm.restore(taken)
    clone = await host.clone(taken)
    for machine in (vm, clone):
        await machine.screen.wait_for("as written")
        await machine.keyboard.type("read spoiled\n")
        await machine.screen.wait_for("no such")
        assert parts(machine)[1].ready


async def test_history_goes_back_over_a_connection(host: avmm.Host) -> None:
    vm = await enlightened(host)
    history = await vm.keep_history(every=0.01)
    await vm.keyboard.type("write note kept\n")
    await vm.sleep(0.1)
    first = await moment(vm)
    await vm.resume()
    await vm.sleep(0.1)
    await history.goto(now=first.now, keep=True)
    assert await moment(vm) == first


async def test_a_server_without_a_state_is_named(host: avmm.Host) -> None:
    async def guest(cpu: avmm.ScriptCpu) -> None:
        await cpu.hlt()

    vm = await host.create_vm(avmm.VmConfig(memory="16M", hyperv=True), guest)
    server, (vmbus, hyperv) = Recorder(), (vm.machine.vmbus, vm.partition.devices["hyperv"])
    assert vmbus is not None
    assert isinstance(hyperv, HyperV)
    vmbus.offer(server)
    handlers, call_of = hyperv.handlers(), hyperv.call

    class Guest:
        call = staticmethod(call_of)

        @staticmethod
        def write(index: int, value: int) -> bool:
            return handlers[index][1](value)

    client = GuestClient(vm.partition.memory, Guest())
    assert client.contact(0x50003)
    number = next(n for n, offer in client.request_offers().items() if offer.user_data.startswith(b"user data"))
    assert isinstance(vmbus.save(), bus.State)
    client.open(number)
    with pytest.raises(ValueError, match="a guest has opened the channel test1, whose server has no saved state"):
        vmbus.save()


def changed(taken: avmm.Snapshot, name: str, change: Callable[[Any], Any]) -> avmm.Snapshot:
    """Return a snapshot as another hand may have written it."""
    devices = tuple(replace(one, state=change(one.state)) if one.name == name else one for one in taken.partition.devices)
    return replace(taken, partition=replace(taken.partition, devices=devices))


def connection(**values: Any) -> Callable[[Any], Any]:
    return lambda state: replace(state, connection=replace(state.connection, **values))


def scsi_end(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda state: replace(state, open=tuple(change(one) if isinstance(one.server, ScsiState) else one for one in state.open))


def scsi(**values: Any) -> Callable[[Any], Any]:
    return scsi_end(lambda one: replace(one, server=replace(one.server, **values)))


def lists(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda state: connection(gpadls=change(state.connection.gpadls))(state)


def beyond(gpadls: Any) -> Any:
    first = gpadls.lists[0]
    ranges = tuple(one._replace(pfns=(*one.pfns[:-1], 1 << 40)) for one in first.ranges)
    return replace(gpadls, lists=(replace(first, ranges=ranges), *gpadls.lists[1:]))


HOSTILE: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "sint": ("vmbus", connection(sint=16), "a saved connection to SINT 16"),
    "version": ("vmbus", connection(version=7), "7 is not a valid Version"),
    "no channels": ("vmbus", connection(channels=()), "the guest was not offered"),
    "text for channels": ("vmbus", connection(channels=5), "the saved state of vmbus makes no sense"),
    "a page beyond RAM": ("vmbus", lists(beyond), "is not in the guest's memory"),
    "no lists": ("vmbus", lists(lambda gpadls: replace(gpadls, lists=())), "cannot be open: channel . has no GPADL"),
    "no ends": ("vmbus", lambda state: replace(state, open=()), "other channels are saved than the guest has open"),
    "another ring": (
        "vmbus", scsi_end(lambda one: replace(one, end=replace(one.end, incoming=replace(one.end.incoming, index=1 << 30)))),
        "not the saved end of a ring",
    ),
    "a ring end in its middle": (
        "vmbus", scsi_end(lambda one: replace(one, end=replace(one.end, outgoing=replace(one.end.outgoing, index=4)))),
        "not the saved end of a ring",
    ),
    "another server": ("vmbus", scsi_end(lambda one: replace(one, server=())), "not a saved state of scsi"),
    "other disks": ("vmbus", scsi(attentions=()), "the guest knew other disks on scsi than this machine has"),
    "no requests": ("vmbus", scsi(in_flight=(5,)), "the saved state of vmbus makes no sense"),
    "old": ("vmbus", lambda state: replace(state, version=1), "not a saved state of VMBus"),
    "an overlay nowhere": (
        "hyperv", lambda state: replace(state, overlays=(replace(state.overlays[0], address=1 << 40), *state.overlays[1:])),
        "a saved overlay at 0x10000000000, where there is no page of RAM",
    ),
    "few SINTs": ("hyperv", lambda state: replace(state, synic=replace(state.synic, sints=(0,))), "a saved SynIC with 1 SINTs"),
    "a SINT of vector 3": (
        "hyperv", lambda state: replace(state, synic=replace(state.synic, sints=(3,) * 16)), "a saved SynIC with 0x3 in SINT 0"
    ),
    "a long message": (
        "hyperv", lambda state: replace(state, synic=replace(state.synic, queues=(((1, bytes(241)),),) + ((),) * 15)),
        "a message of type 0x1 and 241 bytes",
    ),
    "a timer": (
        "hyperv", lambda state: replace(state, timers=(replace(state.timers[0], config=1 << 40), *state.timers[1:])), "a saved timer with"
    ),
    "a frame buffer nowhere": (
        "synthetic-video", lambda state: replace(state, location=1 << 40), "a frame buffer at 0x10000000000, which is neither RAM nor"
    ),
}  # fmt: skip


async def test_what_no_machine_can_have_been_is_refused(host: avmm.Host) -> None:
    """Each in one sentence; the machine has failed then, and goes on from what is well-formed."""
    vm = await enlightened(host)
    good = await vm.snapshot()
    for what, (device, change, sentence) in HOSTILE.items():
        with pytest.raises(avmm.SnapshotError, match=sentence):
            await vm.restore(changed(good, device, change))
        assert vm.state is avmm.RunState.FAILED, what
        await vm.restore(good)
        assert parts(vm)[1].ready, what
    deadlines = (replace(good.partition.deadlines[0], device="vmbus", index=99),)
    with pytest.raises(avmm.SnapshotError, match="vmbus had a timer that the one here does not have"):
        await vm.restore(replace(good, partition=replace(good.partition, deadlines=deadlines)))
    await vm.restore(good)
    await vm.keyboard.type("sum pattern.txt\n")
    await vm.screen.wait_for("as written")
