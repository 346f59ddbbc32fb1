"""Scenarios: ten idle minutes of a guest, boot-type-expect, and an instance of a campaign on a warm worker."""

from __future__ import annotations

import asyncio
import time
from contextlib import chdir
from pathlib import Path

import uvloop

import avmm
import avmm_guests
from avmm.testing.campaign.matrix import Instance
from avmm.testing.campaign.processes import WorkerProcess
from benchmarks.measure import Result, median_of

SCENARIO = Path(__file__).resolve().parent.parent / "examples" / "scenarios" / "test_hello.py"


async def _booted(host: avmm.Host) -> avmm.Vm:
    vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[avmm.Disk(avmm_guests.image(), "overlay")]))
    await vm.start()
    await vm.screen.wait_for("ok>")
    return vm


async def idle() -> tuple[float, float]:
    """Return ms of host time for ten minutes of an idle guest: looked at for a text that never comes, and slept through."""
    async with avmm.Host() as host:
        vm = await _booted(host)
        began = time.perf_counter()
        try:
            await vm.screen.wait_for("never", timeout=600)
        except avmm.WaitTimeout:
            looked = time.perf_counter() - began
        began = time.perf_counter()
        await vm.sleep(600)
        return looked * 1e3, (time.perf_counter() - began) * 1e3


async def boot_type_expect() -> float:
    """Return ms of host time."""
    began = time.perf_counter()
    async with avmm.Host() as host:
        vm = await _booted(host)
        await vm.keyboard.type("dir\n")
        await vm.screen.wait_for("readme.txt")
    return (time.perf_counter() - began) * 1e3


async def instances(count: int) -> list[float]:
    """Return ms of host time for each of ``count`` instances on one worker that is warm."""
    worker = WorkerProcess()
    times = []
    try:
        for number in range(count + 1):
            began = time.perf_counter()
            answer = await worker.ask({"run": Instance(number, f"{SCENARIO.name}::test_dir", number, {}).as_dict()})
            assert answer["outcome"] == "passed", answer
            times.append((time.perf_counter() - began) * 1e3)
    finally:
        await worker.close()
    return times[1:]


def run(runs: int) -> list[Result]:
    """Measure everything in this process, the campaign's worker beside it."""
    uvloop.run(boot_type_expect())
    waits = [uvloop.run(idle()) for _ in range(runs)]
    boots = [uvloop.run(boot_type_expect()) for _ in range(runs)]
    with chdir(SCENARIO.parent):
        campaign = asyncio.run(instances(runs))
    return [
        median_of("ten idle minutes, waiting for a text", "ms", [looked for looked, _ in waits], limit=1000),
        median_of("ten idle minutes, asleep", "ms", [asleep for _, asleep in waits], limit=1000),
        median_of("boot, type, expect", "ms", boots),
        median_of("the same as an instance of a campaign", "ms", campaign),
    ]
