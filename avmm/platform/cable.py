"""A cable: the board of a device that stands for real hardware, whose other end is held by the guest or by the VMM.

The device does not know who drives it. With the guest on the other end its data windows and memory are the processor's and an access
to them costs no exit; with the VMM there, the windows are moved by hand and the memory traps.

The invariant: a window, or a piece of memory, is open at exactly one end, and a window keeps its position when the ends change.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from avmm.devices.device import Board
from avmm.devices.line import InterruptLine
from avmm.memory import GuestMemory

T = TypeVar("T")


class Cable:
    """The ``Board`` of a device that can change hands."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.clock = board.clock
        self._lines: dict[int, InterruptLine] = {}
        self._windows: dict[int, tuple[memoryview, bool, int]] = {}
        self._maps: dict[int, tuple[int, memoryview]] = {}
        self._to_guest = False

    @property
    def memory(self) -> GuestMemory:
        """Memory, for DMA."""
        return self.board.memory

    @property
    def random(self) -> random.Random:
        """The machine's seeded generator."""
        return self.board.random

    def line(self, number: int) -> InterruptLine:
        """Return the device's own end of a wire; whoever drives the device connects the other."""
        return self._lines.setdefault(number, InterruptLine(number))

    def start(
        self, work: Coroutine[Any, Any, T], done: Callable[[T | BaseException], None], latency: int = 0, *, inline: bool = False
    ) -> None:
        """Run a device's work in the background; see ``Board.start``."""
        self.board.start(work, done, latency, inline=inline)

    def trace(self, event: str, **fields: object) -> None:
        """Record something worth knowing."""
        self.board.trace(event, **fields)

    def reset(self, reason: str) -> None:
        """Ask for a machine reset."""
        self.board.reset(reason)

    def power_off(self, reason: str) -> None:
        """Ask for power off."""
        self.board.power_off(reason)

    def map_ram(self, first: int, size: int, buffer: memoryview | None) -> None:
        """Map memory for the guest, as long as it drives the device."""
        if buffer is None:
            self._maps.pop(first, None)
        else:
            self._maps[first] = (size, buffer)
        if self._to_guest:
            self.board.map_ram(first, size, buffer)

    # -- data ports

    def window(self, port: int, buffer: memoryview | None, *, out: bool = False, start: int = 0) -> None:
        """Open or close a window at the end that drives the device."""
        if self._to_guest:
            self.board.window(port, buffer, out=out, start=start)
        if buffer is None:
            self._windows.pop(port, None)
        else:
            self._windows[port] = (buffer, out, start)

    def window_position(self, port: int) -> int:
        """Return how many bytes of the port's window have been moved."""
        if port not in self._windows:
            return 0
        return self.board.window_position(port) if self._to_guest else self._windows[port][2]

    def used_up(self, port: int) -> None:
        """The guest's processor has moved the last byte of a window and closed it."""
        self._windows.pop(port, None)

    def give_to(self, *, guest: bool) -> None:
        """Put the other end into the guest's hands, or the VMM's; open windows and memory go along."""
        if guest == self._to_guest:
            return
        for port, (buffer, out, start) in list(self._windows.items()):
            if guest:
                self.board.window(port, buffer, out=out, start=start)
            else:
                self._windows[port] = (buffer, out, self.board.window_position(port))
                self.board.window(port, None)
        for first, (size, memory) in self._maps.items():
            self.board.map_ram(first, size, memory if guest else None)
        self._to_guest = guest

    def open_window(self, port: int, *, out: bool) -> tuple[memoryview, int] | None:
        """Return the window and its position when one is open that way, in the VMM's hands."""
        window = self._windows.get(port)
        return None if window is None or window[1] is not out else (window[0], window[2])

    def moved(self, port: int, position: int) -> bool:
        """Take note of moved bytes; True when the window is used up, and so closed."""
        buffer, out, _ = self._windows[port]
        if position >= len(buffer):
            del self._windows[port]
            return True
        self._windows[port] = (buffer, out, position)
        return False
