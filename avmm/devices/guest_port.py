"""The guest port: where the host talks with its own guest, about storage stacks.

Our own device, for our own guest. Port 5F0h, 16 bits wide, and IRQ 10: a read gives in bits 0-7 the mode that is wanted (FFh: none),
in bits 8-15 whether the steps of requests are (1: they are), and takes the interrupt back; a write says that the guest listens,
with the mode it is in (bits 0-7) and why the last change failed (bits 8-15, an error of its own, 0 if it did not). Port
5F4h, 32 bits wide, takes the steps: which one (bits 24-31), and the number of the request (bits 0-23).

The invariant: ``answered`` is false from :meth:`GuestPort.ask` to the guest's next word, or the machine's reset, and only then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from avmm.devices.device import Board, Device, PortRange

PORT = 0x5F0
STEPS = 0x5F4
IRQ = 10
NONE = 0xFF
MODES = ("emulated", "enlightened", "shunt-only")
"""How the guest reaches its disk, by the number that goes through the port."""


@dataclass(frozen=True)
class State:
    """Saved state. Steps are for whoever looks on; they are not in it."""

    wanted: int
    mode: int | None
    error: int
    answered: bool
    version: int = 1


class GuestPort(Device):
    """The port. ``ask(mode)`` and wait until ``answered``; after ``tell(True)`` the ``listener`` hears each step of each request."""

    name = "guest-port"
    ports = (PortRange(PORT, 1, 2), PortRange(STEPS, 1, 4))

    def __init__(self, board: Board) -> None:
        super().__init__(board)
        self._line = board.line(IRQ)
        self.listener: Callable[[int, int], None] | None = None
        self._telling = False
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
        self._call()

    def tell(self, steps: bool) -> None:
        """Let the guest tell of the steps that it takes with its requests, or not any more."""
        self._telling = steps
        if self.mode is not None:
            self._call()

    def _call(self) -> None:
        self._line.pulse()
        self._line.raise_()

    def read(self, port: int, size: int) -> int:
        if port != PORT:
            return (1 << 8 * size) - 1
        wanted, self._wanted = self._wanted, NONE
        self._line.lower()
        return (wanted | self._telling << 8) & (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        if port == PORT:
            self.mode, self.error, self.answered = value & 0xFF, value >> 8, True
        elif self.listener is not None:
            self.listener(value >> 24, value & 0xFFFFFF)

    def reset(self) -> None:
        self._line.lower()
        self._silent()

    def save(self) -> State:
        return State(self._wanted, self.mode, self.error, self.answered)

    def restore(self, state: Any) -> None:
        if not isinstance(state, State) or state.version != 1:
            raise ValueError("not a saved state of the guest port")
        self._wanted, self.mode, self.error, self.answered = state.wanted, state.mode, state.error, state.answered
        self._line.set(self._wanted != NONE)
