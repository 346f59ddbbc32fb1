"""The VMM's own ATA driver: drives a physical channel at register level, on behalf of an emulated one.

PIO only, in the largest DRQ blocks the device is set to; 48-bit commands (ATA/ATAPI-6, T13/1410D, clause 9.5-9.7). It waits for
INTRQ, which is redirected to it, and looks at the alternate status register now and then, for a device that does not interrupt.

The invariant: one command at a time, requests in the order they came; after an error or a hang the device is idle again or
the driver is ``broken``, and every later request fails at once.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from avmm.clock import MICROSECOND, SECOND, Timer
from avmm.devices.ata.drive import DiskModes, TransferModes
from avmm.devices.ata.registers import (
    ABRT,
    BSY,
    COUNT,
    DEVICE,
    DF,
    DRQ,
    ERR,
    FEATURES,
    HOB,
    IDNF,
    LBA_HIGH,
    LBA_LOW,
    LBA_MID,
    NIEN,
    SRST,
    WP,
    Command,
)
from avmm.devices.block import SECTOR, BlockError, BlockFault
from avmm.interpose.handover import DeviceHangs
from avmm.interpose.strand import Resume, Suspend
from avmm.platform.ata import AtaLink

POLL_FIRST, POLL_LAST = 20 * MICROSECOND, 1000 * MICROSECOND
PATIENCE = 5 * SECOND
"""How long a command may take before the device counts as hung."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What IDENTIFY DEVICE and CHECK POWER MODE tell of a disk."""

    sectors: int
    modes: DiskModes


@lru_cache(64)
def parse_identify(data: bytes, power: int) -> Identity:
    """Read capacity and modes out of the 512 bytes of IDENTIFY DEVICE. A disk says the same again and again."""
    heads, sectors, _, _, multiple = struct.unpack_from("<5H", data, 2 * 55)
    mdma, udma, features = data[2 * 63 + 1], data[2 * 88 + 1], data[2 * 85]  # the selected modes are in the upper bytes
    modes = DiskModes(
        heads=heads,
        sectors=sectors,
        multiple=multiple & 0xFF if multiple & 0x100 else 0,
        write_cache=bool(features & 0x20),
        look_ahead=bool(features & 0x40),
        transfer=TransferModes(mdma=mdma.bit_length() - 1 if mdma else None, udma=udma.bit_length() - 1 if udma else None),
        power=power,
    )
    return Identity(int.from_bytes(data[200:208], "little"), modes)


