"""Synthetic timers 0-3: deadlines in reference time that end in a message or, in direct mode, in an APIC vector.

After the Hypervisor Top Level Functional Specification, Timers (HV_X64_MSR_STIMER0_CONFIG, HvMessageTimerExpired). One-shot counts
are absolute reference time, periodic ones a period. The invariant: an armed deadline exists exactly while the timer is enabled.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from mypy_extensions import mypyc_attr

from avmm.clock import Clock
from avmm.hypervisor.hyperv.registers import REFERENCE_NS
from avmm.hypervisor.hyperv.synic import Synic

ENABLE: Final = 1
PERIODIC: Final = 2
AUTO_ENABLE: Final = 8
DIRECT: Final = 1 << 12
_WRITABLE: Final = 0x1FFF | 0xF << 16
TIMER_EXPIRED: Final = 0x80000010
_PAYLOAD = struct.Struct("<IIQQ")
SHORTEST_PERIOD: Final = 100  # 10 us: a guest cannot make the host spin
_FOREVER: Final = 1 << 62  # ns


@dataclass(frozen=True)
@mypyc_attr(native_class=False)
class TimerState:
    """Registers, and the deadline in ns of machine time."""

    config: int
    count: int
    due: int | None
    version: int = 1


class SyntheticTimer:
    """One of the four timers."""

    def __init__(self, index: int, clock: Clock, synic: Synic) -> None:
        self.index = index
        self.clock = clock
        self.synic = synic
        self.config = 0
        self.count = 0
        self.deadline = clock.timer(self._expired)

    def reset(self) -> None:
        """Disabled."""
        self.config = self.count = 0
        self.deadline.cancel()

    def write_config(self, value: int) -> bool:
        """STIMERn_CONFIG; False (#GP) on reserved bits."""
        if value & ~_WRITABLE or (value & DIRECT and value >> 4 & 0xFF < 16):
            return False
        if value & ENABLE and not value & DIRECT and not value >> 16:
            value &= ~ENABLE  # no SINT to tell
        self.config = value
        self._arm()
        return True

    def write_count(self, value: int) -> bool:
        """STIMERn_COUNT: zero disables, anything else enables if the configuration says so."""
        self.count = value
        if not value:
            self.config &= ~ENABLE
        elif self.config & AUTO_ENABLE:
            self.config |= ENABLE
        self._arm()
        return True

    def _arm(self) -> None:
        if not self.config & ENABLE or not self.count:
            self.deadline.cancel()
        elif self.config & PERIODIC:
            self.deadline.arm(min(self.clock.now() + max(self.count, SHORTEST_PERIOD) * REFERENCE_NS, _FOREVER))
        else:
            self.deadline.arm(min(self.count * REFERENCE_NS, _FOREVER))

    def _expired(self) -> None:
        now = self.clock.now()
        if self.config & PERIODIC:
            self._arm()
        else:
            self.config &= ~ENABLE
        if self.config & DIRECT:
            self.synic.apic.inject(self.config >> 4 & 0xFF)
            return
        sint = self.config >> 16 & 0xF
        # A guest that does not look gets one message of this timer, however often it expires. VMBus shares Linux's SINT:
        # that one of its messages waits must not cost a one-shot timer its only expiry.
        if not self.synic.waits(sint, TIMER_EXPIRED, struct.pack("<I", self.index)):
            expired = now // REFERENCE_NS if self.config & PERIODIC else self.count
            self.synic.post(sint, TIMER_EXPIRED, _PAYLOAD.pack(self.index, 0, expired, now // REFERENCE_NS))

    def save(self) -> TimerState:
        """Return the state."""
        return TimerState(self.config, self.count, self.deadline.due)

    def restore(self, state: TimerState) -> None:
        """Go on from a saved state. ValueError when no timer is in it."""
        if state.config & ~_WRITABLE or (state.due is not None and not 0 <= state.due <= _FOREVER):
            raise ValueError(f"a saved timer with configuration {state.config:#x}, due at {state.due}")
        self.config, self.count = state.config, state.count
        if state.due is None:
            self.deadline.cancel()
        else:
            self.deadline.arm(state.due)
