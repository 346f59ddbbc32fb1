"""The local APIC's timer: a counter computed from the clock, and one armed deadline while somebody hears its edges.

After the Intel SDM vol. 3A, section "APIC Timer": one-shot and periodic modes; one bus clock is one ns. TSC-deadline mode is not
offered and stands still. The invariant: the count never depends on when it was looked at, and a masked timer arms nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from avmm.clock import Clock
from avmm.devices.lapic_registers import LVT_DEADLINE, LVT_MASKED, LVT_PERIODIC

_DIVIDE = {0b0000: 2, 0b0001: 4, 0b0010: 8, 0b0011: 16, 0b1000: 32, 0b1001: 64, 0b1010: 128, 0b1011: 1}

SHORTEST_PERIOD = 10_000
"""ns between two interrupts of a periodic timer at least: a guest cannot make the host spin (one IRR bit holds only one anyway)."""


class ApicTimer:
    """Initial count, divide configuration and current count; ``entry`` is the LVT entry, which holds mode and mask."""

    @dataclass(frozen=True)
    class State:
        """Registers, and times in ns of machine time."""

        initial: int
        divide: int
        origin: int | None
        due: int | None
        version: int = 1

    def __init__(self, clock: Clock, expired: Callable[[], None]) -> None:
        self.clock = clock
        self.expired = expired
        self.timer = clock.timer(self._edge)
        self.reset()

    def reset(self) -> None:
        """Stopped and masked."""
        self.initial = 0
        self.divide = 0
        self._entry = LVT_MASKED
        self._origin: int | None = None  # when the count was at its initial value; None while stopped
        self.timer.cancel()

    def _length(self) -> int:
        return self.initial * _DIVIDE[self.divide]

    @property
    def count(self) -> int:
        """The current count register, from the clock."""
        if self._origin is None or self._entry & LVT_DEADLINE:
            return 0
        elapsed = (self.clock.now() - self._origin) // _DIVIDE[self.divide]
        if self._entry & LVT_PERIODIC:
            return self.initial - elapsed % self.initial
        return max(0, self.initial - elapsed)

    def write_entry(self, entry: int) -> None:
        """The LVT entry has changed."""
        if (self._entry ^ entry) & (LVT_PERIODIC | LVT_DEADLINE):
            self._settle()
        self._entry = entry
        self._arm()

    def _settle(self) -> None:
        """The mode is about to change: a finished one-shot stays finished, a period becomes one last countdown."""
        if self._origin is None:
            return
        elapsed = self.clock.now() - self._origin
        if self._entry & LVT_PERIODIC:
            self._origin += elapsed // self._length() * self._length()
        elif self._entry & LVT_DEADLINE or elapsed >= self._length():
            self._origin = None

    def write_initial(self, value: int) -> None:
        """Start counting down from ``value``; 0 stops."""
        self.initial = value
        now = self.clock.now()
        self._origin = now if value and not self._entry & LVT_DEADLINE else None
        self._arm(now)  # as of now: in real time a short count may be over before we get there

    def write_divide(self, value: int) -> None:
        """Count at another rate from the current count on."""
        count = self.count
        self.divide = value & 0xB
        if self._origin is not None:
            self._origin = self.clock.now() - (self.initial - count) * _DIVIDE[self.divide] if count else None
        self._arm()

    def _arm(self, now: int | None = None) -> None:
        """Arm for the next edge that somebody hears, after ``now`` if that was taken already."""
        self.timer.cancel()
        if self._origin is None or self._entry & (LVT_MASKED | LVT_DEADLINE):
            return
        length = self._length()
        if now is None:
            now = self.clock.now()
        if not self._entry & LVT_PERIODIC:
            if now < self._origin + length:
                self.timer.arm(self._origin + length)
        else:
            periods = (now - self._origin) // length + 1
            at_least = -(-SHORTEST_PERIOD // length)  # in whole periods, so that slow timers keep their phase exactly
            self.timer.arm(self._origin + (periods + at_least - 1) * length)

    def _edge(self) -> None:
        if self._entry & LVT_PERIODIC:
            self._arm()
        self.expired()

    def save(self) -> State:
        """Return the registers and the deadline; the LVT entry is the APIC's to save."""
        return self.State(self.initial, self.divide, self._origin, self.timer.due)

    def restore(self, state: State, entry: int) -> None:
        """Continue from ``state`` with the LVT entry ``entry``."""
        self.initial, self.divide, self._origin = state.initial, state.divide, state.origin
        self._entry = entry
        self.timer.cancel()
        if state.due is not None:
            self.timer.arm(state.due)
