"""Int 18h and 19h: finding something to boot, and starting it.

BIOS Boot Specification 1.01 (order, int 18h goes on with the next device); "El Torito" Bootable CD-ROM Format 1.0.
The invariant: what is started gets the drive number in DL and the address 0000:7C00 (or the CD's load segment), and when
nothing starts, the reason is on the screen, in the trace and in :attr:`BootServices.failure`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from avmm.boot.bios import bda
from avmm.boot.bios.caller import Caller
from avmm.boot.bios.disk import DiskServices, Emulation
from avmm.boot.bios.drives import BiosDrive
from avmm.boot.bios.rom import HALT_STUB, ROM_SEGMENT
from avmm.devices.block import BlockDevice, BlockError, BlockFault
from avmm.memory import GuestMemory

BOOT_ADDRESS = 0x7C00
NO_DEVICE = "No bootable device"

_FLOPPY_SECTORS = {1: 2400, 2: 2880, 3: 5760}
"""El Torito media types 1-3."""


class ImageInDisk:
    """Part of a block device as one of its own: the diskette or disk image that an El Torito CD boots from. Read-only."""

    read_only = True

    def __init__(self, disk: BlockDevice, first: int, sectors: int) -> None:
        self.disk = disk
        self.first = first
        self.length = sectors

    @property
    def sectors(self) -> int:
        return min(self.length, max(0, self.disk.sectors - self.first))

    async def read(self, lba: int, count: int) -> bytes | bytearray:
        if lba + count > self.sectors:
            raise BlockError(BlockFault.RANGE, max(lba, self.sectors))
        return await self.disk.read(self.first + lba, count)

    async def write(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        raise BlockError(BlockFault.READ_ONLY, lba)

    async def flush(self) -> None:
        """Nothing is ever written."""


class BootServices:
    """The bootstrap loader over the drives in ``order``."""

    def __init__(
        self,
        caller: Caller,
        disks: DiskServices,
        order: Sequence[BiosDrive],
        teletype: Callable[[str], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self.caller = caller
        self.disks = disks
        self.order = tuple(order)
        self.teletype = teletype
        self.on_failure = on_failure
        self.index = 0
        """The next device of the order to try."""
        self.failure = ""
        """Why nothing was booted; empty while that has not happened."""
        self.kernel: Callable[[GuestMemory], bytes] | None = None
        """Puts a kernel into memory and returns what is to run at 0000:7C00, if that is what the machine starts with."""

    async def first(self) -> None:
        """Int 19h: begin with the first device."""
        self.index = 0
        if self.kernel is not None:
            self.caller.memory.write(BOOT_ADDRESS, self.kernel(self.caller.memory))
            return
        await self.next()

    async def next(self) -> None:
        """Int 18h: what was started gave up; go on with the next device."""
        reasons = []
        while self.index < len(self.order):
            drive = self.order[self.index]
            self.index += 1
            try:
                reason = await (self._cdrom(drive) if drive.cdrom else self._sector(drive, drive.number))
            except BlockError as error:
                reason = error.fault.value
            if not reason:
                self.failure = ""
                return
            reasons.append(f"drive {drive.number:02X}h: {reason}")
        self.failure = "; ".join(reasons) or "no drives"
        self.teletype(NO_DEVICE + "\r\n")
        for reason in reasons:
            self.teletype(reason + "\r\n")
        self.caller.return_to(ROM_SEGMENT, HALT_STUB)
        self.on_failure(self.failure)

    async def _sector(self, drive: BiosDrive, number: int) -> str:
        """Start a diskette's or a disk's first sector; return why not."""
        if not drive.disk.sectors:
            return BlockFault.NO_MEDIUM.value
        sector = await drive.disk.read(0, 1)
        if sector[510:512] != b"\x55\xaa":
            return "no boot signature"
        self.caller.memory.write(BOOT_ADDRESS, sector)
        self._start(number, 0, BOOT_ADDRESS)
        return ""

    def _start(self, number: int, segment: int, offset: int) -> None:
        self.caller["dl"] = number
        self.caller["ax"] = 0xAA55
        self.caller.return_to(segment, offset)

    def _count_drives(self) -> None:
        """An emulated drive may be the first of its kind: tell int 11h and the data area."""
        memory, floppies = self.caller.memory, self.disks.floppies
        equipment = memory.unpack("<H", bda.EQUIPMENT)[0] & ~0x00C1
        memory.pack("<H", bda.EQUIPMENT, equipment | (1 | min(floppies - 1, 3) << 6 if floppies else 0))
        memory.pack("<B", bda.DISK_COUNT, self.disks.fixed)

    async def _cdrom(self, drive: BiosDrive) -> str:
        """Start what the boot catalog's default entry names; return why not."""
        disk = drive.disk
        if not disk.sectors:
            return BlockFault.NO_MEDIUM.value
        record = await disk.read(17 * 4, 4)
        if record[0:6] != b"\x00CD001" or record[7:30] != b"EL TORITO SPECIFICATION":
            return "no El Torito boot record"
        catalog = await disk.read(struct.unpack_from("<I", record, 0x47)[0] * 4, 4)
        checksum = sum(struct.unpack_from("<16H", catalog)) & 0xFFFF
        if catalog[0] != 1 or catalog[0x1E:0x20] != b"\x55\xaa" or checksum:
            return "the boot catalog is damaged"
        indicator, media, segment, count, image = struct.unpack_from("<BBH2xHI", catalog, 0x20)
        if indicator != 0x88:
            return "the boot catalog's entry is not bootable"
        segment = segment or BOOT_ADDRESS >> 4
        media &= 0x0F
        number = {0: drive.number, 4: 0x80}.get(media, 0x00)
        if media in _FLOPPY_SECTORS or media == 4:
            length = _FLOPPY_SECTORS.get(media, disk.sectors - image * 4)
            self.disks.drives[number] = BiosDrive(number, ImageInDisk(disk, image * 4, length))
            if media == 4:
                self.disks.drives[number].learn(bytes(await disk.read(image * 4, 1)))
            self._count_drives()
        elif media:
            return f"unknown El Torito media type {media}"
        data = await disk.read(image * 4, count or 4)
        self.caller.memory.write(segment << 4, data)
        self.disks.emulation = Emulation(number, media, image, segment, count)
        self._start(number, segment & 0xF000, segment << 4 & 0xFFFF)
        return ""
