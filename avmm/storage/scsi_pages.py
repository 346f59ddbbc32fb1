"""What a SCSI disk says about itself: INQUIRY data, vital product data, mode pages, capacities.

Follows SPC-4 (6.6 INQUIRY, 7.8 vital product data, 7.5 mode parameters) and SBC-3 (5.16 READ CAPACITY (16), 6.5 vital
product data). Big-endian throughout. Pure functions of what a disk is; none knows a request.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from mypy_extensions import mypyc_attr

from avmm.devices.block import SECTOR

MAX_TRANSFER: Final = 1 << 20
"""Bytes in one request, at most."""
MAX_UNMAP_DESCRIPTORS: Final = 256
MAX_WRITE_SAME: Final = 1 << 20
"""Sectors in one WRITE SAME that really writes, at most."""
UNMAP_GRAIN: Final = 4096 // SECTOR

CACHING_PAGE: Final = 0x08
CONTROL_PAGE: Final = 0x0A
ALL_PAGES: Final = 0x3F
WRITE_PROTECT: Final = 0x80
DPO_FUA: Final = 0x10


@dataclass(frozen=True, slots=True)
@mypyc_attr(native_class=False)
class Identity:
    """Who a disk says it is. The serial number makes it the same disk on every bus."""

    serial: str
    vendor: str = "AVMM"
    product: str = "Virtual Disk"
    revision: str = "1.0"

    @property
    def naa(self) -> bytes:
        """The name of 8 bytes, NAA 3 (locally assigned), made of the serial number."""
        digest = bytearray(hashlib.sha256(self.serial.encode()).digest()[:8])
        digest[0] = 0x30 | digest[0] & 0x0F
        return bytes(digest)


def _text(text: str, size: int) -> bytes:
    return text.encode("ascii", "replace")[:size].ljust(size)


def standard_inquiry(who: Identity) -> bytes:
    """Return the standard INQUIRY data of a disk: SPC-3, response format 2, command queueing."""
    head = bytes([0x00, 0x00, 0x05, 0x02, 91, 0x00, 0x00, 0x02])
    return (head + _text(who.vendor, 8) + _text(who.product, 16) + _text(who.revision, 4)).ljust(96, b"\0")


def absent_inquiry() -> bytes:
    """Return INQUIRY data of a logical unit that is not there and could not be: qualifier 3, type 1Fh."""
    return bytes([0x7F, 0x00, 0x05, 0x02, 31]).ljust(36, b"\0")


def vital_product_data(page: int, who: Identity, *, thin: bool) -> bytes | None:
    """Return a VPD page, None when there is no such page."""
    pages = {
        0x80: lambda: _text(who.serial, max(len(who.serial), 4)),
        0x83: lambda: _identification(who),
        0xB0: lambda: _block_limits(thin),
        0xB1: lambda: struct.pack(">H", 1).ljust(60, b"\0"),  # medium rotation rate 1: it does not turn
        0xB2: lambda: _provisioning(thin),
    }
    if page == 0x00:
        body = bytes([0x00, *pages])
    elif page in pages:
        body = pages[page]()
    else:
        return None
    return struct.pack(">BBH", 0, page, len(body)) + body


def _identification(who: Identity) -> bytes:
    """Return two designators of the logical unit: an NAA name (binary) and a T10 vendor's one (text)."""
    text = _text(who.vendor, 8) + who.serial.encode("ascii", "replace")
    return bytes([0x01, 0x03, 0, 8]) + who.naa + bytes([0x02, 0x01, 0, len(text)]) + text


def _block_limits(thin: bool) -> bytes:
    blocks = MAX_TRANSFER // SECTOR
    limits = (0xFFFFFFFF, MAX_UNMAP_DESCRIPTORS, UNMAP_GRAIN, 1 << 31) if thin else (0, 0, 0, 0)
    # WSNZ: a WRITE SAME of zero blocks is not "to the end of the disk".
    return struct.pack(">BBHIIIIIIIQ", 1, 0, UNMAP_GRAIN, blocks, blocks, 0, *limits, MAX_WRITE_SAME).ljust(60, b"\0")


def _provisioning(thin: bool) -> bytes:
    # LBPU, LBPWS, LBPWS10: unmapped by UNMAP and both WRITE SAMEs; thinly provisioned; what unmapped sectors read as is open.
    return bytes([0, 0xE0 if thin else 0, 0x02 if thin else 0, 0])


def capacity_10(sectors: int) -> bytes:
    """Return READ CAPACITY (10) data."""
    return struct.pack(">II", min(sectors - 1, 0xFFFFFFFF), SECTOR)


def capacity_16(sectors: int, *, thin: bool) -> bytes:
    """Return READ CAPACITY (16) data; LBPME says whether UNMAP makes sense."""
    return struct.pack(">QIBB", sectors - 1, SECTOR, 0, 0) + struct.pack(">H", 0x8000 if thin else 0) + bytes(16)


def mode_pages(page: int, control: int) -> bytes | None:
    """Return the mode pages asked for, None when there is no such page. ``control`` 1 asks what could be changed: nothing."""
    known = {
        CACHING_PAGE: bytes([CACHING_PAGE, 18, 0x04]).ljust(20, b"\0"),  # WCE: there is a write-back cache
        CONTROL_PAGE: bytes([CONTROL_PAGE, 10, 0, 0x10]).ljust(12, b"\0"),  # requests may be reordered
    }
    chosen = list(known.values()) if page == ALL_PAGES else [known[page]] if page in known else None
    if chosen is None:
        return None
    if control == 1:
        chosen = [one[:2].ljust(len(one), b"\0") for one in chosen]
    return b"".join(chosen)


def block_descriptor(sectors: int) -> bytes:
    """Return the short block descriptor of mode data."""
    return struct.pack(">II", min(sectors, 0xFFFFFFFF), SECTOR)


def lun_list(luns: list[int]) -> bytes:
    """Return REPORT LUNS data: peripheral device addressing up to 255, flat space addressing above."""
    entries = [struct.pack(">H6x", lun if lun < 256 else 0x4000 | lun) for lun in sorted(luns)]
    return struct.pack(">I4x", 8 * len(entries)) + b"".join(entries)
