"""Int 13h: diskettes, fixed disks and CD-ROMs, straight on the block devices of VM-H.

IBM PS/2 and PC BIOS Interface Technical Reference, int 13h (functions 00h-18h, status codes); Phoenix BIOS Enhanced Disk
Drive Specification 3.0 (functions 41h-48h); El Torito 1.0 (4Bh). The invariant: one request is one transfer on the block
device, the caller's vCPU stands still meanwhile, and every path ends with AH, CF and the status byte in the BDA in agreement.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from avmm.boot.bios import bda
from avmm.boot.bios.caller import Caller
from avmm.boot.bios.drives import BiosDrive
from avmm.boot.bios.rom import DISKETTE_TABLE, ROM_SEGMENT, diskette_table
from avmm.devices.block import BlockError, BlockFault

OK, BAD_COMMAND, WRITE_PROTECTED, NOT_FOUND, CHANGED = 0x00, 0x01, 0x03, 0x04, 0x06
BAD_SECTOR, NOT_READY_FIXED, UNDEFINED, NO_MEDIA = 0x10, 0xAA, 0xBB, 0x31
TIMEOUT = 0x80

PACKET = "<BBHHHQ"
"""EDD disk address packet: size, reserved, count, offset, segment, LBA; with offset:segment FFFF:FFFF a 64-bit address follows."""


@dataclass(frozen=True, slots=True)
class Emulation:
    """What the machine was booted with from a CD (El Torito), for AX=4B01h."""

    drive: int
    media: int
    image_lba: int
    load_segment: int
    load_sectors: int


def status_of(drive: BiosDrive, fault: BlockFault) -> int:
    """Return the int 13h status for a failed block request."""
    if fault is BlockFault.NO_MEDIUM:
        return NO_MEDIA if drive.cdrom else TIMEOUT if drive.floppy else NOT_READY_FIXED
    return {BlockFault.RANGE: NOT_FOUND, BlockFault.READ_ONLY: WRITE_PROTECTED}.get(fault, BAD_SECTOR)


class DiskServices:
    """Int 13h over a list of drives."""

    def __init__(self, caller: Caller, drives: list[BiosDrive]) -> None:
        self.caller = caller
        self.drives = {drive.number: drive for drive in drives}
        self.emulation: Emulation | None = None

    @property
    def floppies(self) -> int:
        return sum(drive.floppy for drive in self.drives.values())

    @property
    def fixed(self) -> int:
        return sum(drive.fixed for drive in self.drives.values())

    def call(self) -> Awaitable[None] | None:
        """Int 13h. Functions that move data return an awaitable."""
        function, number = self.caller["ah"], self.caller["dl"]
        drive = self.drives.get(number)
        if function == 0x4B:
            self._emulation()
            return None
        if function in (0x08, 0x15) and drive is None:
            self._absent(function, number)
            return None
        if function == 0x00 and drive is None and number < 0x80:
            self._finish(OK, number)  # resetting the diskette controller needs no drive
            return None
        if drive is None:
            self._finish(TIMEOUT if number < 0x80 else BAD_COMMAND, number)
            return None
        transfer = _TRANSFERS.get(function)
        if transfer is not None:
            if drive.cdrom and function < 0x40:
                self._finish(BAD_COMMAND, number)
                return None
            return transfer(self, drive)
        handler = _FUNCTIONS.get(function)
        self._finish(handler(self, drive) if handler is not None else BAD_COMMAND, number)
        return None

    def _finish(self, status: int | None, number: int) -> None:
        """Report ``status`` in AH, CF and the BDA; None: the handler has set AH itself and succeeded."""
        caller = self.caller
        if status is not None:
            caller["ah"] = status
        caller.carry(bool(status))
        caller.memory.write(bda.DISK_STATUS if number >= 0x80 else bda.DISKETTE_STATUS, bytes((status or 0,)))

    def _absent(self, function: int, number: int) -> None:
        caller = self.caller
        if function == 0x15:
            caller["ah"] = 0  # no such drive; not an error
            caller.carry(False)
        elif number < 0x80:
            for register in ("ax", "bx", "cx", "di"):
                caller[register] = 0
            caller["dx"] = self.floppies
            caller.carry(False)
        else:
            self._finish(0x07, number)

    # -- moving data

    async def _move(self, drive: BiosDrive, lba: int, count: int, linear: int, write: bool) -> int:
        """Move ``count`` 512-byte sectors and return the status."""
        try:
            if write:
                await drive.disk.write(lba, self.caller.read(linear, count * 512))
            else:
                data = await drive.disk.read(lba, count)
                self.caller.write(linear, data)
        except BlockError as error:
            return status_of(drive, error.fault)
        return OK

    def _chs(self, drive: BiosDrive) -> tuple[int | None, int]:
        caller = self.caller
        cylinder = caller["ch"] | (caller["cl"] & 0xC0) << 2
        return drive.geometry.lba(cylinder, caller["dh"], caller["cl"] & 0x3F), caller["al"]

    async def _legacy(self, drive: BiosDrive, write: bool) -> None:
        """AH=02h and 03h."""
        lba, count = self._chs(drive)
        status = self._check(drive, lba, count)
        if status == OK and lba is not None:
            status = await self._move(drive, lba, count, self.caller.address("es", "bx"), write)
        if status != OK:
            self.caller["al"] = 0
        self._finish(status, drive.number)

    def _check(self, drive: BiosDrive, lba: int | None, count: int) -> int:
        if not drive.disk.sectors:
            return status_of(drive, BlockFault.NO_MEDIUM)
        if not 1 <= count <= 128:
            return BAD_COMMAND
        return NOT_FOUND if lba is None or lba + count > drive.disk.sectors else OK

    async def _verify(self, drive: BiosDrive) -> None:
        """AH=04h: the sectors are read and thrown away."""
        lba, count = self._chs(drive)
        status = self._check(drive, lba, count)
        if status == OK and lba is not None:
            try:
                await drive.disk.read(lba, count)
            except BlockError as error:
                status = status_of(drive, error.fault)
        self._finish(status, drive.number)

    async def _format(self, drive: BiosDrive) -> None:
        """AH=05h: a diskette track gets the fill byte of the parameter table; fixed disks have nothing to format."""
        caller, geometry = self.caller, drive.geometry
        status = OK
        lba = geometry.lba(caller["ch"] | (caller["cl"] & 0xC0 if drive.fixed else 0) << 2, caller["dh"], 1)
        if lba is None or lba + geometry.sectors > drive.disk.sectors:
            status = NOT_FOUND
        elif drive.floppy:
            try:
                await drive.disk.write(lba, b"\xf6" * 512 * geometry.sectors)
            except BlockError as error:
                status = status_of(drive, error.fault)
        self._finish(status, drive.number)

    async def _extended(self, drive: BiosDrive, function: int) -> None:
        """AH=42h, 43h, 44h with a disk address packet at DS:SI; the count there becomes what was moved."""
        caller = self.caller
        packet = caller.address("ds", "si")
        size, _, count, offset, segment, lba = caller.unpack(PACKET, packet)
        scale = drive.block // 512
        if drive.floppy or size < 16:
            self._finish(BAD_COMMAND, drive.number)
            return
        linear = (segment << 4) + offset
        if size >= 24 and (offset, segment) == (0xFFFF, 0xFFFF):
            linear = caller.unpack("<Q", packet + 16)[0]
        status = OK
        if not drive.disk.sectors:
            status = status_of(drive, BlockFault.NO_MEDIUM)
        elif (lba + count) * scale > drive.disk.sectors:
            status = NOT_FOUND
        elif function == 0x44:
            try:
                await drive.disk.read(lba * scale, count * scale)
            except BlockError as error:
                status = status_of(drive, error.fault)
        elif function == 0x43 and drive.cdrom:
            status = WRITE_PROTECTED
        elif function == 0x43 and caller["al"] > 2:
            status = BAD_COMMAND
        elif count:
            status = await self._move(drive, lba * scale, count * scale, linear, function == 0x43)
        if status != OK:
            caller.write(packet + 2, b"\0\0")
        self._finish(status, drive.number)

    # -- answers without data

    def _success(self, drive: BiosDrive) -> int:
        return OK

    def _ready(self, drive: BiosDrive) -> int:
        return OK if drive.disk.sectors else status_of(drive, BlockFault.NO_MEDIUM)

    def _last_status(self, drive: BiosDrive) -> int | None:
        """AH=01h: AH and CF tell how the last operation ended, and the status stays."""
        address = bda.DISKETTE_STATUS if drive.floppy else bda.DISK_STATUS
        return self.caller.memory.read(address, 1)[0]

    def _parameters(self, drive: BiosDrive) -> int | None:
        """AH=08h: the largest cylinder, head and sector."""
        caller, geometry = self.caller, drive.geometry
        if drive.cdrom:
            return BAD_COMMAND
        last = geometry.cylinders - 1
        caller["ax"] = 0
        caller["ch"] = last & 0xFF
        caller["cl"] = geometry.sectors | last >> 2 & 0xC0
        caller["dh"] = geometry.heads - 1
        caller["dl"] = self.floppies if drive.floppy else self.fixed
        if drive.floppy:
            caller["bx"] = drive.floppy_type
            caller.memory.write((ROM_SEGMENT << 4) + DISKETTE_TABLE, diskette_table(geometry.sectors, geometry.cylinders))
            caller["es"], caller["di"] = ROM_SEGMENT, DISKETTE_TABLE
        return None

    def _kind(self, drive: BiosDrive) -> int | None:
        """AH=15h: 1 diskette without change line, 2 with, 3 fixed disk with its capacity in CX:DX."""
        caller = self.caller
        if drive.cdrom:
            return BAD_COMMAND
        caller["ah"] = 2 if drive.floppy else 3
        if not drive.floppy:
            geometry = drive.geometry
            total = geometry.cylinders * geometry.heads * geometry.sectors
            caller["cx"], caller["dx"] = total >> 16, total & 0xFFFF
        return None

    def _changed(self, drive: BiosDrive) -> int:
        """AH=16h: the change line. Media do not change behind the BIOS's back without a reset of the drive."""
        return OK if drive.disk.sectors else status_of(drive, BlockFault.NO_MEDIUM)

    def _media_type(self, drive: BiosDrive) -> int | None:
        """AH=17h, 18h: set the medium type for formatting."""
        caller, geometry = self.caller, drive.geometry
        if not drive.floppy:
            return BAD_COMMAND
        if caller["ah"] == 0x18:
            if caller["ch"] != geometry.cylinders - 1 & 0xFF or caller["cl"] & 0x3F != geometry.sectors:
                return 0x0C
            caller["es"], caller["di"] = ROM_SEGMENT, DISKETTE_TABLE
        return OK

    def _extensions(self, drive: BiosDrive) -> int | None:
        """AH=41h: EDD 3.0; extended access and the enhanced drive functions (48h)."""
        caller = self.caller
        if drive.floppy or caller["bx"] != 0x55AA:
            return BAD_COMMAND
        caller["bx"], caller["cx"], caller["ah"] = 0xAA55, 0x0007 if drive.cdrom else 0x0005, 0x30
        return None

    def _extended_parameters(self, drive: BiosDrive) -> int:
        """AH=48h: the result buffer at DS:SI; its first word says how much room there is."""
        caller = self.caller
        if drive.floppy:
            return BAD_COMMAND
        buffer = caller.address("ds", "si")
        room = caller.unpack("<H", buffer)[0]
        if room < 26:
            return BAD_COMMAND
        geometry = drive.geometry
        flags = 0x0074 if drive.cdrom else 0x0002  # removable, lockable, no CHS; or: the geometry is valid
        fields = (0, 0, 0) if drive.cdrom else (geometry.cylinders, geometry.heads, geometry.sectors)
        result = struct.pack("<HHIIIQH", 26, flags, *fields, drive.blocks, drive.block)
        if room >= 30:
            result = struct.pack("<H", 30) + result[2:] + b"\xff\xff\xff\xff"  # no device parameter table extension
        caller.write(buffer, result)
        return OK

    def _eject(self, drive: BiosDrive) -> int:
        """AH=45h (lock), 46h (eject): not offered for fixed disks; media stay where they are."""
        return OK if drive.cdrom and self.caller["ah"] == 0x45 else 0xB4 if drive.cdrom else 0xB2

    def _emulation(self) -> None:
        """AX=4B00h, 4B01h: the specification packet of the CD boot at DS:SI."""
        caller, boot = self.caller, self.emulation
        if boot is None or caller["al"] > 1 or (caller["dl"] not in (0x7F, boot.drive)):
            self._finish(BAD_COMMAND, 0x80)
            return
        packet = struct.pack(
            "<BBBBIHHHHBBB", 0x13, boot.media, boot.drive, 0, boot.image_lba, 0, 0, boot.load_segment, boot.load_sectors, 0, 0, 0
        )
        caller.write(caller.address("ds", "si"), packet)
        self._finish(OK, 0x80)


