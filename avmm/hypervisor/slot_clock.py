"""The machine's clock as one device holds it: the same time, and a note of the timers it made (see avmm.hypervisor.slot)."""

from __future__ import annotations

from collections.abc import Callable

from avmm.clock import Clock, Timer


class SlotClock(Clock):
    """A ``Clock`` whose time and deadlines are those of ``clock``."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.virtual = clock.virtual
        self.timers: list[Timer] = []

    def now(self) -> int:
        """Machine time in ns since power-on."""
        return self._clock.now()

    def timer(self, callback: Callable[[], None]) -> Timer:
        """Return a timer of the machine's clock, not yet armed."""
        timer = self._clock.timer(callback)
        self.timers.append(timer)
        return timer

    def next_due(self) -> int | None:
        """Return the machine's earliest deadline."""
        return self._clock.next_due()

    def set_horizon(self, horizon: int) -> None:
        self._clock.set_horizon(horizon)

    def lift_horizon(self, horizon: int) -> None:
        self._clock.lift_horizon(horizon)
