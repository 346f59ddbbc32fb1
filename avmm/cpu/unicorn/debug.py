"""The debug unit of a Unicorn processor: breakpoints, watchpoints and steps, carried out by the shim (shim/debug.c).

What was set survives a reset of the processor, which is a new engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from avmm.cpu.engine import Cause, Exit, Watch

if TYPE_CHECKING:
    from avmm.cpu.unicorn.processor import UnicornProcessor

WATCHES = 8  # as many as shim/vcpu.h has room for
_READ, _WRITE = 1, 2


class UnicornDebugUnit:
    """A ``DebugUnit`` (see avmm.cpu.engine)."""

    def __init__(self, processor: UnicornProcessor) -> None:
        self._processor = processor
        self._breakpoints: list[int] = []
        self._watches: list[tuple[int, int, int]] = []

    def renew(self) -> None:
        """The processor has a new engine."""
        vcpu = self._processor.native_vcpu
        if self._breakpoints:
            vcpu.breakpoints(self._breakpoints)
        if self._watches:
            vcpu.watchpoints(self._watches)

    def resume(self) -> Exit:
        """Go on with the rest of the slice."""
        return self._processor.ended(self._processor.native_vcpu.resume())

    def step(self, inside: range = range(0), *, interrupts: bool = False) -> None:
        """Stop behind the next instruction, or behind the first that leaves ``inside``."""
        self._processor.begin()
        self._processor.native_vcpu.step_once(inside.start, inside.stop, interrupts)

    def forget_step(self) -> None:
        """Do not stop because of a step."""
        self._processor.native_vcpu.forget_step()

    def set_breakpoints(self, addresses: Iterable[int]) -> None:
        """Stop before the instructions at these linear addresses."""
        self._breakpoints = sorted(set(addresses))
        self._processor.native_vcpu.breakpoints(self._breakpoints)

    def set_watchpoints(self, watches: Sequence[Watch]) -> None:
        """Watch these bytes."""
        if len(watches) > WATCHES:
            raise ValueError(f"at most {WATCHES} watchpoints can be set")
        self._watches = [(watch.address, watch.length, _READ * watch.read | _WRITE * watch.write) for watch in watches]
        self._processor.native_vcpu.watchpoints(self._watches)

    def cause(self) -> tuple[Cause, int]:
        """Return why the processor was stopped last."""
        vcpu = self._processor.native_vcpu
        return Cause(vcpu.stop_reason), vcpu.stop_watch
