"""The switch: one virtualization or devirtualization of a device under its running guest.

A state machine without I/O of its own: OBSERVING, the guest goes on, trapped, until the I/O-sequence state machine says that the
switch may be made; HOLDING, the guest finds the device busy while the VMM's driver takes the device over or brings it back; then
ENDED, with a :class:`SwitchReport`. What it hears: accesses and interrupts through the :class:`Front`, the driver's results, the
bound's deadline, a machine reset, a cancellation. What kind of device it is about only its :class:`Handover` knows.

The invariant: it ends exactly once, and then the guest has a whole device: the new one, or the one before as if nothing had been.
"""

from __future__ import annotations

import enum
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from avmm.clock import MILLISECOND, SECOND
from avmm.devices.block import BlockError
from avmm.interpose.front import Front, Way, nothing
from avmm.interpose.handover import DeviceHangs, Handover, Place, Sequence, Unsuitable
from avmm.interpose.strand import Strand

BOUND = 2 * MILLISECOND
PATIENCE = 2 * SECOND


class Outcome(enum.Enum):
    """How a switch ended."""

    DONE = "done"
    DEFERRED = "done, but past the bound: accesses were logged and replayed"
    ROLLED_BACK = "rolled back: as it was before"
    FAILED = "failed: the physical device does not answer"
    CANCELLED = "cancelled: as it was before"


class _PastTheBound(Exception):
    """There is no time left, and nothing has been changed yet."""


@dataclass(frozen=True, slots=True)
class SwitchReport:
    """What one switch did. Times in ns."""

    device: str
    to: str
    when: str
    outcome: Outcome
    reason: str
    """Why it was not simply done; empty if it was."""
    stage: str
    """Where in a sequence the guest was."""
    word: int
    """The word of the transfer that was next."""
    bound_ns: int
    pause_ns: int
    """Host time during which the guest found the device busy."""
    waited_ns: int
    """The part of it in which the device was waited for; the rest is our own work, and what the host took from us for others."""
    machine_pause_ns: int
    """The pause as the guest's clocks show it; this is what the bound is about. Longer than that only if the outcome is DEFERRED."""
    observed_ns: int
    """Machine time during which accesses were trapped before, without a pause."""
    deferred: int
    """Accesses logged and replayed, those that waited among them."""
    modes: Any
    """What was carried from one device to the other, as its kind describes it; None when nothing was."""

    @property
    def done(self) -> bool:
        """Whether the device has changed hands."""
        return self.outcome in (Outcome.DONE, Outcome.DEFERRED)


