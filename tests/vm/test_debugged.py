"""A whole machine that is debugged while it boots does, to the byte, what one that is left alone does."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine

import pytest

import avmm
import avmm_guests
from avmm.cpu.unicorn.processor import UnicornProcessor
from avmm.hypervisor.advance import run_to

END = 400_000_000  # ns of machine time: the guest is at its prompt and waits


async def stopped(vm: avmm.Vm, going: Coroutine[None, None, None]) -> None:
    stopping = asyncio.ensure_future(vm.debugger.next_stop())
    await asyncio.sleep(0)
    await going
    await stopping


async def boot(vm: avmm.Vm, *, debug: bool) -> tuple[object, ...]:
    """Run to END; in debug stop in the boot sector, step through much of it, and stop again and again where the steps led."""
    partition = vm.partition
    await partition.power_on(paused=True)
    while partition.state is not avmm.RunState.PAUSED:
        await asyncio.sleep(0)
    if debug:
        debugger = vm.debugger
        await debugger.add("code", 0x7C00)
        await stopped(vm, debugger.resume())
        for n in range(3000):
            await stopped(vm, debugger.step(interrupts=bool(n % 2)))
        await debugger.add("code", debugger.pc)
        for _ in range(20):
            await run_to(partition, now=END)
    while partition.clock.now() < END:
        await run_to(partition, now=END)
    assert isinstance(partition.processor, UnicornProcessor)
    counters = {name: count for name, count in partition.processor.counters().items() if not name.endswith(("_ns", "cycles"))}
    return partition.clock.now(), partition.processor.units, counters, hashlib.sha256(partition.memory.view).hexdigest(), vm.screen.text()


@pytest.mark.asyncio
async def test_it_stays_identical() -> None:
    ends = []
    for debug in (False, True):
        async with avmm.Host() as host:
            vm = await host.create_vm(avmm.VmConfig(memory="8M", disks=[avmm.Disk(avmm_guests.image(), "overlay")]))
            ends.append(await boot(vm, debug=debug))
    assert "ok>" in str(ends[0][-1])
    assert ends[0] == ends[1]
