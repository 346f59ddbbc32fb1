"""Names of the ATA registers, bits, commands and phases, and the task file of one drive.

ATA/ATAPI-6 (T13/1410D), clause 7 (registers) and clause 8 (commands). Constants only, plus the two-byte-deep register
file that every drive keeps for itself; nothing here moves data or raises interrupts.

The invariant: each command block register holds its most recent write and the one before it (the HOB pair of the
48-bit feature set, clause 6.20).
"""

from __future__ import annotations

import enum
from typing import Final

COMMAND_BLOCK: Final = (0x1F0, 0x170)
CONTROL_BLOCK: Final = (0x3F6, 0x376)
INTERRUPT: Final = (14, 15)

# offsets in the command block
DATA: Final = 0
FEATURES: Final = 1  # error when read
COUNT: Final = 2
LBA_LOW: Final = 3
LBA_MID: Final = 4
LBA_HIGH: Final = 5
DEVICE: Final = 6
COMMAND: Final = 7  # status when read

# status
BSY: Final = 0x80
DRDY: Final = 0x40
DF: Final = 0x20
DSC: Final = 0x10
DRQ: Final = 0x08
ERR: Final = 0x01
READY: Final = DRDY | DSC

# error
UNC: Final = 0x40
WP: Final = 0x40
IDNF: Final = 0x10
ABRT: Final = 0x04
DIAGNOSTIC_PASSED: Final = 0x01

# device
DEV: Final = 0x10
LBA: Final = 0x40

# device control
HOB: Final = 0x80
SRST: Final = 0x04
NIEN: Final = 0x02

# interrupt reason (the count register of the PACKET command set)
COD: Final = 0x01
IO: Final = 0x02

FLOATING: Final = 0x7F
"""What an empty cable reads as: pulled up, but for DD7, which the host pulls down so that BSY reads zero."""


class Phase(enum.Enum):
    """What the channel is doing; exactly one of its drives is concerned except in IDLE and RESET."""

    IDLE = "no command"
    BUSY = "BSY: a request is with the medium"
    DATA_IN = "DRQ: a block waits to be read from the data port"
    DATA_OUT = "DRQ: a block waits to be written to the data port"
    PACKET = "DRQ: a command packet waits to be written to the data port"
    DMA_IN = "data wait for the bus master to take them"
    DMA_OUT = "the drive waits for data from the bus master"
    RESET = "SRST is held"


# An enumeration finds its members slowly, and these are asked for at every access.
IDLE: Final = Phase.IDLE
BUSY: Final = Phase.BUSY
DATA_IN: Final = Phase.DATA_IN
DATA_OUT: Final = Phase.DATA_OUT
DMA_IN: Final = Phase.DMA_IN
DMA_OUT: Final = Phase.DMA_OUT
RESET: Final = Phase.RESET


class Address(enum.Enum):
    """How a command gave its address, and so how its end is reported."""

    CHS = 0
    LBA28 = 1
    LBA48 = 2
    PACKET = 3


CHS: Final = Address.CHS


class Command(enum.IntEnum):
    """Command codes (ATA/ATAPI-6 clause 8; those marked old are from ATA-1 to ATA-3)."""

    NOP = 0x00
    DEVICE_RESET = 0x08
    RECALIBRATE = 0x10
    READ_SECTORS = 0x20
    READ_SECTORS_NO_RETRY = 0x21  # old
    READ_SECTORS_EXT = 0x24
    READ_DMA_EXT = 0x25
    READ_NATIVE_MAX_EXT = 0x27
    READ_MULTIPLE_EXT = 0x29
    WRITE_SECTORS = 0x30
    WRITE_SECTORS_NO_RETRY = 0x31  # old
    WRITE_SECTORS_EXT = 0x34
    WRITE_DMA_EXT = 0x35
    WRITE_MULTIPLE_EXT = 0x39
    READ_VERIFY = 0x40
    READ_VERIFY_NO_RETRY = 0x41  # old
    READ_VERIFY_EXT = 0x42
    SEEK = 0x70
    EXECUTE_DIAGNOSTIC = 0x90
    INITIALIZE_PARAMETERS = 0x91
    PACKET = 0xA0
    IDENTIFY_PACKET = 0xA1
    SMART = 0xB0
    READ_MULTIPLE = 0xC4
    WRITE_MULTIPLE = 0xC5
    SET_MULTIPLE = 0xC6
    READ_DMA = 0xC8
    READ_DMA_NO_RETRY = 0xC9  # old
    WRITE_DMA = 0xCA
    WRITE_DMA_NO_RETRY = 0xCB  # old
    STANDBY_IMMEDIATE = 0xE0
    IDLE_IMMEDIATE = 0xE1
    STANDBY = 0xE2
    IDLE = 0xE3
    CHECK_POWER_MODE = 0xE5
    SLEEP = 0xE6
    FLUSH_CACHE = 0xE7
    FLUSH_CACHE_EXT = 0xEA
    IDENTIFY = 0xEC
    SET_FEATURES = 0xEF
    READ_NATIVE_MAX = 0xF8


class TaskFile:
    """The command block registers of one drive, by offset, with the bytes written before them."""

    __slots__ = ("error", "intrq", "previous", "registers", "status")

    def __init__(self) -> None:
        self.registers = bytearray(8)
        self.previous = bytearray(8)
        self.error = 0
        self.status = 0
        self.intrq = False
        """Interrupt pending in the drive; on the cable only while it is selected and nIEN is zero."""

    def put(self, offset: int, value: int) -> None:
        """Take a host's write: the old content moves to the previous byte."""
        self.previous[offset] = self.registers[offset]
        self.registers[offset] = value

    @property
    def count28(self) -> int:
        """The 8-bit sector count, zero meaning 256."""
        return self.registers[COUNT] or 256

    @property
    def count48(self) -> int:
        """The 16-bit sector count, zero meaning 65536."""
        return self.previous[COUNT] << 8 | self.registers[COUNT] or 65536

    @property
    def lba28(self) -> int:
        """The 28-bit address."""
        r = self.registers
        return (r[DEVICE] & 0x0F) << 24 | r[LBA_HIGH] << 16 | r[LBA_MID] << 8 | r[LBA_LOW]

    @property
    def lba48(self) -> int:
        """The 48-bit address."""
        low, high = self.registers[LBA_LOW : LBA_HIGH + 1], self.previous[LBA_LOW : LBA_HIGH + 1]
        return int.from_bytes(low + high, "little")

    def set_lba28(self, lba: int) -> None:
        """Report a 28-bit address."""
        self.registers[LBA_LOW : LBA_HIGH + 1] = (lba & 0xFFFFFF).to_bytes(3, "little")
        self.registers[DEVICE] = self.registers[DEVICE] & 0xF0 | lba >> 24 & 0x0F

    def set_lba48(self, lba: int) -> None:
        """Report a 48-bit address."""
        data = lba.to_bytes(6, "little")
        self.registers[LBA_LOW : LBA_HIGH + 1] = data[:3]
        self.previous[LBA_LOW : LBA_HIGH + 1] = data[3:]

    def set_signature(self, mid: int, high: int) -> None:
        """Report what kind of device this is (clause 9.12)."""
        self.registers[COUNT : DEVICE + 1] = bytes((1, 1, mid, high, self.registers[DEVICE] & DEV))
        self.previous[:] = bytes(8)
