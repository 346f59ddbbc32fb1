"""The 256 words of IDENTIFY DEVICE and IDENTIFY PACKET DEVICE.

ATA/ATAPI-6 (T13/1410D) clauses 8.15 and 8.16. The invariant: the bytes of the 512 add up to zero (word 255).
"""

from __future__ import annotations

import struct
from functools import cache

from avmm.devices.ata.drive import AtaDisk, AtapiCdrom, DiskModes, TransferModes

FIRMWARE = "1.0"
MAJOR = 0x007E  # ATA-1 up to ATA/ATAPI-6
VALID = 0x4000  # bit 15 zero, bit 14 one: the word (group) is valid

# words 82-84 and 85-87
NOP_SUPPORTED = 1 << 14
DEVICE_RESET_SUPPORTED = 1 << 9
LOOK_AHEAD = 1 << 6
WRITE_CACHE = 1 << 5
PACKET_SET = 1 << 4
POWER_SET = 1 << 3
FLUSH_EXT = 1 << 13
FLUSH = 1 << 12
LBA48_SET = 1 << 10


def identify_disk(drive: AtaDisk, number: int) -> bytes:
    """Return the answer of disk ``number`` (0 or 1) to IDENTIFY DEVICE."""
    modes, capacity, told = drive.modes, drive.disk.sectors, drive.told
    if told is None or told[0] is not modes or told[1] != capacity:
        told = drive.told = modes, capacity, _disk(drive, modes, capacity, number)
    return told[2]


def _disk(drive: AtaDisk, modes: DiskModes, capacity: int, number: int) -> bytes:
    geometry, cylinders = drive.geometry, drive.cylinders
    words = _common(drive.serial, drive.model, modes.transfer, number)
    words[0] = 0x0040  # ATA device, fixed
    words[1], words[3], words[6] = geometry.cylinders, geometry.heads, geometry.sectors
    words[47] = 0x8000 | drive.multiple_max
    words[48] = 0x0001  # 32-bit data port accesses (ATA-1)
    words[53] = 0x0007  # words 54-58, 64-70 and 88 are valid
    words[54], words[55], words[56] = cylinders, modes.heads, modes.sectors
    _put(words, 57, min(cylinders * modes.heads * modes.sectors, capacity), 2)
    words[59] = 0x0100 | modes.multiple if modes.multiple else 0
    _put(words, 60, min(capacity, 0x0FFFFFFF), 2)
    words[82] = NOP_SUPPORTED | LOOK_AHEAD | WRITE_CACHE | POWER_SET
    words[83] = VALID | FLUSH_EXT | FLUSH | LBA48_SET
    words[85] = NOP_SUPPORTED | modes.look_ahead * LOOK_AHEAD | modes.write_cache * WRITE_CACHE | POWER_SET
    words[86] = FLUSH_EXT | FLUSH | LBA48_SET
    _put(words, 100, capacity, 4)
    words[106] = VALID  # one logical sector of 512 bytes per physical sector
    return _seal(words)


def identify_cdrom(drive: AtapiCdrom, number: int) -> bytes:
    """Return the answer of CD-ROM drive ``number`` (0 or 1) to IDENTIFY PACKET DEVICE."""
    words = _common(drive.serial, drive.model, drive.modes.transfer, number)
    words[0] = 0x85C0  # ATAPI, CD-ROM, removable, DRQ within 50 us after PACKET, 12-byte packets
    words[53] = 0x0006
    words[71] = words[72] = 30
    words[82] = words[85] = NOP_SUPPORTED | DEVICE_RESET_SUPPORTED | PACKET_SET
    words[83] = VALID
    return _seal(words)


def _common(serial: str, model: str, transfer: TransferModes, number: int) -> list[int]:
    words = [0] * 256
    _text(words, 10, 10, serial.rjust(20))
    words[20], words[21], words[22] = 3, 512, 4  # dual-ported cached buffer of 256 KiB, 4 ECC bytes
    _text(words, 23, 4, FIRMWARE)
    _text(words, 27, 20, model)
    words[49] = 0x0F00  # DMA, LBA, IORDY and IORDY may be disabled
    words[50] = VALID
    words[51] = words[52] = 0x0200
    words[63], words[88] = _dma(transfer)
    words[64] = 0x0003  # PIO modes 3 and 4
    words[65] = words[66] = words[67] = words[68] = 120  # ns per cycle
    words[80] = MAJOR
    words[84] = words[87] = VALID
    words[93] = VALID | 0x2000 | (0x0100 if number else 0x0001)  # 80-conductor cable, numbered by jumper
    return words


def _dma(modes: TransferModes) -> tuple[int, int]:
    """Return words 63 (multiword DMA 0-2) and 88 (Ultra DMA 0-5), the selected mode in the upper byte."""
    mdma = 0 if modes.mdma is None else 0x100 << modes.mdma
    udma = 0 if modes.udma is None else 0x100 << modes.udma
    return 0x07 | mdma, 0x3F | udma


def _put(words: list[int], first: int, value: int, count: int) -> None:
    for index in range(count):
        words[first + index] = value >> 16 * index & 0xFFFF


def _text(words: list[int], first: int, count: int, text: str) -> None:
    words[first : first + count] = _encoded(text, count)


@cache
def _encoded(text: str, count: int) -> tuple[int, ...]:
    """ATA strings: two characters a word, the first in the upper byte, padded with spaces."""
    return struct.unpack(f">{count}H", text.encode("ascii", "replace")[: 2 * count].ljust(2 * count))


def _seal(words: list[int]) -> bytes:
    words[255] = 0x00A5
    data = bytearray(struct.pack("<256H", *words))
    data[511] = -sum(data) & 0xFF
    return bytes(data)
