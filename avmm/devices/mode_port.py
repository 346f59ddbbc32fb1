"""The mode port: where the host tells a guest with two storage stacks which one to use, and hears what came of it.

Our own device, for our own guest: port 5F0h, 16 bits wide, and IRQ 10. A read gives the mode that is wanted, FFh if none is, and
takes the interrupt back. A write says that the guest listens: bits 0-7 are the mode it is in, bits 8-15 why the last change
failed (an error of its own, 0 if it did not).

The invariant: ``answered`` is true from the guest's first word after :meth:`ModePort.ask` on, and only then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from avmm.devices.device import Board, Device, PortRange

PORT = 0x5F0
IRQ = 10
NONE = 0xFF


@dataclass(frozen=True)
class State:
    """Saved state."""

    wanted: int
    mode: int | None
    error: int
    answered: bool
    version: int = 1


class ModePort(Device):
    """The port. ``ask(mode)`` and wait until ``answered``."""

    name = "mode-port"
    ports = (PortRange(PORT, 1, 2),)

    def __init__(self, board: Board) -> None:
        super().__init__(board)
        self._line = board.line(IRQ)
        self._silent()

    def _silent(self) -> None:
        self._wanted = NONE
        self.mode: int | None = None
        """The mode the guest said it is in, None while nobody has said a word."""
        self.error = 0
        """Why its last change failed."""
        self.answered = True

    def ask(self, mode: int) -> None:
        """Want the guest to be in ``mode``."""
        self._wanted, self.answered = mode, False
        self._line.pulse()
        self._line.raise_()

    def read(self, port: int, size: int) -> int:
        wanted, self._wanted = self._wanted, NONE
        self._line.lower()
        return wanted

    def write(self, port: int, size: int, value: int) -> None:
        self.mode, self.error, self.answered = value & 0xFF, value >> 8, True

    def reset(self) -> None:
        self._line.lower()
        self._silent()

    def save(self) -> State:
        return State(self._wanted, self.mode, self.error, self.answered)

    def restore(self, state: Any) -> None:
        if not isinstance(state, State) or state.version != 1:
            raise ValueError("not a saved state of the mode port")
        self._wanted, self.mode, self.error, self.answered = state.wanted, state.mode, state.error, state.answered
        self._line.set(self._wanted != NONE)
