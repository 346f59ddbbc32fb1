"""The switch: one virtualization or devirtualization of an ATA channel under its running guest.

A state machine without I/O of its own: OBSERVING, the guest goes on, trapped, until the I/O-sequence state machine says that the
switch may be made; HOLDING, the guest finds the device busy while the VMM's driver takes the device over or brings it back; then
ENDED, with a :class:`SwitchReport`. What it hears: accesses and interrupts through the :class:`Front`, the driver's results, the
bound's deadline, a machine reset, a cancellation.

The invariant: it ends exactly once, and then the guest has a whole device: the new one, or the one before as if nothing had been.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from avmm.clock import MILLISECOND, SECOND
from avmm.devices.ata.busmaster import START
from avmm.devices.ata.channel import State
from avmm.devices.ata.drive import DiskModes
from avmm.devices.ata.registers import DRQ, NIEN, Phase
from avmm.devices.block import BlockError
from avmm.interpose.capture import Captured, Unsuitable, capture, suitable
from avmm.interpose.driver import AtaDriver, DeviceHangs
from avmm.interpose.establish import establish, obstacle
from avmm.interpose.front import EmulatedChannel, Front, Way
from avmm.interpose.sequence import AtaSequence, Stage
from avmm.interpose.strand import Strand

BOUND = 2 * MILLISECOND
PATIENCE = 2 * SECOND


STAGES = {
    Phase.DATA_IN: Stage.DATA_IN,
    Phase.DATA_OUT: Stage.DATA_OUT,
    Phase.DMA_IN: Stage.DMA,
    Phase.DMA_OUT: Stage.DMA,
    Phase.RESET: Stage.RESET,
}


class Outcome(enum.Enum):
    """How a switch ended."""

    DONE = "done"
    DEFERRED = "done, but past the bound: accesses were logged and replayed"
    ROLLED_BACK = "rolled back: as it was before"
    FAILED = "failed: the physical device does not answer"
    CANCELLED = "cancelled: as it was before"


@dataclass(frozen=True, slots=True)
class Modes:
    """What was carried from one device to the other."""

    drives: tuple[DiskModes | None, ...]
    selected: int
    interrupts: bool
    """Whether nIEN is zero."""


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
    pause_ns: int
    """Host time during which the guest found the device busy."""
    machine_pause_ns: int
    observed_ns: int
    """Machine time during which accesses were trapped before, without a pause."""
    deferred: int
    """Accesses logged and replayed, those that waited among them."""
    modes: Modes | None

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
    chosen: Callable[[AtaSequence], bool] = lambda mirror: True
    """An extra condition on the place in the sequence."""


class Switch:
    """One switch; it begins at once and calls ``done`` with its report."""

    def __init__(self, front: Front, driver: AtaDriver, plan: Plan, done: Callable[[SwitchReport], None]) -> None:
        self.front, self.driver, self.plan = front, driver, plan
        self.step = Step.OBSERVING
        self._done = done
        self._clock = front.clock
        self._limit = self._clock.timer(self._time_is_up)
        self._strand: Strand | None = None
        self._committed = False
        self._late = False
        self._began = self._clock.now()
        self._held_at = self._held_host = 0
        self._deferred = 0
        self._place: tuple[Stage, int] = (Stage.UNKNOWN, 0)
        front.on_reset = self._machine_reset
        front.on_control = self._device_control
        front.observe()
        front.on_access = driver.on_idle = self._consider
        self._eager = plan.eager if plan.middle else 0
        self._limit.arm(self._began + min(self._eager or plan.patience, plan.patience))
        front.look()
        self._consider()

    # -- observing

    def _consider(self) -> None:
        if self.step is not Step.OBSERVING:
            return
        front = self.front
        front.look()
        if self._eager and front.mirror.stage in (Stage.IDLE, Stage.SETUP):
            return
        ready = self._may_take() if self.plan.virtualize else self._may_give()
        if ready and self.plan.chosen(front.mirror):
            self._hold()

    def _may_take(self) -> bool:
        return suitable(self.driver, self.front.mirror, between=not self.plan.middle)

    def _may_give(self) -> bool:
        channel, engine, mirror = self.front.emulated.channel, self.front.emulated.engine, self.front.mirror
        if not self.driver.idle or self.driver.broken:
            return False
        if not self.plan.middle and (not mirror.over or engine.command & START):
            return False
        return not obstacle(channel.save(), engine.save())

    def _hold(self) -> None:
        front = self.front
        self.step = Step.HOLDING
        self._held_at, self._held_host = self._clock.now(), time.monotonic_ns()
        self._place = (front.mirror.stage, front.mirror.word) if self.plan.virtualize else self._emulated_place()
        front.hold()
        self._limit.arm(self._held_at + self.plan.bound)
        if self.plan.virtualize:
            self.driver.attach()
            present = [drive is not None for drive in front.physical.channel.drives]
            self._strand = Strand(capture(self.driver, front.mirror, present, self._commit), self._captured)
        else:
            channel = front.emulated.channel
            assert isinstance(channel, EmulatedChannel)
            state = channel.save()
            work = establish(self.driver, state, front.emulated.engine.save(), channel.code, features=channel.features_known)
            self._strand = Strand(work, lambda result: self._established(state, result))

    def _emulated_place(self) -> tuple[Stage, int]:
        """The emulated device can be asked; the state machine may not have seen the command's beginning."""
        state = self.front.emulated.channel.save()
        stage = STAGES.get(state.phase, self.front.mirror.stage)
        return stage, (state.start + state.position) // 2 if stage in (Stage.DATA_IN, Stage.DATA_OUT) else 0

    def _commit(self) -> None:
        self._committed = True

    # -- the driver's results

    def _captured(self, result: Any) -> None:
        if self.step is not Step.HOLDING:
            return
        if isinstance(result, Captured):
            emulated = self.front.emulated
            assert isinstance(emulated.channel, EmulatedChannel)
            emulated.channel.restore(result.state)
            emulated.channel.features_known = self.front.mirror.features is not None
            emulated.channel.set_features = self.driver.set_features
            emulated.engine.restore(result.engine)
            self._release(Way.VIRTUALIZED, result.reissue)
            self._finish(Outcome.DEFERRED if self._late else Outcome.DONE, modes=_modes(result.state))
        elif isinstance(result, Unsuitable):
            self._observe_again()
        else:
            self._back(Outcome.FAILED, str(result))
            if not isinstance(result, Exception) or not _expected(result):
                raise result

    def _observe_again(self) -> None:
        """The place was not one to switch at after all: the guest goes on with the physical device."""
        self.driver.detach()
        self.step = Step.OBSERVING
        self._limit.arm(self._began + self.plan.patience)
        self.front.release(Way.OBSERVED)

    def _device_control(self) -> None:
        """The guest writes device control while held; when the device is busy because of SRST only that can end it."""
        if self.step is Step.HOLDING and self.plan.virtualize and not self._committed:
            assert self._strand is not None
            self._strand.cancel()
            self._observe_again()

    def _established(self, state: State, result: Any) -> None:
        if self.step is not Step.HOLDING:
            return
        if isinstance(result, BaseException):
            self._back(Outcome.FAILED, str(result))
            if not _expected(result):
                raise result
            return
        self.driver.detach()
        self.front.emulated.irq.connect(None)
        self.front.emulated.channel.sequencer.abandon()
        self._release(Way.DIRECT)
        self._finish(Outcome.DEFERRED if self._late else Outcome.DONE, modes=_modes(state))

    def _release(self, way: Way, reissue: int | None = None) -> None:
        self._deferred = self.front.deferred
        if reissue is not None:
            self.front.emulated.write(self.front.emulated.status, reissue)
        self.front.release(way)

    # -- other events

    def _time_is_up(self) -> None:
        if self.step is Step.OBSERVING and self._eager:
            self._eager = 0
            self._limit.arm(self._began + self.plan.patience)
            self._consider()
        elif self.step is Step.OBSERVING:
            self._back(Outcome.ROLLED_BACK, f"no point to switch at within {self.plan.patience / 1e6:g} ms")
        elif self.step is Step.HOLDING:
            if self.plan.defer or (self.plan.virtualize and self._committed):
                self._late = True
            else:
                self._back(Outcome.ROLLED_BACK, f"not finished within the bound of {self.plan.bound / 1e6:g} ms")

    def cancel(self) -> bool:
        """Give up; False when it is too late for that and the switch will be finished."""
        if self.step is Step.ENDED or (self.step is Step.HOLDING and self.plan.virtualize and self._committed):
            return False
        self._back(Outcome.CANCELLED, "cancelled")
        return True

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
                Strand(_reclaim(self.driver, self.front), lambda result: None)
            self._release(Way.VIRTUALIZED)
        self._finish(outcome, reason)

    def _finish(self, outcome: Outcome, reason: str = "", modes: Modes | None = None) -> None:
        held = self.step is Step.HOLDING
        self.step = Step.ENDED
        self._limit.cancel()
        self.front.on_reset = self.front.on_control = self.driver.on_idle = _nothing
        now = self._clock.now()
        report = SwitchReport(
            device=self.front.name,
            to="virtualized" if self.plan.virtualize else "direct",
            when="middle" if self.plan.middle else "between",
            outcome=outcome,
            reason=reason or ("past the bound" if self._late else ""),
            stage=self._place[0].value,
            word=self._place[1],
            pause_ns=time.monotonic_ns() - self._held_host if held else 0,
            machine_pause_ns=now - self._held_at if held else 0,
            observed_ns=(self._held_at if held else now) - self._began,
            deferred=self._deferred,
            modes=modes,
        )
        self._done(report)


async def _reclaim(driver: AtaDriver, front: Front) -> None:
    """The guest stays with the emulated device: make the physical one ready for the driver again."""
    await driver.acquire()
    try:
        driver.link.write(driver.link.control, 0)
        if driver.alternate() & DRQ:
            driver.soft_reset()
        for n, drive in enumerate(front.physical.channel.drives):
            if drive is not None:
                await driver.identify(n)
    finally:
        driver.release()


def _expected(error: BaseException) -> bool:
    """Whether an error is the device's, and not a bug of ours."""
    return isinstance(error, (DeviceHangs, BlockError))


def _modes(state: State) -> Modes:
    drives = tuple(drive.modes if drive is not None and isinstance(drive.modes, DiskModes) else None for drive in state.drives)
    return Modes(drives, state.selected, not state.control & NIEN)


def _nothing() -> None:
    pass
