"""An ATA channel, as the switch needs it: what may be done when, and what is carried from one side to the other.

The invariant: what is decided here is decided by looking only.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from avmm.devices.ata.busmaster import START, EngineState
from avmm.devices.ata.channel import State
from avmm.devices.ata.drive import DiskModes
from avmm.devices.ata.registers import BSY, DRQ, NIEN, Phase
from avmm.interpose.ata.capture import Captured, capture, suitable
from avmm.interpose.ata.driver import AtaDriver
from avmm.interpose.ata.establish import establish, obstacle
from avmm.interpose.ata.front import AtaFront, EmulatedChannel
from avmm.interpose.ata.sequence import Stage
from avmm.interpose.handover import Place

STAGES = {
    Phase.DATA_IN: Stage.DATA_IN,
    Phase.DATA_OUT: Stage.DATA_OUT,
    Phase.DMA_IN: Stage.DMA,
    Phase.DMA_OUT: Stage.DMA,
    Phase.RESET: Stage.RESET,
}


@dataclass(frozen=True, slots=True)
class AtaModes:
    """What was carried from one channel to the other."""

    drives: tuple[DiskModes | None, ...]
    selected: int
    interrupts: bool
    """Whether nIEN is zero."""


class AtaHandover:
    """One channel's two sides."""

    def __init__(self, front: AtaFront, driver: AtaDriver) -> None:
        self.front = front
        self.driver = driver
        channel = front.emulated.channel
        assert isinstance(channel, EmulatedChannel)
        self.channel = channel
        """The emulated one."""
        self._shown: tuple[State, EngineState] | None = None
        """What the emulated device showed when :meth:`may_give` looked."""
        self._carried: Captured | State | None = None
        self.numbers = tuple(n for n, drive in enumerate(front.physical.channel.drives) if drive is not None)

    def may_take(self, *, middle: bool) -> bool:
        """Whether virtualizing may be begun now."""
        return suitable(self.driver, self.front.mirror, between=not middle)

    def may_give(self, *, middle: bool) -> bool:
        """Whether devirtualizing may."""
        engine = self.front.emulated.engine
        if not self.driver.idle or self.driver.broken:
            return False
        if not middle and (not self.front.mirror.over or engine.command & START):
            return False
        self._shown = state, moving = self.channel.save(), engine.save()
        return not obstacle(state, moving)

    def place(self, *, virtualized: bool) -> Place:
        """Where the guest is. The emulated device can be asked; the state machine may not have seen the command's beginning."""
        mirror = self.front.mirror
        if not virtualized:
            return Place(mirror.stage.value, mirror.word)
        assert self._shown is not None
        state, _ = self._shown
        stage = STAGES.get(state.phase, mirror.stage)
        return Place(stage.value, (state.start + state.position) // 2 if stage in (Stage.DATA_IN, Stage.DATA_OUT) else 0)

    def take(self, commit: Callable[[], None]) -> Coroutine[Any, Any, Captured]:
        """Take the physical channel over."""
        return capture(self.driver, self.front.mirror, self.numbers, commit)

    def taken(self, found: Captured) -> None:
        """Let the emulated channel continue."""
        emulated, channel = self.front.emulated, self.channel
        if found.transfer is None:
            channel.rest(found.drives, found.selected, found.control)
        else:
            channel.restore(found.transfer)
        channel.features_known = self.front.mirror.features is not None
        channel.set_features = self.driver.set_features
        emulated.engine.restore(found.engine)
        if found.reissue is not None:
            emulated.write(emulated.status, found.reissue)
        self._carried = found

    async def give(self) -> None:
        """Bring the physical channel into the emulated one's state."""
        assert self._shown is not None
        (state, engine), channel = self._shown, self.channel
        self._shown = None
        await establish(self.driver, state, engine, channel.code, features=channel.features_known)
        self._carried = state

    def modes(self) -> AtaModes:
        """What was carried over."""
        carried, self._carried = self._carried, None
        assert carried is not None
        drives = [drive.modes if drive is not None and isinstance(drive.modes, DiskModes) else None for drive in carried.drives]
        return AtaModes(tuple(drives), carried.selected, not carried.control & NIEN)

    def given(self) -> None:
        """The guest has the physical channel: nothing of the emulated one may still be under way."""
        self.channel.sequencer.abandon()

    async def reclaim(self) -> None:
        """Make the physical channel ready for the driver again."""
        driver = self.driver
        await driver.acquire()
        try:
            driver.control(0)
            if driver.alternate() & (BSY | DRQ):  # with the guest's command, which the emulated device has as well
                driver.soft_reset()
            for n in self.numbers:
                await driver.identify(n)
        finally:
            driver.release()
