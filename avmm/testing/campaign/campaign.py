"""A campaign: many instances over a pool of workers, none lost and none counted twice.

The invariant: each instance has at most one result; one whose worker is lost is run again, and after :data:`ATTEMPTS` it is ``crashed``.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from avmm.control.config import ConfigError
from avmm.testing.campaign.matrix import Instance
from avmm.testing.campaign.processes import InstanceTimeout, WorkerLost

ATTEMPTS = 3
GOOD = frozenset({"passed", "skipped"})


class Pool(Protocol):
    """Workers: ``slots`` instances at a time."""

    slots: int

    async def run(self, slot: int, instance: Instance) -> dict[str, Any]:
        """Return how an instance ended. Raises WorkerLost, InstanceTimeout or ConfigError."""


@dataclass(frozen=True, slots=True)
class Result:
    """How an instance ended."""

    instance: Instance
    outcome: str
    """``passed``, ``failed``, ``skipped``, ``error`` (outside of the test), ``crashed`` (its workers died) or ``timeout``."""
    message: str = ""
    report: str = ""
    machine_seconds: float | None = None
    host_seconds: float = 0.0
    attempts: int = 1

    @property
    def good(self) -> bool:
        """Whether there is nothing to look into."""
        return self.outcome in GOOD


class Campaign:
    """Runs instances; ``results`` holds what there is, by the instance's number, also when it is cancelled."""

    def __init__(self, instances: Sequence[Instance], *, most_failures: int | None = None) -> None:
        self.instances = instances
        self.results: dict[int, Result] = {}
        self.running: set[int] = set()
        self.lost: list[str] = []
        """What became of workers that were lost, a sentence each."""
        self.on_change: Callable[[Result | None], None] = lambda result: None
        """Called when an instance has ended, with its result, or has begun."""
        self._waiting = deque(instances)
        self._attempts: Counter[int] = Counter()
        self._most_failures = most_failures

    @property
    def failures(self) -> list[Result]:
        """Results that are not good, in order."""
        return [result for _, result in sorted(self.results.items()) if not result.good]

    @property
    def enough(self) -> bool:
        """Whether as many have failed as are wanted."""
        return self._most_failures is not None and len(self.failures) >= self._most_failures

    async def run(self, pool: Pool) -> None:
        """Run everything. Cancelled, it keeps the results that there are."""
        async with asyncio.TaskGroup() as tasks:
            for slot in range(min(pool.slots, len(self.instances))):
                tasks.create_task(self._serve(pool, slot), name=f"campaign:{slot}")

    async def _serve(self, pool: Pool, slot: int) -> None:
        while self._waiting and not self.enough:
            instance = self._waiting.popleft()
            self._attempts[instance.number] += 1
            self.running.add(instance.number)
            self.on_change(None)
            try:
                result = await self._try(pool, slot, instance)
            finally:
                self.running.discard(instance.number)
            if result is None:
                self._waiting.appendleft(instance)
            else:
                self.results[instance.number] = result
                self.on_change(result)

    async def _try(self, pool: Pool, slot: int, instance: Instance) -> Result | None:
        """Return the result, None if its worker was lost and it is to be run again."""
        attempts = self._attempts[instance.number]
        try:
            answer = await pool.run(slot, instance)
        except WorkerLost as lost:
            self.lost.append(f"{instance.test} [{instance.variant}]: {lost}")
            return Result(instance, "crashed", f"{lost}, {attempts} times", attempts=attempts) if attempts >= ATTEMPTS else None
        except InstanceTimeout as late:
            return Result(instance, "timeout", str(late), attempts=attempts)
        except ConfigError as error:
            return Result(instance, "error", str(error), attempts=attempts)
        return Result(instance, attempts=attempts, **answer)
