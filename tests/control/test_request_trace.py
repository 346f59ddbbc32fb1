"""One request's way, traced: by each path under one id, and nothing is left in the machine when nobody traces any more."""

from __future__ import annotations

import asyncio
import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

import avmm
import guests
from avmm.control.request_trace import RequestTrace, RequestTracer, trace_requests
from avmm_console.cli import main
from console.hops import folded
from tests.vm.pc import running

PATHS = {"pio": "emulated", "dma": "emulated", "shunt": "shunt-only", "enlightened": "enlightened"}
DOWN = ["virtualization:", "class:", "port:", "file:", "done"]


async def say(vm: avmm.Vm, line: str) -> str:
    vm.serial.write(line + "\n")
    return (await vm.serial.wait_for("\nok> ")).partition("\n")[2].removesuffix("ok> ").replace("\r", "")


async def traced(vm: avmm.Vm, command: str, count: int = 1, op: str = "") -> list[RequestTrace]:
    tracing = asyncio.create_task(trace_requests(vm, count, op))
    await asyncio.sleep(0)
    await say(vm, command)
    return await tracing


def words(trace: RequestTrace) -> list[str]:
    return [hop.what for hop in trace.hops]


def in_order(trace: RequestTrace, *wanted: str) -> None:
    """Require hops that begin like these, in this order, with others between."""
    at = 0
    for text in wanted:
        found = next((i for i, what in enumerate(words(trace)[at:], at) if what.startswith(text)), None)
        assert found is not None, f"{text} is not behind hop {at} of {words(trace)}"
        at = found + 1


@pytest.mark.asyncio
async def test_m1_to_m4_and_m9_the_whole_way_of_a_request_by_each_path(tmp_path: Path) -> None:
    image = Path(shutil.copy(guests.image(), tmp_path / "guest.img"))
    async with running(memory="8M", disks=[avmm.Disk(image)], hyperv=True) as vm:
        await vm.serial.wait_for("ok> ")
        await vm.sleep(0.7)
        for path, mode in PATHS.items():
            await vm.set_mode(mode)
            if mode == "emulated":
                await say(vm, f"disk {path}")
            for op, command in (("read", "read motd.txt"), ("write", "write note a line")):
                (trace,) = await traced(vm, command, op=op)
                assert (trace.path, trace.op, trace.sectors, trace.error) == (path, op, 1, "")
                assert all(earlier.at <= later.at for earlier, later in pairwise(trace.hops))
                in_order(trace, "a program asks", "class driver", *DOWN, "class driver: done", "the program has its answer")
                irps = [hop.irp for hop in trace.hops if hop.irp]
                if mode == "emulated":
                    in_order(trace, "the shunt lets it pass", "port driver for ATA", "OUT 1F6h traps, plain register",
                             "OUT 1F7h traps", "service-os", "device:", *DOWN, "IRQ 14", "IN 1F7h traps, plain register",
                             "class driver: done")  # fmt: skip
                    mover = "OUT 1F7h" if path == "pio" else "OUT C000h"
                    in_order(trace, f"{mover} traps", "service-os", "device:", f"{mover}: VM entry", "IN 1F7h traps, plain register")
                    assert trace.id in irps, "the id is that of the access that gave the data, or the room for it, to the medium"
                    assert any("block moved" in what for what in words(trace)) == (path == "pio")
                    assert any(what.startswith("OUT C000h") for what in words(trace)) == (path == "dma")
                else:
                    assert not irps
                    in_order(trace, "the shunt diverts it", "port driver for VMBus", "hypercall HvSignalEvent", "the packet is taken", *DOWN,
                             "the completion is in the ring", "event flag", "class driver: done")  # fmt: skip


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["pio", "dma"])
async def test_i3_traps_to_a_disk_inside_are_hops_too(tmp_path: Path, path: str) -> None:
    image = Path(shutil.copy(guests.image(), tmp_path / "guest.img"))
    inside = dict.fromkeys(("ata0", "bmide"), "hypervisor")
    async with running(memory="8M", disks=[avmm.Disk(image)], placement=inside) as vm:
        await vm.serial.wait_for("ok> ")
        await say(vm, f"disk {path}")
        before = dict(vm.partition.ports._ports)
        (trace,) = await traced(vm, "read motd.txt", op="read")
        assert (trace.path, trace.op, trace.sectors, trace.error) == (path, "read", 1, "")
        assert not any(hop.irp for hop in trace.hops)
        in_order(trace, "OUT 1F6h traps, answered inside", "OUT 1F7h traps, answered inside", *DOWN, "IRQ 14", "IN 1F7h traps, answered inside")
        assert vm.partition.ports._ports == before, "nobody listens any more"
        few = [hop["what"] for hop in folded(trace.as_dict()["hops"])]
        assert any("OUT 1F2h, OUT 1F3h, OUT 1F4h, OUT 1F5h" in what and what.endswith(": each traps, answered inside") for what in few)


