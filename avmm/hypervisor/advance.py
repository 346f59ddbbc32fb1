"""Letting a machine that stands still go on to a place, for whoever searches or repeats its past.

The invariant: when it returns the machine stands still, or has ended.
"""

from __future__ import annotations

import asyncio

from avmm.hypervisor.partition import Partition, RunState


async def run_on(partition: Partition) -> None:
    """Let it go on, and return when something makes it stand still again, or it has ended."""
    arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def entered(state: RunState) -> None:
        if state is not RunState.RUNNING and not arrived.done():
            arrived.set_result(None)

    partition.observers.append(entered)
    try:
        await partition.resume()
        await arrived
    finally:
        partition.observers.remove(entered)


async def run_to(partition: Partition, *, now: int | None = None, units: int | None = None) -> None:
    """The same of a machine in virtual time, which is to stand still at the first block boundary at or after machine time ``now``,
    or after so many ``units`` of work since power-on, if nothing makes it earlier.
    """
    timer, vcpu = partition.clock.timer(partition.pause_here), partition.vcpu
    if now is not None:
        timer.arm(now)
    if units is not None:
        vcpu.limit, vcpu.on_limit = units, partition.pause_here
    try:
        await run_on(partition)
    finally:
        timer.cancel()
        vcpu.limit = None
