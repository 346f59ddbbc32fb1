"""What a PC BIOS expects in CMOS memory, in the convention of the IBM PC/AT extended by Bochs and SeaBIOS.

Layout: IBM PC/AT Technical Reference, "Real-Time Clock/CMOS RAM Information" (10h-2Fh); 30h-31h, 34h-35h, 38h, 3Dh, 39h, 5Bh-5Dh
and 5Fh as SeaBIOS reads them. Every function takes the 128 bytes and leaves the rest of them alone.

The invariant: 2Eh-2Fh hold the sum of bytes 10h-2Dh after each of these functions.
"""

from __future__ import annotations

from collections.abc import Sequence

FLOPPY_TYPES, DISK_TYPES, EQUIPMENT, BASE_MEMORY, EXTENDED_MEMORY = 0x10, 0x12, 0x14, 0x15, 0x17
DISK_EXTENDED_TYPES, DISK_GEOMETRY, CHECKSUM = 0x19, (0x1B, 0x24), 0x2E
EXTENDED_MEMORY_POST, MEMORY_ABOVE_16M, TRANSLATION = 0x30, 0x34, 0x39
BOOT_THIRD, BOOT_FIRST, MEMORY_ABOVE_4G, CPUS = 0x38, 0x3D, 0x5B, 0x5F

KIB, MIB = 1 << 10, 1 << 20
USER_DISK = 47
"""The type number for a disk whose geometry is in CMOS itself."""
LBA_TRANSLATION = 1
BOOT = {"floppy": 1, "disk": 2, "cdrom": 3, "network": 4}
FPU, MOUSE, FLOPPY_PRESENT = 0x02, 0x04, 0x01
NO_SIGNATURE_CHECK = 0x01
"""38h: boot a floppy whether or not it ends in 55h AAh, as a PC does."""


def set_memory(cells: bytearray, size: int, high: int = 0) -> None:
    """Describe ``size`` bytes of RAM from 0 (below 4 GiB) and ``high`` bytes from 4 GiB."""
    _store(cells, BASE_MEMORY, 2, min(size // KIB, 640))
    extended = min(max(size - MIB, 0) // KIB, 0xFFFF)
    _store(cells, EXTENDED_MEMORY, 2, extended)
    _store(cells, EXTENDED_MEMORY_POST, 2, extended)
    _store(cells, MEMORY_ABOVE_16M, 2, min(max(size - 16 * MIB, 0) // (64 * KIB), 0xFFFF))
    _store(cells, MEMORY_ABOVE_4G, 3, min(high // (64 * KIB), 0xFFFFFF))
    _seal(cells)


def set_cpus(cells: bytearray, cpus: int) -> None:
    """Say how many processors there are besides the first."""
    cells[CPUS] = min(max(cpus - 1, 0), 0xFF)


def set_floppies(cells: bytearray, types: Sequence[int]) -> None:
    """Say which drives A: and B: are: 0 none, 1 360 KB, 2 1.2 MB, 3 720 KB, 4 1.44 MB, 5 2.88 MB."""
    first, second = (*types, 0, 0)[:2]
    cells[FLOPPY_TYPES] = (first & 15) << 4 | second & 15
    drives = bool(first) + bool(second)
    # Display bits 00: the adapter has its own BIOS (EGA, VGA).
    cells[EQUIPMENT] = FPU | MOUSE | (FLOPPY_PRESENT | drives - 1 << 6 if drives else 0)
    _seal(cells)


def set_disks(cells: bytearray, geometries: Sequence[tuple[int, int, int] | None]) -> None:
    """Say the (cylinders, heads, sectors per track) of the first two hard disks; None where there is none."""
    cells[DISK_TYPES] = cells[TRANSLATION] = 0
    for drive, geometry in enumerate((*geometries, None, None)[:2]):
        cells[DISK_EXTENDED_TYPES + drive] = USER_DISK if geometry else 0
        at = DISK_GEOMETRY[drive]
        cells[at : at + 9] = bytes(9)
        if geometry:
            cylinders, heads, sectors = geometry
            cylinders = min(cylinders, 0xFFFF)
            cells[DISK_TYPES] |= 0x0F if drive else 0xF0
            cells[TRANSLATION] |= LBA_TRANSLATION << 2 * drive
            _store(cells, at, 2, cylinders)
            cells[at + 2] = heads & 0xFF
            _store(cells, at + 3, 2, 0xFFFF)  # no write precompensation
            cells[at + 5] = 0xC0 | (heads > 8) << 3
            _store(cells, at + 6, 2, cylinders)  # landing zone
            cells[at + 8] = sectors & 0xFF
    _seal(cells)


def set_boot_order(cells: bytearray, order: Sequence[str]) -> None:
    """Choose what to boot from, first to third: names in :data:`BOOT`. ValueError for any other name."""
    unknown = [name for name in order if name not in BOOT]
    if unknown:
        raise ValueError(f"cannot boot from {unknown[0]!r}: choose from {', '.join(BOOT)}")
    first, second, third = (*(BOOT[name] for name in order), 0, 0, 0)[:3]
    cells[BOOT_FIRST] = second << 4 | first
    cells[BOOT_THIRD] = third << 4 | NO_SIGNATURE_CHECK


def _store(cells: bytearray, at: int, length: int, value: int) -> None:
    cells[at : at + length] = value.to_bytes(length, "little")


def _seal(cells: bytearray) -> None:
    total = sum(cells[FLOPPY_TYPES:CHECKSUM]) & 0xFFFF
    cells[CHECKSUM : CHECKSUM + 2] = total.to_bytes(2, "big")
