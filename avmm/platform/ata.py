"""An ATA channel on a cable whose other end is held by the guest, or by the VMM.

:class:`AtaLink` is a channel with its bus master engine, used for two things: the *physical* controller, which stands for real
hardware (ATA/ATAPI-6, T13/1410D; SFF-8038i) over a backing file, and the VMM's emulation of it. The channel does not know
who drives it; only its :class:`Cable` does. With the guest on the other end the data port's windows are the processor's and
an access costs no exit; with the VMM there, :meth:`AtaLink.read` and :meth:`AtaLink.write` move each word.

The invariant: a data window is open at exactly one end, and keeps its position when the ends change.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from avmm.devices.ata.busmaster import Engine
from avmm.devices.ata.channel import AtaChannel
from avmm.devices.ata.drive import Drive
from avmm.devices.ata.registers import COMMAND, COMMAND_BLOCK, CONTROL_BLOCK, INTERRUPT
from avmm.devices.device import Board
from avmm.devices.line import InterruptLine
from avmm.memory import GuestMemory

T = TypeVar("T")


class Cable:
    """The ``Board`` of a channel that can change hands."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.clock = board.clock
        self._lines: dict[int, InterruptLine] = {}
        self._windows: dict[int, tuple[memoryview, bool, int]] = {}
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
        """Return the channel's own end of a wire; whoever drives the channel connects the other."""
        return self._lines.setdefault(number, InterruptLine(number))

    def start(self, work: Coroutine[Any, Any, T], done: Callable[[T | BaseException], None], latency: int = 0) -> None:
        """Run a channel's work in the background; see ``Board.start``."""
        self.board.start(work, done, latency)

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
        """Map memory; an ATA channel has none."""
        self.board.map_ram(first, size, buffer)

    # -- the data port

    def window(self, port: int, buffer: memoryview | None, *, out: bool = False, start: int = 0) -> None:
        """Open or close a window at the end that drives the channel."""
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
        """Put the other end into the guest's hands, or the VMM's; open windows go along."""
        if guest == self._to_guest:
            return
        for port, (buffer, out, start) in list(self._windows.items()):
            if guest:
                self.board.window(port, buffer, out=out, start=start)
            else:
                self._windows[port] = (buffer, out, self.board.window_position(port))
                self.board.window(port, None)
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


class AtaLink:
    """A channel, its bus master engine and the cable to them. ``read`` and ``write`` are for the VMM's end."""

    def __init__(
        self,
        cable: Cable,
        number: int,
        drives: Sequence[Drive | None],
        channel: type[AtaChannel] = AtaChannel,
        engine: Engine | None = None,
    ) -> None:
        self.cable = cable
        self.number = number
        self.channel = channel(cable, number, drives)
        self.data = COMMAND_BLOCK[number]
        """The data port, and the first of the command block."""
        self.status = self.data + COMMAND
        self.control = CONTROL_BLOCK[number]
        self.irq = cable.line(INTERRUPT[number])
        self.engine = engine or Engine(cable.memory, self.channel.sequencer.dma_ready)
        self.join()

    def join(self) -> None:
        """Let channel and engine work with each other."""
        self.engine.on_start = self.channel.sequencer.dma_ready
        self.channel.sequencer.engine = self.engine

    def read(self, port: int, size: int = 1) -> int:
        """IN from ``port``, as the VMM or as the guest through it."""
        window = self.cable.open_window(port, out=False)
        if window is not None and window[1] + size <= len(window[0]):
            buffer, at = window
            value = int.from_bytes(buffer[at : at + size], "little")
            self._moved(port, at + size)
            return value
        return self.channel.read(port, size)

    def write(self, port: int, value: int, size: int = 1) -> None:
        """OUT to ``port``."""
        window = self.cable.open_window(port, out=True)
        if window is not None and window[1] + size <= len(window[0]):
            buffer, at = window
            buffer[at : at + size] = value.to_bytes(size, "little")
            self._moved(port, at + size)
            return
        self.channel.write(port, size, value)

    def read_words(self, count: int) -> bytes:
        """REP INSW: ``count`` bytes, an even number, from the data port."""
        parts: list[bytes] = []
        while count > 0:
            window = self.cable.open_window(self.data, out=False)
            if window is None:
                parts.append(self.channel.read(self.data, 2).to_bytes(2, "little"))
                count -= 2
                continue
            buffer, at = window
            size = min(count, len(buffer) - at)
            parts.append(bytes(buffer[at : at + size]))
            count -= size
            self._moved(self.data, at + size)
        return b"".join(parts)

    def write_words(self, data: bytes | bytearray | memoryview) -> None:
        """REP OUTSW: an even number of bytes to the data port."""
        at = 0
        while at < len(data):
            window = self.cable.open_window(self.data, out=True)
            if window is None:
                self.channel.write(self.data, 2, int.from_bytes(data[at : at + 2], "little"))
                at += 2
                continue
            buffer, start = window
            size = min(len(data) - at, len(buffer) - start)
            buffer[start : start + size] = data[at : at + size]
            at += size
            self._moved(self.data, start + size)

    def _moved(self, port: int, position: int) -> None:
        if self.cable.moved(port, position):
            self.channel.window_done(port)