@pytest.mark.asyncio
async def test_several_at_once_are_told_apart(tmp_path: Path) -> None:
    image = Path(shutil.copy(guests.image(), tmp_path / "guest.img"))
    async with running(memory="8M", disks=[avmm.Disk(image)], hyperv=True) as vm:
        await vm.serial.wait_for("ok> ")
        await vm.set_mode("enlightened")
        found = await traced(vm, "bench disk read 8", count=24)
        assert len({trace.id for trace in found}) == 24
        assert {trace.lba for trace in found} == {128 * i for i in range(8)}
        assert all(trace.sectors == 128 and words(trace).count("the packet is taken out of the ring") == 1 for trace in found)
        assert await trace_requests(vm, 1, timeout=0.01) == [], "nobody asks for anything"


@pytest.mark.asyncio
async def test_nothing_is_left_when_nobody_traces(tmp_path: Path) -> None:
    image = Path(shutil.copy(guests.image(), tmp_path / "guest.img"))
    runs = []
    for trace in (False, True):
        async with running(memory="8M", disks=[avmm.Disk(image, "overlay")], hyperv=True) as vm:
            await vm.serial.wait_for("ok> ")
            await vm.set_mode("enlightened")
            partition, machine = vm.partition, vm.machine
            assert machine.vmbus is not None
            assert machine.scsi is not None
            channel = machine.vmbus.channel(machine.scsi)
            assert channel is not None
            sinks = [partition.line(number).sink for number in (14, 15)]
            if trace:
                with RequestTracer(vm, 100) as tracer:
                    await say(vm, "sum pattern.txt")
                    assert tracer.finished
            else:
                await say(vm, "sum pattern.txt")
            assert partition.on_irp == []
            assert [partition.line(number).sink for number in (14, 15)] == sinks
            assert machine.disks[0].watcher is None
            assert channel.watcher is None
            await vm.sleep(0.01)
            before = sum(port.writes for port in vm.stats.ports if port.address == 0x5F4)
            assert (before > 0) == trace
            assert "as written" in await say(vm, "sum pattern.txt")
            assert sum(port.writes for port in vm.stats.ports if port.address == 0x5F4) == before, "the guest tells no more"
            runs.append(await say(vm, "list"))
    assert runs[0] == runs[1]


def test_avmm_trace(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["trace", "--path", "shunt", "--path", "pio", "--json"])
    assert exit_.value.code in (0, None)
    found = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in found] == ["shunt", "pio"]
    assert all(one["hops"][0]["us"] == 0 and one["hops"][-1]["us"] == one["us"] for one in found)
    few = list(folded(found[1]["hops"]))
    assert len(few) < len(found[1]["hops"]) - 8
    assert any("OUT 1F2h, OUT 1F3h, OUT 1F4h, OUT 1F5h: each traps" in hop["what"] for hop in few)


@pytest.mark.asyncio
async def test_a_guest_that_tells_nothing_has_done_when_it_leaves_the_disk_alone(tmp_path: Path) -> None:
    """By machine time: in virtual time it takes no longer than the guest does, and the trace ends with the command's last access."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))

    async def guest(cpu: avmm.ScriptCpu) -> None:
        for port, value in ((0x1F6, 0xE0), (0x1F2, 1), (0x1F3, 7), (0x1F4, 0), (0x1F5, 0), (0x1F7, 0x20)):
            await cpu.outb(port, value)
        while await cpu.inb(0x1F7) & 0x88 != 0x08:  # BSY clear, DRQ set
            pass
        await cpu.insw(0x1F0, 256)
        await cpu.inb(0x1F7)
        while True:
            await cpu.inb(0x40)

    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="2M", disks=[avmm.Disk(image)]), guest)
        tracing = asyncio.create_task(trace_requests(vm))
        await vm.start()
        (trace,) = await tracing
        assert (trace.path, trace.op, trace.lba, trace.sectors) == ("pio", "read", 7, 1)
        assert words(trace)[-1] == "IN 1F7h traps, plain register"
        assert vm.now < 0.1
