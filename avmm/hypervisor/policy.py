"""Automatic placement: device models outside that are touched often are brought into the hypervisor, by itself.

:class:`Policy` decides: numbers in, moves out. It counts accesses per second of machine time over whole windows. A device
outside that is busy for ``patience`` windows in a row goes in; one that the policy brought in and that is quiet for
``forgiveness`` windows goes out again. Between the two rates nothing happens, and a device that was moved rests first.

:class:`Watch` looks at a machine for it. It costs a timer only while a device outside is being touched, or one that was brought
in has not been given up, so a machine that is idle stays idle.

The invariant: the policy puts outside only what it brought in itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from avmm.clock import MILLISECOND, SECOND
from avmm.hypervisor.install import InstallError
from avmm.hypervisor.irp import Irp
from avmm.hypervisor.partition import Partition

INSIDE = "hypervisor"


@dataclass(frozen=True, slots=True)
class Limits:
    """When to move. Rates in accesses per second of machine time."""

    busy: float = 2000
    quiet: float = 100
    window: int = 50 * MILLISECOND
    """Machine time between two looks, ns."""
    patience: int = 2
    forgiveness: int = 40
    rest: int = 10
    """Windows that a device is left alone for after a move, successful or not."""

    def __post_init__(self) -> None:
        if not 0 <= self.quiet < self.busy:
            raise ValueError(f"a device cannot be quiet at {self.quiet:g} accesses a second and busy at {self.busy:g}")
        if self.window <= 0 or self.patience < 1 or self.forgiveness < 1:
            raise ValueError("windows must be longer than nothing, and there must be at least one")


@dataclass(frozen=True, slots=True)
class Move:
    """What the policy wants: a device inside, or where it was."""

    device: str
    to: str
    rate: float


@dataclass(slots=True)
class _Seen:
    """What is known of one device."""

    count: int
    streak: int = 0
    rest: int = 0
    home: str = ""
    """Where the policy brought it in from; empty for a device it has not touched."""


@dataclass(slots=True)
class Policy:
    """Decides which devices to move."""

    limits: Limits = field(default_factory=Limits)
    _devices: dict[str, _Seen] = field(default_factory=dict)
    _time: int | None = None

    def look(self, now: int, counts: dict[str, int], places: dict[str, str]) -> list[Move]:
        """Take the number of accesses that each device has had by ``now`` (ns), and where it is; return what to move."""
        passed = 0 if self._time is None else now - self._time
        self._time = now
        moves = []
        for device, place in places.items():
            count = counts.get(device, 0)
            seen = self._devices.setdefault(device, _Seen(count))
            rate = (count - seen.count) * SECOND / passed if passed > 0 else 0.0
            seen.count = count
            if passed > 0 and (move := self._judge(device, place, seen, rate)) is not None:
                moves.append(move)
        return moves

    def _judge(self, device: str, place: str, seen: _Seen, rate: float) -> Move | None:
        limits = self.limits
        if seen.rest:
            seen.rest -= 1
            return None
        if place != INSIDE:
            seen.home = ""
            seen.streak = seen.streak + 1 if rate >= limits.busy else 0
            if seen.streak < limits.patience:
                return None
            seen.home, to = place, INSIDE
        else:
            seen.streak = seen.streak + 1 if seen.home and rate <= limits.quiet else 0
            if seen.streak < limits.forgiveness:
                return None
            to, seen.home = seen.home, ""
        seen.streak, seen.rest = 0, limits.rest
        return Move(device, to, rate)

    @property
    def attached(self) -> bool:
        """Whether a device is inside that the policy would put outside again."""
        return any(seen.home for seen in self._devices.values())


def accesses(partition: Partition) -> dict[str, int]:
    """Return how often each device has been touched so far, by name."""
    counts: dict[str, int] = {}
    for bus in (partition.ports, partition.address_space):
        for tally in bus.every():
            counts[tally.device] = counts.get(tally.device, 0) + tally.reads + tally.writes
    return counts


Mover = Callable[[str, str], Coroutine[Any, Any, object]]


class Watch:
    """Applies a policy to a machine. ``places()`` gives the devices that can be moved, ``move(device, to)`` moves one."""

    def __init__(self, partition: Partition, places: Callable[[], dict[str, str]], move: Mover, limits: Limits | None = None) -> None:
        self.policy = Policy(limits or Limits())
        self._partition = partition
        self._places = places
        self._move = move
        self._timer = partition.clock.timer(self._look)
        self._touched = False
        self._task: asyncio.Task[None] | None = None
        partition.on_irp.append(self._outside)

    def _outside(self, irp: Irp) -> None:
        self._touched = True
        if not self._timer.armed:
            self.policy.look(self._partition.clock.now(), accesses(self._partition), self._places())
            self._arm()

    def _arm(self) -> None:
        self._timer.arm(self._partition.clock.now() + self.policy.limits.window)

    def _look(self) -> None:
        touched, self._touched = self._touched, False
        moves = self.policy.look(self._partition.clock.now(), accesses(self._partition), self._places())
        if touched or moves or self.policy.attached:
            self._arm()
        if moves and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._carry_out(moves), name=f"{self._partition.name}:placement")
            self._partition.vcpu.yield_soon()

    async def _carry_out(self, moves: list[Move]) -> None:
        for move in moves:
            self._partition.trace("placement", device=move.device, to=move.to, rate=round(move.rate))
            try:
                await self._move(move.device, move.to)
            except InstallError as error:
                self._partition.trace("placement.failed", device=move.device, reason=str(error))

    async def close(self) -> None:
        """Stop watching."""
        self._timer.cancel()
        if self._outside in self._partition.on_irp:
            self._partition.on_irp.remove(self._outside)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
