"""The program that called a BIOS service: its registers, the FLAGS on its stack, and its memory by segment and offset.

Addresses are linear and go through the processor's paging, because a service may be called from virtual-8086 mode
(EMM386, a DOS box). The invariant: nothing here raises for what a guest does; what is not mapped reads as all-ones and
swallows writes.
"""

from __future__ import annotations

import struct
from typing import Protocol

from avmm.cpu.engine import Processor
from avmm.memory import PAGE, GuestMemory

CF = 0x0001
ZF = 0x0040
WAIT = 0x8000
"""Bit 15 of FLAGS, always 0 otherwise: tells the stub that the service is not finished (see rom.py)."""


class PortAccess(Protocol):
    """The machine's port bus as its firmware uses it: devices that answer at once, inside the hypervisor."""

    def read(self, port: int, size: int) -> int:
        """Return what IN from ``port`` would."""

    def write(self, port: int, size: int, value: int) -> None:
        """Do what OUT to ``port`` would."""


class Caller:
    """Registers and memory of the guest code that executed INT; valid while its stub's OUT is being handled."""

    __slots__ = ("cpu", "memory")

    def __init__(self, cpu: Processor, memory: GuestMemory) -> None:
        self.cpu = cpu
        self.memory = memory

    def __getitem__(self, register: str) -> int:
        return self.cpu.register(register)

    def __setitem__(self, register: str, value: int) -> None:
        self.cpu.set_register(register, value)

    # -- the frame that INT pushed: IP, CS, FLAGS

    def _frame(self) -> int:
        return self.cpu.segment("ss").base + (self.cpu.register("esp") & 0xFFFF)

    @property
    def flags(self) -> int:
        """The stacked FLAGS, which IRET gives back to the caller."""
        return int.from_bytes(self.read(self._frame() + 4, 2), "little")

    @flags.setter
    def flags(self, value: int) -> None:
        self.write(self._frame() + 4, value.to_bytes(2, "little"))

    def _flag(self, mask: int, on: bool) -> None:
        flags = self.flags
        self.flags = flags | mask if on else flags & ~mask

    def carry(self, on: bool) -> None:
        """Set or clear the caller's CF."""
        self._flag(CF, on)

    def zero(self, on: bool) -> None:
        """Set or clear the caller's ZF."""
        self._flag(ZF, on)

    def wait(self, on: bool) -> None:
        """Let the stub halt until the next interrupt and ask again, or let it return."""
        self._flag(WAIT, on)

    def return_to(self, segment: int, offset: int) -> None:
        """Let the stub's IRET go to ``segment:offset``."""
        self.write(self._frame(), struct.pack("<HH", offset, segment))

    # -- memory

    def address(self, segment: str, offset: str | int) -> int:
        """Return the linear address of ``segment:offset``, the offset a 16-bit register or a number."""
        low = self.cpu.register(offset) if isinstance(offset, str) else offset
        return self.cpu.segment(segment).base + (low & 0xFFFF)

    def _pieces(self, linear: int, length: int) -> list[tuple[int | None, int]]:
        pieces: list[tuple[int | None, int]] = []
        while length > 0:
            size = min(length, PAGE - linear % PAGE)
            physical = self.cpu.translate(linear)
            if pieces and physical is not None and (last := pieces[-1])[0] is not None and last[0] + last[1] == physical:
                pieces[-1] = (last[0], last[1] + size)
            else:
                pieces.append((physical, size))
            linear += size
            length -= size
        return pieces

    def read(self, linear: int, length: int) -> bytes:
        """Return ``length`` bytes at a linear address."""
        pieces = self._pieces(linear, length)
        return b"".join(b"\xff" * size if at is None else self.memory.read(at, size) for at, size in pieces)

    def write(self, linear: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` at a linear address."""
        view = memoryview(data)
        for at, size in self._pieces(linear, len(view)):
            if at is not None:
                self.memory.write(at, view[:size])
            view = view[size:]

    def unpack(self, layout: str, linear: int) -> tuple[int, ...]:
        """Return the fields of ``layout`` (a struct format) at a linear address."""
        return struct.unpack(layout, self.read(linear, struct.calcsize(layout)))
