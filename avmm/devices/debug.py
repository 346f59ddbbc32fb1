"""Where firmware talks to whoever built the machine: the Bochs debug port and the POST code port.

The debug port follows Bochs (port E9h) and SeaBIOS (port 402h): it reads E9h when there, and what is written is text. Port 80h is the
PC/AT's manufacturing diagnostic port.

Invariant: however much a guest writes, only the last mebibyte is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from avmm.devices.device import Board, Device, PortRange

MARK = 0xE9
KEEP = 1 << 20


class DebugConsole(Device):
    """A port that reads E9h and collects what is written: 402h for SeaBIOS, E9h for Bochs' guests (one device each)."""

    name = "debug"

    @dataclass(frozen=True)
    class State:
        """A saved console: the bytes kept, and how many there have been."""

        version: int = 1
        kept: bytes = b""
        total: int = 0

    def __init__(self, board: Board, port: int = 0x402) -> None:
        super().__init__(board)
        self.ports = (PortRange(port, 1),)
        self.on_output: Callable[[int], None] | None = None
        """Called with each byte, if set."""
        self.total = 0
        """Bytes written since power-on, kept or not."""
        self._kept = bytearray()

    def read(self, port: int, size: int) -> int:
        return MARK

    def write(self, port: int, size: int, value: int) -> None:
        kept = self._kept
        kept.append(value & 0xFF)
        self.total += 1
        if len(kept) >= 2 * KEEP:  # seldom, so that a byte stays cheap
            del kept[:-KEEP]
        if self.on_output is not None:
            self.on_output(value & 0xFF)

    def data(self) -> bytes:
        """Return the last bytes written, at most a mebibyte."""
        return bytes(self._kept[-KEEP:])

    def text(self) -> str:
        """Return :meth:`data` as text; bytes that are no UTF-8 become U+FFFD."""
        return self.data().decode("utf-8", "replace")

    def reset(self) -> None:
        """Keep the text: what was said before a reset is what one wants to read after it."""

    def save(self) -> State:
        return self.State(kept=self.data(), total=self.total)

    def restore(self, state: Any) -> None:
        if not isinstance(state, self.State) or state.version != 1 or len(state.kept) > KEEP:
            raise ValueError("this is not a debug console state of version 1")
        self._kept = bytearray(state.kept)
        self.total = state.total


class PostCode(Device):
    """Port 80h: the last code of the power-on self test, which reads back. Drivers also write here to pass a microsecond."""

    name = "post"
    ports = (PortRange(0x80, 1),)

    @dataclass(frozen=True)
    class State:
        """A saved port."""

        version: int = 1
        code: int = 0

    def __init__(self, board: Board) -> None:
        super().__init__(board)
        self.code = 0

    def read(self, port: int, size: int) -> int:
        return self.code

    def write(self, port: int, size: int, value: int) -> None:
        self.code = value & 0xFF

    def reset(self) -> None:
        self.code = 0

    def save(self) -> State:
        return self.State(code=self.code)

    def restore(self, state: Any) -> None:
        if not isinstance(state, self.State) or state.version != 1 or not 0 <= state.code <= 0xFF:
            raise ValueError("this is not a POST code state of version 1")
        self.code = state.code