class Step(enum.Enum):
    """Where a switch is."""

    OBSERVING = "observing"
    HOLDING = "holding"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for; times in ns of machine time."""

    virtualize: bool
    middle: bool = False
    bound: int = BOUND
    defer: bool = False
    patience: int = PATIENCE
    eager: int = 0
    """How long a middle switch waits for a sequence to be in the middle of, before it is made between two."""
    chosen: Callable[[Sequence], bool] = lambda sequence: True
    """An extra condition on the place in the sequence."""


class _Collector:
    """Keeps the garbage collector out of pauses: it can take longer than all of a switch."""

    def __init__(self) -> None:
        self._pauses = 0
        self._was_on = False

    def begin_pause(self) -> None:
        if not self._pauses:
            self._was_on = gc.isenabled()
            gc.disable()
        self._pauses += 1

    def end_pause(self) -> None:
        self._pauses -= 1
        if not self._pauses and self._was_on:
            gc.enable()


_collector = _Collector()


class Switch:
    """One switch; it begins at once and calls ``done`` with its report."""

    def __init__(self, front: Front[Any], handover: Handover, plan: Plan, done: Callable[[SwitchReport], None]) -> None:
        self.front, self.handover, self.plan = front, handover, plan
        self.driver = handover.driver
        self.step = Step.OBSERVING
        self._done = done
        self._clock = front.clock
        self._limit = self._clock.timer(self._time_is_up)
        self._strand: Strand | None = None
        self._committed = False
        self._late = False
        self._began = self._clock.now()
        self._held_at = self._held_host = 0
        self._bound: int | None = None
        self._deferred = 0
        self._place = Place("not looked at")
        front.on_reset = self._machine_reset
        front.on_urgent = self._urgent
        front.observe()
        front.on_access, self.driver.on_idle = self._consider, self._look
        self._eager = plan.eager if plan.middle else 0
        self._limit.arm(self._began + min(self._eager or plan.patience, plan.patience))
        self._look()

    # -- observing

    def _look(self) -> None:
        """Something has happened that was no access: the state machine may not know yet."""
        if self.step is Step.OBSERVING:
            self.front.look()
            self._consider()

    def _consider(self) -> None:
        if self.step is not Step.OBSERVING:
            return
        front, handover = self.front, self.handover
        if self._eager and front.mirror.resting:
            return
        may = handover.may_take if self.plan.virtualize else handover.may_give
        if may(middle=self.plan.middle) and self.plan.chosen(front.mirror):
            self._hold()

    def _hold(self) -> None:
        front = self.front
        self._place = self.handover.place(virtualized=not self.plan.virtualize)
        self.step = Step.HOLDING
        _collector.begin_pause()
        self._held_at, self._held_host = self._clock.now(), time.monotonic_ns()
        front.hold()
        if self.plan.virtualize:
            self.driver.attach()
            strand = Strand(self.handover.take(self._commit), self._taken)
        else:
            strand = Strand(self.handover.give(), self._given)
        if not strand.ended:
            self._strand = strand
            self._limit.arm(self._held_at + self.plan.bound)
            self._keep_bound()

    def _let_go(self) -> None:
        """End the pause that :meth:`_hold` began."""
        self._lift_bound()
        _collector.end_pause()

    def _keep_bound(self) -> None:
        """Let machine time stand still at the bound: the host may run others for longer than that."""
        if self._bound is None:
            self._bound = self._held_at + self.plan.bound
            self._clock.set_horizon(self._bound)

    def _lift_bound(self) -> None:
        """Let machine time go on."""
        if self._bound is not None:
            self._clock.lift_horizon(self._bound)
            self._bound = None

    def _now(self) -> int:
        """Machine time. It is looked whether it has to stand still when somebody asks; most switches are done before it matters."""
        now = self._clock.now()
        if now > self._held_at + self.plan.bound and self.step is Step.HOLDING and not self._late:
            self._keep_bound()
            now = self._clock.now()
        return now

    def _overdue(self) -> bool:
        """Whether the bound has passed, and the timer not yet: in virtual time it waits for the end of a block of code."""
        return self._now() > self._held_at + self.plan.bound

    def _commit(self) -> None:
        if self._overdue() and not self.plan.defer:
            raise _PastTheBound
        self._committed = True

    # -- the driver's results

    def _taken(self, result: Any) -> None:
        if self.step is not Step.HOLDING:
            return
        if isinstance(result, Unsuitable):
            self._observe_again()
        elif isinstance(result, BaseException):
            self._failed(result)
        else:
            self.handover.taken(result)
            self._release(Way.VIRTUALIZED)
            self._finish(Outcome.DONE)

    def _given(self, result: Any) -> None:
        if self.step is not Step.HOLDING:
            return
        if isinstance(result, BaseException):
            self._failed(result)
        elif self._overdue() and not self.plan.defer:
            self._failed(_PastTheBound())
        else:
            self.driver.detach()
            self.front.emulated.irq.connect(None)
            self.handover.given()
            self._release(Way.DIRECT)
            self._finish(Outcome.DONE)

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, _PastTheBound):
            self._back(Outcome.ROLLED_BACK, self._bound_passed())
            return
        self._back(Outcome.FAILED, str(error))
        if not isinstance(error, (DeviceHangs, BlockError)):  # not the device's fault, but ours
            raise error

    def _observe_again(self) -> None:
        """The place was not one to switch at after all: the guest goes on with the physical device."""
        self.driver.detach()
        self._let_go()
        self._strand = None
        self.step = Step.OBSERVING
        self._limit.arm(self._began + self.plan.patience)
        self.front.release(Way.OBSERVED)

    def _urgent(self) -> None:
        """The guest writes, while held, what may be all that can end the device's being busy: it must reach the device."""
        if self.step is Step.HOLDING and self.plan.virtualize and not self._committed:
            assert self._strand is not None
            self._strand.cancel()
            self._observe_again()

    def _release(self, way: Way) -> None:
        self._deferred = self.front.deferred
        self.front.release(way)

    # -- other events

    def _time_is_up(self) -> None:
        if self.step is Step.OBSERVING and self._eager:
            self._eager = 0
            self._limit.arm(self._began + self.plan.patience)
            self._look()
        elif self.step is Step.OBSERVING:
            self._back(Outcome.ROLLED_BACK, f"no point to switch at within {self.plan.patience / 1e6:g} ms")
        elif self.step is Step.HOLDING:
            if self.plan.defer or (self.plan.virtualize and self._committed):
                self._late = True
                self._lift_bound()
            else:
                self._back(Outcome.ROLLED_BACK, self._bound_passed())

    def _bound_passed(self) -> str:
        return f"not finished within the bound of {self.plan.bound / 1e6:g} ms"

    def cancel(self) -> bool:
        """Give up; False when it is too late for that and the switch will be finished."""
        if self.step is Step.ENDED or (self.step is Step.HOLDING and self.plan.virtualize and self._committed):
            return False
        self._back(Outcome.CANCELLED, "cancelled")
        return True

    def abandon(self) -> None:
        """The machine has ended: nothing that is waited for will happen any more."""
        if self.step is not Step.ENDED:
            self._back(Outcome.CANCELLED, "the machine went off")

    def _machine_reset(self) -> None:
        if self.step is not Step.ENDED:
            self._back(Outcome.ROLLED_BACK, "the machine was reset")

    def _back(self, outcome: Outcome, reason: str) -> None:
        """End it with the device where it was."""
        if self._strand is not None:
            self._strand.cancel()
        if self.plan.virtualize:
            self.driver.detach()
            self._release(Way.DIRECT)
        else:
            if self.step is Step.HOLDING:
                Strand(self.handover.reclaim(), _reclaimed)
            self._release(Way.VIRTUALIZED)
        self._finish(outcome, reason)

    def _finish(self, outcome: Outcome, reason: str = "") -> None:
        held = self.step is Step.HOLDING
        pause = time.monotonic_ns() - self._held_host if held else 0
        now, waited = self._now(), 0
        if held:
            waited = self._strand.waited_ns if self._strand is not None else 0
            if outcome is Outcome.DONE and (self._late or now > self._held_at + self.plan.bound):
                outcome = Outcome.DEFERRED
                reason = f"past the bound: {(now - self._held_at) / 1e6:.1f} ms, the device waited for {waited / 1e6:.1f} ms of it"
            self._let_go()
        self.step = Step.ENDED
        self._limit.cancel()
        self.front.on_reset = self.front.on_urgent = self.driver.on_idle = nothing
        report = SwitchReport(
            device=self.front.name,
            to="virtualized" if self.plan.virtualize else "direct",
            when="middle" if self.plan.middle else "between",
            outcome=outcome,
            reason=reason,
            stage=self._place.stage,
            word=self._place.word,
            bound_ns=self.plan.bound,
            pause_ns=pause,
            waited_ns=waited,
            machine_pause_ns=now - self._held_at if held else 0,
            observed_ns=(self._held_at if held else now) - self._began,
            deferred=self._deferred,
            modes=self.handover.modes() if outcome in (Outcome.DONE, Outcome.DEFERRED) else None,
        )
        self._done(report)


def _reclaimed(result: Any) -> None:
    """The device's own troubles show in the next request to it."""
    if isinstance(result, BaseException) and not isinstance(result, (DeviceHangs, BlockError)):
        raise result
