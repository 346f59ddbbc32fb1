"""Waiting for something a guest does, in machine time.

In virtual time a watch looks at the same moments in every run, and the machine yields as soon as it was met, so that
what a scenario does next happens at the same moment too. While a machine in virtual time executes nothing, the looks come
ever less often: ten minutes of an idle guest cost next to nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from avmm.clock import MILLISECOND, SECOND, Clock, VirtualClock
from avmm.hypervisor.partition import Partition, RunState

INTERVAL = 5 * MILLISECOND
IDLE_INTERVAL = 200 * MILLISECOND
"""Machine time between two looks while it runs, and at most while it executes nothing."""
T = TypeVar("T")


class WaitTimeout(AssertionError):
    """What was waited for did not happen in time; the text says what, and what the machine showed instead."""


class MachineEnded(Exception):
    """The machine went off while something was expected of it."""


class Pace:
    """How long to wait before the next look at a machine: ``interval`` ns, and up to ``longest`` while it executes nothing."""

    def __init__(self, clock: Clock, interval: int = INTERVAL, longest: int = IDLE_INTERVAL) -> None:
        self._clock = clock
        self._shortest, self._longest = interval, longest
        self._interval = interval
        self._executed = -1

    def next(self) -> int:
        """Return it in ns of machine time."""
        if isinstance(self._clock, VirtualClock):
            before, self._executed = self._executed, self._clock.executed()
            self._interval = min(2 * self._interval, self._longest) if self._executed == before else self._shortest
        return self._interval


class _Watch:
    """Looks again and again whether something is met, until a deadline in ns of machine time or the machine's end."""

    def __init__(self, partition: Partition, deadline: int, met: Callable[[], bool] | None) -> None:
        self.partition = partition
        self.clock = partition.clock
        self.deadline = deadline
        self.met = met
        self.future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.timer = self.clock.timer(self.look)
        self._pace = Pace(self.clock)

    async def result(self) -> bool:
        """Return whether it was met; False after the deadline or the machine's end. Raises what ``met()`` raises."""
        if self.found():
            return self.future.result()
        self._arm()
        self.partition.observers.append(self.entered)
        self.entered(self.partition.state)
        try:
            return await self.future
        finally:
            self.timer.cancel()
            self.partition.observers.remove(self.entered)

    def found(self) -> bool:
        """Whether there is nothing more to wait for."""
        if self.met is None:
            return False
        try:
            if self.met():
                self.future.set_result(True)
        except Exception as error:
            self.future.set_exception(error)
        return self.future.done()

    def look(self) -> None:
        """It is time for a look."""
        if self.future.done():
            return
        if not self.found():
            if self.clock.now() < self.deadline:
                self._arm()
                return
            self.future.set_result(False)
        self.partition.vcpu.yield_soon()

    def entered(self, state: RunState) -> None:
        """The machine's state has changed."""
        if state.ended and not self.future.done() and not self.found():
            self.future.set_result(False)

    def _arm(self) -> None:
        self.timer.arm(self.deadline if self.met is None else min(self.clock.now() + self._pace.next(), self.deadline))


async def wait_until(partition: Partition, met: Callable[[], bool], timeout: float, describe: Callable[[], str]) -> None:
    """Return when ``met()`` is true. Raises WaitTimeout after ``timeout`` seconds of machine time, MachineEnded or GuestFailure.

    What ``met()`` raises comes out here; it does not disturb the machine.
    """
    if await _Watch(partition, partition.clock.now() + int(timeout * SECOND), met).result():
        return
    if partition.failure is not None:
        raise partition.failure
    if partition.state is RunState.OFF:
        raise MachineEnded(f"{partition.name} went off ({partition.off_reason}) before {describe()}")
    raise WaitTimeout(f"{timeout:g} s of machine time passed before {describe()}")


async def wait_stable(
    partition: Partition, look: Callable[[], object], quiet: float, timeout: float, describe: Callable[[], str]
) -> None:
    """Return when ``look()`` has given the same for ``quiet`` seconds of machine time; otherwise as :func:`wait_until`."""
    clock = partition.clock
    seen, since = look(), clock.now()

    def met() -> bool:
        nonlocal seen, since
        now = look()
        if now != seen:
            seen, since = now, clock.now()
        return clock.now() - since >= int(quiet * SECOND)

    await wait_until(partition, met, timeout, describe)


async def in_turn(partition: Partition, waits: list[Callable[[float], Awaitable[T]]], timeout: float) -> list[T]:
    """Await each with what is left of ``timeout`` seconds of machine time, and return their results.

    Raises WaitTimeout that says how many of them were met.
    """
    deadline = partition.clock.now() + int(timeout * SECOND)
    results: list[T] = []
    for number, wait in enumerate(waits, 1):
        try:
            results.append(await wait(max(0, deadline - partition.clock.now()) / SECOND))
        except WaitTimeout as failure:
            raise WaitTimeout(f"step {number} of {len(waits)}: {failure}") from None
    return results


async def ended(partition: Partition, timeout: float) -> None:
    """Wait until the machine is off or has failed; ``timeout`` in seconds of machine time, then WaitTimeout."""
    await _Watch(partition, partition.clock.now() + int(timeout * SECOND), None).result()
    if not partition.state.ended:
        raise WaitTimeout(f"{timeout:g} s of machine time passed before the machine went off")


async def sleep(partition: Partition, seconds: float) -> None:
    """Wait for machine time to pass. Returns early when the machine goes off; raises GuestFailure when it fails."""
    await _Watch(partition, partition.clock.now() + int(seconds * SECOND), None).result()
    if partition.failure is not None:
        raise partition.failure