class AtaDriver:
    """Drives ``link``. Between :meth:`attach` and :meth:`detach` its INTRQ is ours."""

    def __init__(self, link: AtaLink) -> None:
        self.link = link
        self._in, self._out = link.handlers  # no register but the data port has a window
        self._device = -1
        """What the device register was written with last, -1 when that is not known."""
        self.clock = link.cable.clock
        self.multiple = [0, 0]
        """Sectors per DRQ block of each drive, 0 when READ MULTIPLE is off."""
        self._modes: dict[int, DiskModes] = {}
        """How each drive is set, as far as that is known and only we can change it."""
        self.broken = ""
        """Why the device cannot be used any more; empty while it can."""
        self.commands = 0
        self.spurious = 0
        """Interrupts that came while nothing was waited for."""
        self._timer: Timer = self.clock.timer(self._poll)
        self._wake: Resume | None = None
        self.expected = False
        """Whether an interrupt may come: it is not spurious."""
        self._queue: deque[Resume] = deque()
        self._held = False
        self.on_idle: Callable[[], None] = _nothing

    # -- hands on and off

    def attach(self) -> None:
        """Take the interrupt line."""
        self._device = -1
        self.expected = True  # it may be up already
        self.link.irq.connect(self._interrupt)
        self.expected = False

    def detach(self) -> None:
        """Give up whatever waits, and the line."""
        self._modes.clear()
        self._timer.cancel()
        self._wake = None
        self.link.irq.connect(None)

    @property
    def idle(self) -> bool:
        """Whether no request is in progress or waiting."""
        return not self._held

    def _interrupt(self, level: bool) -> None:
        if level and self._wake is not None:
            self._poll()
        elif level and not self.expected:
            self.spurious += 1

    def _poll(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            self._timer.cancel()
            wake(None)

    # -- one at a time

    async def acquire(self) -> None:
        """Wait for the device to be ours alone."""
        if self._held:
            await Suspend(self._queue.append)
        self._held = True

    def release(self) -> None:
        """Let the next one have it."""
        self._held = False
        if self._queue:
            self._held = True
            self._queue.popleft()(None)
        else:
            self.on_idle()

    # -- registers

    def alternate(self) -> int:
        """Read status without acknowledging the interrupt."""
        return self._in(self.link.control, 1)

    def acknowledge(self) -> int:
        """Read status."""
        return self._in(self.link.status, 1)

    def control(self, value: int) -> None:
        """Write device control."""
        self._out(self.link.control, 1, value)
        if value & SRST:
            self._device = -1

    def put(self, offset: int, value: int) -> None:
        """Write a command block register, neither the data port nor the device register."""
        self._out(self.link.data + offset, 1, value)

    def get(self, offset: int) -> int:
        """Read a command block register, not the data port."""
        return self._in(self.link.data + offset, 1)

    def device(self, value: int) -> None:
        """Write the device register."""
        self._device = value
        self._out(self.link.data + DEVICE, 1, value)

    def select(self, drive: int) -> None:
        """Address ``drive``, by LBA."""
        value = 0xE0 | drive << 4
        if value != self._device:
            self.device(value)

    def address(self) -> bytes:
        """Read sector count and address."""
        read, data = self._in, self.link.data
        return bytes((read(data + COUNT, 1), read(data + LBA_LOW, 1), read(data + LBA_MID, 1), read(data + LBA_HIGH, 1)))

    async def settled(self, limit: int = PATIENCE) -> int:
        """Wait until the device is not busy and return its status; DeviceHangs after ``limit`` ns."""
        begin, pause = 0, POLL_FIRST
        while (status := self.alternate()) & BSY:
            now = self.clock.now()
            begin = begin or now
            if now - begin >= limit:
                raise DeviceHangs(f"{self.link.channel.name} was busy for {(now - begin) / 1e6:g} ms")
            until = min(now + pause, begin + limit)
            pause = min(2 * pause, POLL_LAST)

            def begin_to_wait(resume: Resume, until: int = until) -> None:
                self._wake = resume
                self._timer.arm(until)

            await Suspend(begin_to_wait)
        return status

    async def ended(self) -> int:
        """Wait until the device is not busy and return its status, acknowledged."""
        status = self.acknowledge()
        if status & BSY:
            await self.settled()
            status = self.acknowledge()
        return status

    def command(self, code: int) -> None:
        """Issue a command with the registers as they are."""
        self.commands += 1
        self.expected = True
        self._out(self.link.status, 1, code)

    async def simple(self, code: int, drive: int, *, count: int = 0, features: int | None = None, device: int = 0) -> int:
        """Issue a command without data and return its status, acknowledged."""
        self.device(0xE0 | drive << 4 | device)
        self.put(COUNT, count)
        if features is not None:
            self.put(FEATURES, features)
        self.command(code)
        status = await self.ended()
        self.expected = False
        return status

    def soft_reset(self) -> None:
        """SRST, and no interrupt enabled before the end of it."""
        self._modes.clear()
        self.control(SRST | NIEN)
        self.control(0)
        self.expected = False

    async def identify(self, drive: int, power: int | None = None) -> Identity:
        """Ask a disk what it is and how it is set; for its power mode only if that is not known."""
        if power is None:
            power = await self.power(drive)
        self.select(drive)
        self.command(Command.IDENTIFY)
        status = await self.ended()
        self.expected = False
        if not status & DRQ:
            raise DeviceHangs(f"{self.link.channel.name}: drive {drive} does not identify itself (status {status:02x}h)")
        identity = parse_identify(self.link.read_words(SECTOR), power)
        self.multiple[drive] = identity.modes.multiple
        self._modes[drive] = identity.modes
        return identity

    async def power(self, drive: int) -> int:
        """Ask a disk for its power mode."""
        await self.simple(Command.CHECK_POWER_MODE, drive)
        return self.get(COUNT)

    async def modes(self, drive: int) -> DiskModes:
        """Return how a disk is set; it is asked only if that may have changed. The power mode is that of the last time."""
        return self._modes.get(drive) or (await self.identify(drive)).modes

    def bus_reset(self) -> None:
        """RESET#."""
        self._modes.clear()
        self._device = -1
        self.link.channel.reset()

    async def set_features(self, drive: int, count: int) -> tuple[int, DiskModes]:
        """Perform SET FEATURES with the FEATURES register as the guest left it; return the error and the modes now."""
        await self.acquire()
        try:
            status = await self.simple(Command.SET_FEATURES, drive, count=count)
            error = self.get(FEATURES) if status & ERR else 0
            return error, (await self.identify(drive)).modes
        finally:
            self.expected = False
            self.release()

    def _address(self, code: int, drive: int, lba: int, count: int) -> None:
        self.select(drive)
        for high, shift in ((count >> 8, 24), (count, 0)):
            self.put(COUNT, high & 0xFF)
            for offset in (LBA_LOW, LBA_MID, LBA_HIGH):
                self.put(offset, lba >> shift + 8 * (offset - LBA_LOW) & 0xFF)
        self.command(code)

    # -- requests

    async def read(self, drive: int, lba: int, count: int) -> bytes:
        """Read sectors. Raises BlockError."""
        await self.acquire()
        try:
            self._usable(lba)
            block = SECTOR * max(self.multiple[drive], 1)
            self._address(Command.READ_MULTIPLE_EXT if self.multiple[drive] else Command.READ_SECTORS_EXT, drive, lba, count)
            parts: list[bytes] = []
            left = count * SECTOR
            while left:
                await self._ready(lba + count - left // SECTOR)
                parts.append(self.link.read_words(min(block, left)))
                left -= len(parts[-1])
            await self.settled()
            return b"".join(parts)
        except DeviceHangs as hang:
            raise self._hung(hang, lba) from hang
        finally:
            self.expected = False
            self.release()

    async def write(self, drive: int, lba: int, data: bytes | bytearray | memoryview) -> None:
        """Write sectors. Raises BlockError."""
        data = bytes(data)  # taken before the first suspension
        await self.acquire()
        try:
            self._usable(lba)
            block = SECTOR * max(self.multiple[drive], 1)
            code = Command.WRITE_MULTIPLE_EXT if self.multiple[drive] else Command.WRITE_SECTORS_EXT
            self._address(code, drive, lba, len(data) // SECTOR)
            for at in range(0, len(data), block):
                await self._ready(lba + at // SECTOR)
                self.link.write_words(data[at : at + block])
            self._check(await self.ended(), lba)
        except DeviceHangs as hang:
            raise self._hung(hang, lba) from hang
        finally:
            self.expected = False
            self.release()

    async def flush(self, drive: int) -> None:
        """Return when what was written is on the medium. Raises BlockError."""
        await self.acquire()
        try:
            self._usable(0)
            self._check(await self.simple(Command.FLUSH_CACHE_EXT, drive), 0)
        except DeviceHangs as hang:
            raise self._hung(hang, 0) from hang
        finally:
            self.expected = False
            self.release()

    async def _ready(self, lba: int) -> None:
        """Wait for the next DRQ block."""
        status = await self.ended()
        self._check(status, lba)
        if not status & DRQ:
            raise DeviceHangs(f"{self.link.channel.name} ended a transfer early, at sector {lba} (status {status:02x}h)")

    def _check(self, status: int, lba: int) -> None:
        if not status & (ERR | DF):
            return
        error = self.get(FEATURES)
        fault = BlockFault.RANGE if error & IDNF else BlockFault.READ_ONLY if error == WP | ABRT else BlockFault.MEDIUM
        raise BlockError(fault, self._reported() if fault is BlockFault.MEDIUM and error & ~ABRT else lba)

    def _reported(self) -> int:
        """Read the 48-bit address of the sector that failed."""
        low = self.address()
        self.control(HOB)
        high = self.address()
        self.control(0)
        return int.from_bytes(low[1:] + high[1:], "little")

    def _usable(self, lba: int) -> None:
        if self.broken:
            raise BlockError(BlockFault.MEDIUM, lba, self.broken)

    def _hung(self, hang: DeviceHangs, lba: int) -> BlockError:
        """A hung device gets a reset; if it stays busy it is given up."""
        self.soft_reset()
        if self.alternate() & BSY:
            self.broken = str(hang)
        return BlockError(BlockFault.MEDIUM, lba, str(hang))


class DriverDisk:
    """One drive behind the driver, as a ``BlockDevice``. Only for strands."""

    def __init__(self, driver: AtaDriver, drive: int, sectors: int, read_only: bool) -> None:
        self.driver = driver
        self.drive = drive
        self.sectors = sectors
        self.read_only = read_only

    async def read(self, lba: int, count: int) -> bytes:
        """Return sectors."""
        return await self.driver.read(self.drive, lba, count)

    async def write(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        """Write sectors."""
        await self.driver.write(self.drive, lba, data)

    async def flush(self) -> None:
        """Make what was written stable."""
        await self.driver.flush(self.drive)


def _nothing() -> None:
    pass
