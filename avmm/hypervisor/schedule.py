"""Sharing the host between the vCPUs of several machines: stride scheduling with weights, and caps.

After Waldspurger and Weihl, "Stride Scheduling" (MIT/LCS/TM-528): each machine has a virtual time that goes on by the work
it did divided by its weight, and of those that wait the one that is furthest behind has the next slice. A machine that
wakes from HLT is brought up to just behind the others (:data:`LAG`), so that a key press is handled at once, beside any
number of busy machines, but sleeping is no savings account. A cap is a leaky bucket over the host's time.

Work is what the vCPU says it is: ns of the host for a machine in real time, ns of code executed in virtual time, so that
how virtual machines share does not depend on the host's speed. The scheduler decides only who goes on when: it never
changes what a guest computes.

There are as many turns to have as guests may run at once: one, or one a thread. The invariant: while a machine waits for a turn
other ones have them all, and each gives its back when its slice ends, when it halts, when it waits in the middle of an
instruction, and when it ends.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from avmm.clock import MILLISECOND

WEIGHT: Final = 100
"""The weight of a machine that nobody gave another."""
LAG: Final = 5 * MILLISECOND
"""How far behind the others a machine may be when it wakes, in ns of work at weight 100."""
BURST: Final = 10 * MILLISECOND
"""Host time that a capped machine may use in one go after it was idle, ns."""
LONGEST_REST: Final = 500 * MILLISECOND
NEVER: Final = 1 << 63


class Schedule:
    """The vCPUs that share ``turns`` of the host's processors. ``now`` is the host's time in ns."""

    def __init__(self, now: Callable[[], int] = time.monotonic_ns, turns: int = 1) -> None:
        self.now = now
        self.turns = turns
        self.shares: list[Share] = []
        """Every machine's share, whether it runs or not."""
        self.holders: set[Share] = set()
        """Who has a turn."""
        self.front = 0.0
        """How far the machine that went on last had come, in virtual time."""
        self.outside = 0
        """For how much that guests wait for the event loop has something to do: packets and other work on its way."""
        self._ready: list[tuple[float, int, Share]] = []
        self._serials = 0

    def share(self, name: str, weight: int = WEIGHT, cap: float | None = None) -> Share:
        """Return a share for one more machine; ``cap`` is the part of one host processor it may use, such as 0.25."""
        share = Share(self, name, weight, cap)
        self.shares.append(share)
        return share

    @property
    def waiting(self) -> int:
        """How many machines wait for their turn."""
        return len(self._ready)

    def quiet(self) -> int:
        """Return until when, in host time, no halted machine goes on by itself."""
        return min((share.alarm for share in self.shares if share.alarm is not None), default=NEVER)

    def _first(self) -> Share | None:
        """Return who would be next, without those that have gone."""
        while self._ready:
            share = self._ready[0][2]
            if share._turn is not None and not share._turn.done():
                return share
            heapq.heappop(self._ready)
            share._turn = None
        return None

    def _queue(self, share: Share) -> Awaitable[None]:
        share._turn = asyncio.get_running_loop().create_future()
        self._serials += 1
        heapq.heappush(self._ready, (share.virtual, self._serials, share))
        return share._turn

    def _take(self, share: Share) -> bool:
        """Let a machine have a turn, or keep the one it has, if there is one to have."""
        if share not in self.holders:
            if len(self.holders) == self.turns:
                return False
            self.holders.add(share)
        return True

    def _give_back(self, share: Share) -> None:
        """A machine gives its turn back: the one furthest behind has it next."""
        self.holders.discard(share)
        following = self._first()
        if following is not None:
            heapq.heappop(self._ready)
            assert following._turn is not None
            following._turn.set_result(None)
            following._turn = None
            self.holders.add(following)
            self.front = max(self.front, following.virtual)


class Share:
    """One machine's part of the thread, as its vCPU uses it. Made by :meth:`Schedule.share`."""

    def __init__(self, schedule: Schedule, name: str, weight: int, cap: float | None) -> None:
        self.name = name
        self.weight = weight
        self.cap = cap
        self.virtual = 0.0
        """Virtual time: work done, divided by the weight."""
        self.work = 0
        """Work done so far, ns."""
        self.waits = 0
        """How often it had to let others go first."""
        self.rests = 0
        """How often the cap sent it to sleep."""
        self.alarm: int | None = None
        """When, in host time, the halted machine goes on; None when it does not halt, or waits for something else."""
        self.schedule = schedule
        self._turn: asyncio.Future[None] | None = None
        self._debt = 0.0
        self._debt_at = schedule.now()

    def charge(self, work: int, host_ns: int) -> None:
        """Account for a slice: ``work`` ns against the weight, ``host_ns`` of the host's time against the cap."""
        self.work += work
        self.virtual += work * WEIGHT / self.weight
        if self.cap is not None:
            now = self.schedule.now()
            # What was used up to now has been paid back in part by the time that passed since the last slice.
            self._debt = max(0.0, self._debt - (now - host_ns - self._debt_at)) + host_ns / self.cap - host_ns
            self._debt_at = now

    def next(self) -> Awaitable[None] | None:
        """The slice is over and another is wanted. None: after a turn of the event loop; otherwise await the result first."""
        schedule = self.schedule
        rest = self._rest()
        if rest:
            self.rests += 1
            self.leave()
            return asyncio.sleep(rest / 1e9)
        self._catch_up()
        first = schedule._first()
        if (first is None or self.virtual <= first.virtual) and schedule._take(self):
            schedule.front = max(schedule.front, self.virtual)
            return None
        self.waits += 1
        turn = schedule._queue(self)
        if self in schedule.holders or len(schedule.holders) < schedule.turns:
            schedule._give_back(self)
        return turn

    def wake(self) -> Awaitable[None] | None:
        """The machine starts, or was halted and goes on. None: at once; otherwise await the result first."""
        schedule = self.schedule
        self._catch_up()
        if schedule._take(self):
            return None
        if self.virtual <= schedule.front:
            return None  # without the turn: it queues for one at the end of its slice
        self.waits += 1
        return schedule._queue(self)

    def _catch_up(self) -> None:
        self.virtual = max(self.virtual, self.schedule.front - LAG)

    def leave(self) -> None:
        """The machine halts, or waits for something else than its turn: let others go on."""
        if self in self.schedule.holders:
            self.schedule._give_back(self)

    def open(self) -> None:
        """The machine starts, perhaps again."""
        if self not in self.schedule.shares:
            self.schedule.shares.append(self)

    def close(self) -> None:
        """The machine has ended."""
        if self._turn is not None:
            self._turn.cancel()
        if self in self.schedule.shares:
            self.schedule.shares.remove(self)
        self.leave()

    def _rest(self) -> int:
        """Return for how many ns the cap wants the machine to sleep."""
        if self.cap is None:
            return 0
        owed = self._debt - (self.schedule.now() - self._debt_at) - BURST * (1 / self.cap - 1)
        return min(LONGEST_REST, int(owed)) if owed > 0 else 0


def jain(amounts: Iterable[float]) -> float:
    """Return Jain's fairness index of what each got: 1 when all got the same, 1/n when one got everything.

    R. Jain, D. Chiu, W. Hawe, "A Quantitative Measure of Fairness and Discrimination", DEC-TR-301 (1984).
    """
    given = list(amounts)
    squares = sum(amount * amount for amount in given)
    return sum(given) ** 2 / (len(given) * squares) if squares else 1.0
