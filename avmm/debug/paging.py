"""Linear to guest-physical addresses, by a walk through the guest's page tables (Intel SDM vol. 3A, chapter 4).

The processor's own translation sets accessed bits, respects privilege and may fill its TLB; a debugger's look must leave no
trace and may see everything. The invariant: nothing but RAM is read, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from avmm.cpu.engine import Processor
from avmm.memory import PAGE

PG, PAE, PSE, LMA = 1 << 31, 1 << 5, 1 << 4, 0x400
PRESENT, LARGE = 1, 1 << 7
ADDRESS = 0x000F_FFFF_FFFF_F000

Read = Callable[[int, int], int | None]
"""``(guest-physical address, size)`` -> the little-endian number there, None where there is no RAM."""


class Format(NamedTuple):
    """A kind of page tables: the lowest address bit of each level, bits a level, bytes an entry, the largest page as a power of 2."""

    shifts: tuple[int, ...]
    bits: int
    size: int
    largest: int


FOUR_LEVEL = Format((39, 30, 21, 12), 9, 8, 30)
THREE_LEVEL = Format((30, 21, 12), 9, 8, 21)
TWO_LEVEL_PSE = Format((22, 12), 10, 4, 22)
TWO_LEVEL = Format((22, 12), 10, 4, 12)


def translate(cpu: Processor, read: Read, linear: int) -> int | None:
    """Return the guest-physical address that ``linear`` maps to, None where it is not mapped."""
    cr0, cr3, cr4 = (cpu.register(name) for name in ("cr0", "cr3", "cr4"))
    if not cr0 & PG:
        return linear & 0xFFFF_FFFF
    if cpu.register("efer") & LMA:
        canonical = linear >> 47 in (0, 0x1FFFF)
        return _walk(read, cr3 & ADDRESS, linear, FOUR_LEVEL) if canonical else None
    linear &= 0xFFFF_FFFF
    if cr4 & PAE:
        return _walk(read, cr3 & 0xFFFF_FFE0, linear, THREE_LEVEL)
    return _walk(read, cr3 & 0xFFFF_F000, linear, TWO_LEVEL_PSE if cr4 & PSE else TWO_LEVEL)


def _walk(read: Read, table: int, linear: int, kind: Format) -> int | None:
    for shift in kind.shifts:
        entry = read(table + (linear >> shift & (1 << kind.bits) - 1) * kind.size, kind.size)
        if entry is None or not entry & PRESENT:
            return None
        if shift == kind.shifts[-1] or (entry & LARGE and shift <= kind.largest):
            offset = linear & (1 << shift) - 1
            if shift == 22:  # PSE-36: bits 13-20 of the entry are bits 32-39 of the address
                return (entry & 0xFFC0_0000) | (entry >> 13 & 0xFF) << 32 | offset
            return (entry & ADDRESS & ~((1 << shift) - 1)) | offset
        table = entry & ADDRESS
    return None


def pieces(address: int, length: int) -> Iterator[tuple[int, int]]:
    """Cut a range where pages end: (address, length) of each piece."""
    while length > 0:
        piece = min(length, PAGE - address % PAGE)
        yield address, piece
        address, length = address + piece, length - piece
