"""The drives the BIOS knows: which block device, under which number, with which CHS geometry.

Diskette formats after the IBM PS/2 BIOS reference (int 13h AH=08h, drive types); fixed disks by LBA-assisted translation
(Phoenix EDD 3.0, annex: heads 16, 32, 64, 128, 255 with 63 sectors), unless the partition table was made for another
geometry. The invariant: heads <= 255, sectors <= 63, cylinders <= 1024, and cylinders * heads * sectors <= capacity for
fixed disks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from avmm.devices.block import BlockDevice

MAX_CYLINDERS = 1024


@dataclass(frozen=True, slots=True)
class Geometry:
    """Cylinders, heads, sectors a track."""

    cylinders: int
    heads: int
    sectors: int

    def lba(self, cylinder: int, head: int, sector: int) -> int | None:
        """Return the sector number of a CHS address (sectors from 1), None when there is no such place."""
        if head >= self.heads or not 1 <= sector <= self.sectors or cylinder >= self.cylinders:
            return None
        return (cylinder * self.heads + head) * self.sectors + sector - 1


# capacity in sectors: geometry, drive type of int 13h AH=08h (1: 360K, 2: 1.2M, 3: 720K, 4: 1.44M, 6: 2.88M)
FLOPPY_FORMATS: dict[int, tuple[Geometry, int]] = {
    320: (Geometry(40, 1, 8), 1),
    360: (Geometry(40, 1, 9), 1),
    640: (Geometry(40, 2, 8), 1),
    720: (Geometry(40, 2, 9), 1),
    1440: (Geometry(80, 2, 9), 3),
    2400: (Geometry(80, 2, 15), 2),
    2880: (Geometry(80, 2, 18), 4),
    3360: (Geometry(80, 2, 21), 4),
    3444: (Geometry(82, 2, 21), 4),
    5760: (Geometry(80, 2, 36), 6),
}


def floppy_geometry(sectors: int) -> tuple[Geometry, int]:
    """Return the geometry and drive type for a diskette image; a size that is no format is read as the next larger one."""
    for capacity in sorted(FLOPPY_FORMATS):
        if sectors <= capacity and (sectors or capacity == 2880):
            return FLOPPY_FORMATS[capacity]
    return Geometry(min(255, -(-sectors // 72)), 2, 36), 6


def disk_geometry(sectors: int) -> Geometry:
    """Return the LBA-assisted geometry of a fixed disk."""
    heads = next((heads for heads in (16, 32, 64, 128) if sectors <= MAX_CYLINDERS * heads * 63), 255)
    return Geometry(max(1, min(MAX_CYLINDERS, sectors // (heads * 63))), heads, 63)


def partition_geometry(mbr: bytes, sectors: int) -> Geometry | None:
    """Return the geometry a partition table was made with, None when it does not tell.

    The end of a partition lies on the last head and sector of its cylinder; that is believed only if the CHS and the LBA
    form of the same end agree (below the 1024-cylinder limit).
    """
    if len(mbr) < 512 or mbr[510:512] != b"\x55\xaa":
        return None
    for at in range(446, 510, 16):
        kind, head, low, high = mbr[at + 4 : at + 8]
        first, count = struct.unpack_from("<II", mbr, at + 8)
        per_track = low & 0x3F
        cylinder = (low & 0xC0) << 2 | high
        if not kind or not count or not per_track or head == 255 or cylinder == 1023:
            continue
        heads = head + 1
        if (cylinder * heads + head) * per_track + per_track == first + count <= sectors:
            return Geometry(max(1, min(MAX_CYLINDERS, sectors // (heads * per_track))), heads, per_track)
    return None


class BiosDrive:
    """A drive of int 13h: 00h-7Fh diskette, 80h-DFh fixed disk, E0h and above CD-ROM (2048-byte sectors)."""

    def __init__(self, number: int, disk: BlockDevice, geometry: Geometry | None = None) -> None:
        if not 0 <= number <= 0xFF:
            raise ValueError(f"drive number {number:#x} does not fit in DL")
        self.number = number
        self.disk = disk
        self.chosen = geometry
        """The geometry given, or found in the partition table at boot; None: by capacity."""
        self.configured = geometry is not None

    @property
    def floppy(self) -> bool:
        return self.number < 0x80

    @property
    def cdrom(self) -> bool:
        return self.number >= 0xE0

    @property
    def fixed(self) -> bool:
        return 0x80 <= self.number < 0xE0

    @property
    def block(self) -> int:
        """Bytes in a sector as int 13h counts them."""
        return 2048 if self.cdrom else 512

    @property
    def blocks(self) -> int:
        """Capacity in those sectors."""
        return self.disk.sectors * 512 // self.block

    @property
    def geometry(self) -> Geometry:
        """The CHS geometry that int 13h works with."""
        if self.chosen is not None:
            return self.chosen
        if self.floppy:
            return floppy_geometry(self.disk.sectors)[0]
        return disk_geometry(self.disk.sectors)

    @property
    def floppy_type(self) -> int:
        """The drive type of int 13h AH=08h."""
        return floppy_geometry(self.disk.sectors)[1]

    def learn(self, mbr: bytes) -> None:
        """Take the geometry from the disk's partition table, unless one was configured."""
        if self.fixed and not self.configured:
            self.chosen = partition_geometry(mbr, self.disk.sectors)

    def parameter_table(self) -> bytes:
        """The fixed disk parameter table of int 41h/46h: 16 bytes, translated geometry."""
        geometry = self.geometry
        control = 0x08 if geometry.heads > 8 else 0
        return struct.pack("<HBHHBBBBBHBB", geometry.cylinders, geometry.heads, 0, 0xFFFF, 0, control, 0, 0, 0, 0, geometry.sectors, 0)