_TRANSFERS: dict[int, Callable[[DiskServices, BiosDrive], Awaitable[None]]] = {
    0x02: lambda services, drive: services._legacy(drive, False),
    0x03: lambda services, drive: services._legacy(drive, True),
    0x04: DiskServices._verify,
    0x05: DiskServices._format,
    0x42: lambda services, drive: services._extended(drive, 0x42),
    0x43: lambda services, drive: services._extended(drive, 0x43),
    0x44: lambda services, drive: services._extended(drive, 0x44),
}

_FUNCTIONS: dict[int, Callable[[DiskServices, BiosDrive], int | None]] = {
    0x00: DiskServices._success,
    0x01: DiskServices._last_status,
    0x08: DiskServices._parameters,
    0x09: DiskServices._success,
    0x0C: DiskServices._success,
    0x0D: DiskServices._success,
    0x10: DiskServices._ready,
    0x11: DiskServices._success,
    0x14: DiskServices._success,
    0x15: DiskServices._kind,
    0x16: DiskServices._changed,
    0x17: DiskServices._media_type,
    0x18: DiskServices._media_type,
    0x41: DiskServices._extensions,
    0x45: DiskServices._eject,
    0x46: DiskServices._eject,
    0x47: DiskServices._success,
    0x48: DiskServices._extended_parameters,
}
