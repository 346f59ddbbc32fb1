"""What a device model is, and the board it is plugged into.

A device knows its ports, its memory, its lines and the clock. It never knows whether it lives inside the hypervisor or
with the service OS (VM-H): the bus in front of it does. A register access is a plain function call that never awaits
and never raises for anything a guest can do; a guest's mistake gets the architected answer.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from avmm.clock import Clock, Timer
from avmm.devices.line import InterruptLine
from avmm.memory import GuestMemory

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PortRange:
    """``count`` consecutive I/O ports from ``first``. An access wider than ``width`` bytes is split by the bus, low byte first."""

    first: int
    count: int
    width: int = 1


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """``size`` bytes of guest-physical address space from ``first``, answered by the device. Both multiples of 4096."""

    first: int
    size: int


class Board(Protocol):
    """The machine as a device sees it: what it may use, and nothing else."""

    @property
    def clock(self) -> Clock:
        """Machine time."""

    @property
    def memory(self) -> GuestMemory:
        """Guest RAM, for DMA."""

    @property
    def random(self) -> random.Random:
        """The machine's seeded generator: devices that need chance take it from here, so runs can be repeated."""

    def line(self, number: int) -> InterruptLine:
        """Return the wire to interrupt input ``number``; several devices may share one wire only if they say so."""

    def start(
        self, work: Coroutine[Any, Any, T], done: Callable[[T | BaseException], None], latency: int = 0, *, inline: bool = False
    ) -> Timer | None:
        """Run ``work`` in the background and call ``done`` with its result, or the exception it raised.

        In real time ``done`` runs as soon as the work is finished; in virtual time exactly ``latency`` ns of machine time
        later (the machine waits for the host if it must), so that runs stay identical.

        With ``inline``, work that did not have to wait is handed to ``done`` before this returns, where time allows: in real
        time. Without it never, so that work which starts work again does not pile up on the stack.

        Returns the timer that will call ``done``, for who saves what is under way; in real time there is none.
        """

    def trace(self, event: str, **fields: object) -> None:
        """Record something worth knowing, rate-limited; never for the guest to see."""

    def reset(self, reason: str) -> None:
        """Ask for a machine reset (port 64h, CF9h, triple fault ...). Returns at once; it happens at the next boundary."""

    def power_off(self, reason: str) -> None:
        """Ask for power off (ACPI S5). Returns at once."""

    def map_ram(self, first: int, size: int, buffer: memoryview | None) -> None:
        """Let guest accesses to a range go straight to ``buffer`` without an exit, or with None to the device again.

        The range lies in one of the device's memory ranges; multiples of 4096. Takes effect for the next guest access.
        """

    def window(self, port: int, buffer: memoryview | None, *, out: bool = False, start: int = 0) -> None:
        """Serve ``port`` from (or into, with ``out``) ``buffer`` without an exit per access, from byte ``start`` on.

        When the last byte has gone the window closes and the owner's ``window_done(port)`` is called; a port access that
        does not fit what is left goes to the device as usual. None closes it early. :meth:`window_position` tells how far it got.
        """

    def window_position(self, port: int) -> int:
        """Return how many bytes of the port's open window have been moved, counted from the buffer's start."""


class Device:
    """A device model. Subclasses set ``name`` and their ranges, and override what they answer."""

    name: str = "device"
    ports: tuple[PortRange, ...] = ()
    memory: tuple[MemoryRange, ...] = ()

    def __init__(self, board: Board) -> None:
        self.board = board
        self.clock = board.clock

    def read(self, port: int, size: int) -> int | Awaitable[int]:
        """Answer IN from ``port``, ``size`` 1, 2 or 4 (never more than the range's width). All-ones where nothing is."""
        return (1 << (8 * size)) - 1

    def write(self, port: int, size: int, value: int) -> Awaitable[None] | None:
        """Take OUT of ``value`` to ``port``; 0 <= value < 2**(8*size)."""
        return None

    def plain(self, port: int, size: int, value: int | None = None) -> bool:
        """Whether reading ``port`` now, or writing ``value`` to it, only looks at a register or sets one.

        Nobody but later accesses of this device may be able to tell that a plain access was made: it starts nothing and raises no line,
        and takes effect with another access at the earliest. It may lower a line: lines end in the hypervisor. It is answered by
        :meth:`read` or :meth:`write`, with a number or None.
        """
        return False

    def read_memory(self, address: int, size: int) -> int | Awaitable[int]:
        """Answer a load of 1, 2, 4 or 8 bytes from guest-physical ``address`` in one of the memory ranges."""
        return (1 << (8 * size)) - 1

    def write_memory(self, address: int, size: int, value: int) -> Awaitable[None] | None:
        """Take a store to guest-physical ``address``."""
        return None

    def window_done(self, port: int) -> Awaitable[None] | None:
        """The data window this device opened on ``port`` has been used up."""
        return None

    def reset(self) -> None:
        """Go to the state after power-on or RESET#. Timers are cancelled, lines lowered."""

    def deadlines(self) -> list[Timer]:
        """Return the timers of a device whose board keeps no note of them (see avmm.hypervisor.slot).

        In an order that is the same after it was restored.
        """
        return []

    def save(self) -> object:
        """Return the state as a frozen dataclass with a ``version`` field; deadlines in ns of machine time."""
        raise NotImplementedError(f"{self.name} has no saved state")

    def restore(self, state: Any) -> None:
        """Continue from what :meth:`save` returned; ValueError with one clear sentence when it does not fit."""
        raise NotImplementedError(f"{self.name} has no saved state")
