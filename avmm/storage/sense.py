"""SCSI statuses and sense data (SPC-4, 4.5 "Sense data"): why a command failed, in the fixed format of 18 bytes."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from avmm.devices.block import BlockFault

_FIXED = struct.Struct(">BBBIB4sBBB3s")


class ScsiStatus(enum.IntEnum):
    """The status byte of a command."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    BUSY = 0x08


class SenseKey(enum.IntEnum):
    """What sort of trouble it is."""

    NO_SENSE = 0
    NOT_READY = 2
    MEDIUM_ERROR = 3
    HARDWARE_ERROR = 4
    ILLEGAL_REQUEST = 5
    UNIT_ATTENTION = 6
    DATA_PROTECT = 7
    ABORTED_COMMAND = 0xB
    MISCOMPARE = 0xE


@dataclass(frozen=True, slots=True)
class Sense:
    """Sense key, additional sense code and qualifier; ``information`` is the sector it is about, if it is about one."""

    key: SenseKey
    asc: int = 0
    ascq: int = 0
    information: int | None = None

    def pack(self) -> bytes:
        """Return the fixed format. An information field of more than 32 bits does not fit and is left out, as the standard says."""
        info = self.information
        valid = info is not None and info >> 32 == 0
        return _FIXED.pack(0xF0 if valid else 0x70, 0, self.key, info if valid and info else 0, 10, b"", self.asc, self.ascq, 0, b"")


NO_SENSE: Final = Sense(SenseKey.NO_SENSE)
NO_MEDIUM: Final = Sense(SenseKey.NOT_READY, 0x3A)
INVALID_OPCODE: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x20)
OUT_OF_RANGE: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x21)
INVALID_FIELD: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x24)
NO_SUCH_LUN: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x25)
INVALID_PARAMETER: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x26)
PARAMETER_LENGTH: Final = Sense(SenseKey.ILLEGAL_REQUEST, 0x1A)
WRITE_PROTECTED: Final = Sense(SenseKey.DATA_PROTECT, 0x27)
WAS_RESET: Final = Sense(SenseKey.UNIT_ATTENTION, 0x29)
CAPACITY_CHANGED: Final = Sense(SenseKey.UNIT_ATTENTION, 0x2A, 0x09)
ABORTED: Final = Sense(SenseKey.ABORTED_COMMAND)
MISCOMPARE: Final = Sense(SenseKey.MISCOMPARE, 0x1D)


def of_fault(fault: BlockFault, lba: int, *, writing: bool) -> Sense:
    """Return the sense data for a request that the medium failed at sector ``lba``."""
    if fault is BlockFault.MEDIUM:
        return Sense(SenseKey.MEDIUM_ERROR, 0x0C if writing else 0x11, 0, lba)
    if fault is BlockFault.RANGE:
        return OUT_OF_RANGE
    return WRITE_PROTECTED if fault is BlockFault.READ_ONLY else NO_MEDIUM
