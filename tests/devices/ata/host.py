"""What an ATA driver does, in a few lines, for tests: a bench with a channel, and the protocols from the host's side."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import Any

from avmm.devices.ata import AtaChannel, AtaDisk, AtapiCdrom, BusMaster, Drive
from avmm.devices.block import SECTOR
from tests.devices.bench import Bench, MemoryDisk

BMIDE = 0xC000
TABLE = 0x1000
BUFFER = 0x10000
SECOND = 1_000_000_000


def pattern(sectors: int, seed: int = 0) -> bytes:
    """Sectors that differ from each other, each from its neighbours' shifted copies too."""
    return b"".join(struct.pack("<II", seed, sector) * (SECTOR // 8) for sector in range(sectors))


class PromptDisk(MemoryDisk):
    """Moves sectors straight from and to memory as often as ``willing`` says."""

    def __init__(self, sectors: int = 2048) -> None:
        super().__init__(sectors)
        self.willing: Any = itertools.repeat(True)
        self.straight: list[tuple[str, int, int]] = []

    def read_now(self, lba: int, count: int, pieces: Sequence[memoryview]) -> bool:
        assert sum(map(len, pieces)) == count * SECTOR
        self._check(lba, count)
        if not next(self.willing):
            return False
        at = lba * SECTOR
        for piece in pieces:
            piece[:] = self.data[at : at + len(piece)]
            at += len(piece)
        self.straight.append(("read", lba, count))
        return True

    def write_now(self, lba: int, count: int, pieces: Sequence[memoryview]) -> bool:
        assert sum(map(len, pieces)) == count * SECTOR
        self._check(lba, count)
        if not next(self.willing):
            return False
        self.data[lba * SECTOR : (lba + count) * SECTOR] = b"".join(pieces)
        self.straight.append(("write", lba, count))
        return True


class Host(Bench):
    """A bench with one ATA channel, a bus master at C000h and a driver's routines."""

    def __init__(self, drives: Sequence[Drive | None], number: int = 0, ram: int = 1 << 20) -> None:
        super().__init__(ram)
        self.ata = AtaChannel(self, number, drives)
        self.dma = BusMaster(self, [self.ata])
        self.dma.move(BMIDE)
        self.base = self.ata.base
        self.control = 0x376 if number else 0x3F6
        self.irq = self.line(14 + number)

    def out(self, offset: int, value: int) -> None:
        self.write(self.ata, self.base + offset, value)

    def inp(self, offset: int) -> int:
        return self.read(self.ata, self.base + offset)

    def alternate(self) -> int:
        return self.read(self.ata, self.control)

    def wait(self) -> int:
        """Let the drive finish; the status, without acknowledging the interrupt."""
        self.pass_time(SECOND)
        return self.alternate()

    def interrupted(self) -> bool:
        """Whether INTRQ is up."""
        return self.irq.level

    def registers(self) -> tuple[int, ...]:
        """Count, LBA low, mid, high, device."""
        return tuple(self.inp(offset) for offset in range(2, 7))

    def lba28(self, code: int, lba: int, count: int, device: int = 0) -> None:
        self.out(6, 0xE0 | device << 4 | lba >> 24)
        for offset, value in ((2, count & 0xFF), (3, lba & 0xFF), (4, lba >> 8 & 0xFF), (5, lba >> 16 & 0xFF)):
            self.out(offset, value)
        self.out(7, code)

    def lba48(self, code: int, lba: int, count: int, device: int = 0) -> None:
        self.out(6, 0xE0 | device << 4)
        for shift in (24, 0):
            self.out(2, count >> (8 if shift else 0) & 0xFF)
            for index in range(3):
                self.out(3 + index, lba >> shift + 8 * index & 0xFF)
        self.out(7, code)

    def read_block(self, size: int, width: int = 2) -> bytes:
        return b"".join(self.read(self.ata, self.base, width).to_bytes(width, "little") for _ in range(size // width))

    def write_block(self, data: bytes | bytearray, width: int = 2) -> None:
        for at in range(0, len(data), width):
            self.write(self.ata, self.base, int.from_bytes(data[at : at + width], "little"), width)

    def pio_in(self, size: int, block: int = SECTOR, width: int = 2) -> bytes:
        """Take the blocks of a PIO data-in command: an interrupt and DRQ for each."""
        data = b""
        while len(data) < size:
            assert self.wait() & 0x89 == 0x08, hex(self.alternate())
            assert self.interrupted()
            assert self.inp(7) & 0x08
            data += self.read_block(min(block, size - len(data)), width)
        return data

    def pio_out(self, data: bytes, block: int = SECTOR, width: int = 2) -> None:
        """Give the blocks of a PIO data-out command: no interrupt before the first, one after each."""
        assert self.alternate() & 0x88 == 0x08
        assert not self.interrupted()
        for at in range(0, len(data), block):
            assert self.wait() & 0x88 == 0x08
            self.write_block(data[at : at + block], width)
            self.wait()
            assert self.interrupted()
            self.inp(7)

    def prd(self, *regions: tuple[int, int], last: bool = True) -> None:
        """Put a descriptor table into memory and into the bus master."""
        for index, (address, size) in enumerate(regions):
            end = 0x80000000 if last and index == len(regions) - 1 else 0
            self.memory.pack("<II", TABLE + 8 * index, address, size & 0xFFFF | end)
        self.write(self.dma, BMIDE + 4, TABLE, 4)

    def start_dma(self, to_memory: bool) -> None:
        self.write(self.dma, BMIDE + 2, 0x06)
        self.write(self.dma, BMIDE, 0x08 if to_memory else 0)
        self.write(self.dma, BMIDE, 0x09 if to_memory else 1)

    def dma_status(self) -> int:
        return self.read(self.dma, BMIDE + 2)

    def stop_dma(self) -> None:
        self.write(self.dma, BMIDE, 0)


def disk_host(sectors: int = 2048, number: int = 0) -> tuple[Host, MemoryDisk]:
    """A host with one disk of ``sectors`` patterned sectors."""
    medium = MemoryDisk(sectors)
    medium.data[:] = pattern(sectors)
    return Host([AtaDisk(medium)], number), medium


def cd_host(sectors: int = 64) -> tuple[Host, MemoryDisk]:
    """A host with a CD-ROM drive as device 0, its medium ``sectors`` of 2048 bytes."""
    medium = MemoryDisk(4 * sectors, read_only=True)
    medium.data[:] = pattern(4 * sectors, 7)
    return Host([AtapiCdrom(medium)]), medium


def prompt_host() -> tuple[Host, PromptDisk]:
    """A bench whose clock says that it follows the host's: requests that cannot go straight still end when time passes."""
    medium = PromptDisk()
    medium.data[:] = pattern(2048)
    host = Host([AtaDisk(medium)])
    host.clock.virtual = False
    return host, medium
