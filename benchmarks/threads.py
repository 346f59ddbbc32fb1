"""Two busy machines on two threads: goal 1.8 times the throughput of one.

Throughput is executed code a second. One machine alone, two on one thread and two on two threads are measured in turns, so that
all have the same host; on a host whose processors others use as well, the ratio says as much about those. What the threads
themselves cost is code per second of processor time, which is measured beside it.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import uvloop

import avmm
from avmm.control.config import Clock
from benchmarks.key_latency import BUSY_CODE
from benchmarks.measure import Result, median_of

SECONDS = 0.7
GOAL, EFFICIENCY = 1.8, 0.9


async def throughput(machines: int, threads: int, clock: Clock) -> tuple[float, float]:
    """Return millions of units a second of the host's time, and a second of its processors' time."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "busy.img"
        image.write_bytes(BUSY_CODE)
        async with avmm.Host(threads=threads) as host:
            for n in range(machines):
                config = avmm.VmConfig(name=f"busy{n}", memory="2M", floppies=[avmm.Disk(image, "ro")], clock=clock)
                await (await host.create_vm(config)).start()
            await asyncio.sleep(0.2)
            before = sum(vm.partition.processor.units for vm in host.vms.values())
            begin, used = time.perf_counter(), time.process_time()
            await asyncio.sleep(SECONDS)
            taken, used = time.perf_counter() - begin, time.process_time() - used
            done = sum(vm.partition.processor.units for vm in host.vms.values()) - before
            return done / taken / 1e6, done / used / 1e6


def run(runs: int) -> list[Result]:
    """Measure in real and in virtual time."""
    results: list[Result] = []
    clocks: tuple[Clock, ...] = ("real", "virtual")
    for clock in clocks:
        alone, serial, parallel = [], [], []
        for _ in range(max(3, runs)):
            alone.append(uvloop.run(throughput(1, 1, clock)))
            serial.append(uvloop.run(throughput(2, 1, clock)))
            parallel.append(uvloop.run(throughput(2, 2, clock)))
        for name, kind, index, goal in (("a second", "wall", 0, GOAL), ("a processor second", "cpu", 1, EFFICIENCY)):
            one, two = [value[index] for value in alone], [value[index] for value in parallel]
            title = f"two busy machines on two threads, {clock} time: units {name} ({kind}), beside one machine"
            results.append(median_of(title, "M/s", two, reference=one, ratio=goal, at_least=True))
        title = f"two busy machines on one thread, {clock} time: units a second, beside one machine"
        results.append(median_of(title, "M/s", [value[0] for value in serial], reference=[value[0] for value in alone]))
    return results
