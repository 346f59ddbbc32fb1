"""Waiting for something a guest does, in machine time.

In virtual time a watch looks at the same moments in every run, and the machine yields as soon as it was met, so that
what a scenario does next happens at the same moment too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from avmm.clock import MILLISECOND, SECOND
from avmm.hypervisor.partition import Partition, RunState

INTERVAL = 5 * MILLISECOND


class WaitTimeout(AssertionError):
    """What was waited for did not happen in time; the text says what, and what the machine showed instead."""


class MachineEnded(Exception):
    """The machine went off while something was expected of it."""


async def wait_until(partition: Partition, met: Callable[[], bool], timeout: float, describe: Callable[[], str]) -> None:
    """Return when ``met()`` is true. Raises WaitTimeout after ``timeout`` seconds of machine time, MachineEnded or GuestFailure.

    What ``met()`` raises comes out here; it does not disturb the machine.
    """
    if met():
        return
    clock = partition.clock
    future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    deadline = clock.now() + int(timeout * SECOND)

    def found() -> bool:
        """Whether there is nothing more to wait for."""
        try:
            if met():
                future.set_result(True)
        except Exception as error:
            future.set_exception(error)
        return future.done()

    def look() -> None:
        if future.done():
            return
        if not found():
            if clock.now() < deadline:
                timer.arm(min(clock.now() + INTERVAL, deadline))
                return
            future.set_result(False)
        partition.vcpu.yield_soon()

    def ended(state: RunState) -> None:
        if state in (RunState.OFF, RunState.FAILED) and not future.done() and not found():
            future.set_result(False)

    timer = clock.timer(look)
    timer.arm(min(clock.now() + INTERVAL, deadline))
    partition.observers.append(ended)
    if partition.state in (RunState.OFF, RunState.FAILED):
        ended(partition.state)
    try:
        if await future:
            return
    finally:
        timer.cancel()
        partition.observers.remove(ended)
    if partition.failure is not None:
        raise partition.failure
    if partition.state is RunState.OFF:
        raise MachineEnded(f"{partition.name} went off ({partition.off_reason}) before {describe()}")
    raise WaitTimeout(f"{timeout:g} s of machine time passed before {describe()}")


async def sleep(partition: Partition, seconds: float) -> None:
    """Wait for machine time to pass; returns early when the machine ends."""
    end = partition.clock.now() + int(seconds * SECOND)
    try:
        await wait_until(partition, lambda: partition.clock.now() >= end, seconds + 1, lambda: "time had passed")
    except MachineEnded:
        return
