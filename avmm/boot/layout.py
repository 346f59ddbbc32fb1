"""What lies where in a machine started without firmware: the memory map a loader reports, and flat segments.

The map follows INT 15h, AX=E820h (ACPI specification, "System Address Map Interfaces"). The invariant: ranges are
ascending, do not overlap, and only RAM that nobody else uses is of type USABLE.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from avmm.boot.errors import BootError
from avmm.cpu.engine import CpuState, Segment
from avmm.memory import GuestMemory

USABLE = 1
RESERVED = 2

EBDA = 0x9FC00
BIOS_AREA = 0xE0000
ONE_MIB = 0x100000
SMALLEST_RAM = 2 * ONE_MIB
LARGEST_RAM = 0xE0000000  # above are PCI, VMBus and APIC memory

CODE = 0x10
DATA = 0x18
TASK = 0x20
CODE32 = Segment(CODE, 0, 0xFFFFFFFF, 0xC9B)
CODE64 = Segment(CODE, 0, 0xFFFFFFFF, 0xA9B)
DATA32 = Segment(DATA, 0, 0xFFFFFFFF, 0xC93)
NO_LDT = Segment(0, 0, 0, 0x82)


def memory_map(ram_size: int) -> list[tuple[int, int, int]]:
    """Return (base, length, type) for a PC with ``ram_size`` bytes of RAM from 0: EBDA and BIOS area are reserved."""
    return [
        (0, EBDA, USABLE),
        (EBDA, 0xA0000 - EBDA, RESERVED),
        (BIOS_AREA, ONE_MIB - BIOS_AREA, RESERVED),
        (ONE_MIB, ram_size - ONE_MIB, USABLE),
    ]


def check_ram(memory: GuestMemory, ram_size: int) -> None:
    """BootError when there is not enough RAM to start anything, or less than is claimed."""
    if ram_size > memory.size:
        raise BootError(f"the machine has {memory.size >> 20} MiB of RAM, not {ram_size >> 20} MiB")
    if ram_size < SMALLEST_RAM:
        raise BootError(f"{ram_size} bytes of RAM are too few to start a kernel; it takes {SMALLEST_RAM >> 20} MiB")
    if ram_size > LARGEST_RAM:
        raise BootError(f"{ram_size >> 20} MiB of RAM do not fit below the device memory; at most {LARGEST_RAM >> 20} MiB do")


def gdt(long_mode: bool) -> bytes:
    """Return a descriptor table with flat CODE and DATA segments, and an (unusable) TASK entry."""
    code = 0x00AF9B000000FFFF if long_mode else 0x00CF9B000000FFFF
    return struct.pack("<6Q", 0, 0, code, 0x00CF93000000FFFF, 0x0000890000000067, 0)


def flat_start(code: Segment, tables: int, **rest: Any) -> CpuState:
    """Return a state with ``code`` and flat data segments from the descriptor table (see :func:`gdt`) at ``tables``, no IDT, no LDT."""
    return CpuState(
        cs=code, ds=DATA32, es=DATA32, ss=DATA32, fs=DATA32, gs=DATA32,
        gdtr=(tables, len(gdt(False)) - 1), idtr=(0, 0), ldtr=NO_LDT, **rest,
    )  # fmt: skip


def place(address: int, data: bytes, zeros: int, memory: GuestMemory) -> None:
    """Store ``data`` and ``zeros`` bytes of zero after it."""
    memory.write(address, data)
    memory.write(address + len(data), bytes(zeros))


def overlap(ranges: Iterable[tuple[int, int]], start: int, end: int) -> bool:
    """Return whether [start, end) touches any of the (start, end) ``ranges``."""
    return any(first < end and start < last for first, last in ranges)
