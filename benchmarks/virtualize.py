"""What it costs to take a disk from a running guest and to give it back, and whether anything is left behind.

Two machines of one process read in turn: one has had its disk taken and given back many times, the other never. What each reads is
counted by the processor time it takes, which others on the host change least. The pauses are those of switches between I/O sequences,
in host time; ``work`` is what is left of a pause when the host runs nobody else, the fastest tenth.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import uvloop

import avmm
from avmm.control.demo_devirtualize import COUNT, SECTORS, Work, reader
from avmm.devices.block import SECTOR
from benchmarks.measure import Result, median_of

CYCLES, REQUESTS, ROUNDS = 100, 1000, 16


async def _measure(folder: Path) -> dict[str, list[float]]:
    path = folder / "disk.img"
    path.write_bytes(b"".join(lba.to_bytes(4, "little") * (SECTOR // 4) for lba in range(SECTORS)))
    found: dict[str, list[float]] = {"switched": [], "fresh": [], "virtualize": [], "devirtualize": []}
    async with avmm.Host() as host:
        machines, work = {}, {"switched": Work(), "fresh": Work()}
        for name, done in work.items():
            config = avmm.VmConfig(name=name, memory="1M", disks=[avmm.Disk(path, "ro")], physical=("ata0",), clock="real")
            machine = machines[name] = await host.create_vm(config, lambda cpu, done=done: reader(cpu, done))  # type: ignore[misc]
            await machine.start()
            await machine.pause()
        vm = machines["switched"]
        await vm.resume()
        for _ in range(CYCLES):
            for kind, switch in (("virtualize", vm.virtualize), ("devirtualize", vm.devirtualize)):
                report = await switch("ata0", on_bound="defer")
                found[kind].append(report.pause_ns / 1000)
        await vm.pause()
        for number in range(ROUNDS):
            for name in sorted(machines, reverse=bool(number % 2)):
                machine = machines[name]
                await machine.resume()
                have, begin = work[name].requests, time.process_time()
                await machine.wait_until(lambda have=have, name=name: work[name].requests >= have + REQUESTS, 60)  # type: ignore[misc]
                found[name].append((work[name].requests - have) * COUNT * SECTOR / (time.process_time() - begin) / 1e6)
                await machine.pause()
        assert not any(done.errors or done.lost for done in work.values())
    return found


def run(runs: int) -> list[Result]:
    """Measure once; a run is a machine's ``CYCLES`` cycles."""
    with tempfile.TemporaryDirectory() as folder:
        found = uvloop.run(_measure(Path(folder)))
    name = f"direct after {CYCLES} cycles"
    results = [median_of(name, "MB/CPU s", found["switched"], reference=found["fresh"], ratio=0.97, at_least=True)]
    for kind in ("virtualize", "devirtualize"):
        pauses = sorted(found[kind])
        results.append(median_of(f"{kind}: pause, median", "us", pauses, limit=200))
        results.append(median_of(f"{kind}: pause, work", "us", pauses[: len(pauses) // 10]))
        results.append(median_of(f"{kind}: pause, 99 of 100", "us", pauses[len(pauses) * 99 // 100 :], limit=2000))
    return results
