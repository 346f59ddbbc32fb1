"""A hundred idle guests of 16 MiB in one process: what each costs in memory, and all of them in processor time."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
from pathlib import Path

import avmm
from benchmarks.measure import Result, median_of

GUESTS, SECONDS = 100, 5.0


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def measure() -> tuple[float, float]:
    """Return (MiB per guest, part of a core in percent)."""
    import avmm_guests

    async with avmm.Host() as host:

        async def one(number: int) -> avmm.Vm:
            disk = avmm.Disk(avmm_guests.image(), "overlay")
            vm = await host.create_vm(avmm.VmConfig(name=f"idle{number}", memory="16M", disks=[disk], clock="real"))
            await vm.start()
            await vm.screen.wait_for("ok>", timeout=60)
            return vm

        first = await one(0)
        gc.collect()
        before = _resident()
        for number in range(1, GUESTS):
            await one(number)
        gc.collect()
        memory = (_resident() - before) / (GUESTS - 1) / (1 << 20)
        busy, begin = time.process_time(), time.perf_counter()
        await asyncio.sleep(SECONDS)
        share = (time.process_time() - busy) / (time.perf_counter() - begin) * 100
        assert "ok>" in first.screen.text()
    return memory, share


def run(runs: int) -> list[Result]:
    """Each run is a process of its own."""
    memory, share = [], []
    for _ in range(runs):
        done = subprocess.run([sys.executable, "-m", "benchmarks.idle"], capture_output=True, text=True, check=True, timeout=300)
        m, s = map(float, done.stdout.split())
        memory.append(m)
        share.append(s)
    return [
        median_of("memory of an idle 16 MiB guest, 100 of them", "MiB", memory, limit=3),
        median_of("processor time of 100 idle guests", "%", share, limit=5),
    ]


if __name__ == "__main__":
    import uvloop

    print(*uvloop.run(measure()))
