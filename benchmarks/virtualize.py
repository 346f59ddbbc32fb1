"""What it costs to take a disk from a running guest and to give it back, and whether anything is left behind.

Left behind: two machines run the same guest code, which drives its disk by polling; the disk of one has been taken and given back many
times, that of the other never. They take turns of the same machine time, in which they do the same, count for count
(``tests/vm/test_virtualize_leftovers.py``); compared is the processor time of each turn with that of the other's turn beside it.

Pauses: of switches between I/O sequences under a guest that reads without pause, and of switches anywhere under Debian's Linux at work
on its file system, in host time. ``work`` is what is left of a pause when the host runs nobody else, the fastest tenth.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

import avmm
from avmm.control.demo_devirtualize import SECTORS, Work, reader
from avmm.devices.block import SECTOR
from avmm.interpose.switch import Outcome, SwitchReport
from benchmarks.measure import Result, median_of
from tests.vm.pc import booted
from tests.vm.test_virtualize import torture
from tests.vm.test_virtualize_guests import POLLING, to_and_fro

CYCLES, PAIRS, TURN = 100, 200, 0.02
PAUSES, LINUX_CYCLES = 500, 500


async def _left_behind(folder: Path) -> list[float]:
    """Return, for each pair of turns, throughput after the cycles divided by throughput without any."""
    ratios = []
    async with AsyncExitStack() as stack:
        machines = {}
        for name in ("switched", "fresh"):
            (folder / name).mkdir()
            machines[name] = vm = await stack.enter_async_context(booted(folder / name, POLLING, name=name, physical=["ata0"]))
            await vm.sleep(TURN)
            if name == "switched":
                await to_and_fro(vm, "ata0", CYCLES)
            await vm.pause()
        for number in range(PAIRS):
            spent = {}
            for name in sorted(machines, reverse=bool(number % 2)):
                vm, begin = machines[name], time.process_time()
                await vm.resume()
                await vm.sleep(TURN)
                await vm.pause()
                spent[name] = time.process_time() - begin
            ratios.append(spent["fresh"] / spent["switched"])
    return ratios


async def _pauses(folder: Path) -> list[SwitchReport]:
    path = folder / "disk.img"
    path.write_bytes(b"".join(lba.to_bytes(4, "little") * (SECTOR // 4) for lba in range(SECTORS)))
    work, reports = Work(), []
    async with avmm.Host() as host:
        config = avmm.VmConfig(memory="1M", disks=[avmm.Disk(path, "ro")], physical=("ata0",), clock="real")
        vm = await host.create_vm(config, lambda cpu: reader(cpu, work))
        await vm.start()
        for _ in range(PAUSES):
            reports += [await switch("ata0", on_bound="defer") for switch in (vm.virtualize, vm.devirtualize)]
        assert not work.errors
        assert not work.lost
    return reports


def _table(under: str, reports: list[SwitchReport]) -> list[Result]:
    results = []
    for name, to in (("virtualize", "virtualized"), ("devirtualize", "direct")):
        pauses = sorted(report.pause_ns / 1000 for report in reports if report.to == to and report.done)
        results.append(median_of(f"{under}{name}: pause, median", "us", pauses, limit=200))
        results.append(median_of(f"{under}{name}: pause, work", "us", pauses[: len(pauses) // 10]))
        results.append(median_of(f"{under}{name}: pause, 99 of 100", "us", pauses[len(pauses) * 99 // 100 :][:1], limit=2000))
    kept = [report.machine_pause_ns / 1000 for report in reports if report.outcome is not Outcome.DEFERRED]
    results.append(median_of(f"{under}longest pause for the guest", "us", [max(kept)], limit=reports[0].bound_ns / 1000))
    return results


def run(runs: int) -> list[Result]:
    """Measure once; a run is a machine's cycles."""
    with tempfile.TemporaryDirectory() as folder:
        ratios = uvloop.run(_left_behind(Path(folder)))
        pauses = uvloop.run(_pauses(Path(folder)))
        linux = uvloop.run(torture(Path(folder), LINUX_CYCLES, "real"))
    left = median_of(f"direct after {CYCLES} cycles, of direct", "x", ratios, limit=0.97, at_least=True)
    return [left, *_table("", pauses), *_table("Linux: ", linux)]
