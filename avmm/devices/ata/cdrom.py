"""The command packets of a CD-ROM drive: one data track, read-only.

SPC-3 (INQUIRY, REQUEST SENSE, MODE SENSE ...), MMC-5 (READ TOC, GET CONFIGURATION ...) and SFF-8020i. A command is
answered with a :class:`Reply`: data, sectors to be read, or sense data; nothing is moved here.

The invariant: no answer is longer than the allocation length of its command.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from mypy_extensions import mypyc_attr

from avmm.devices.ata.drive import GOOD, AtapiCdrom, Sense

NO_MEDIUM = Sense(2, 0x3A)
UNREADABLE = Sense(3, 0x11)
INVALID_COMMAND = Sense(5, 0x20)
OUT_OF_RANGE = Sense(5, 0x21)
INVALID_FIELD = Sense(5, 0x24)
LOCKED = Sense(5, 0x53, 2)

PROFILE_CDROM = 8
FRAMES = 75
LEAD_IN = 2 * FRAMES


@dataclass(frozen=True, slots=True)
@mypyc_attr(native_class=False)
class Reply:
    """What a command packet leads to; with everything empty it just ends well."""

    data: bytes = b""
    lba: int = 0
    count: int = 0
    """2048-byte sectors to be read."""
    sense: Sense = GOOD


OK = Reply()
Handler = Callable[[AtapiCdrom, bytes], Reply]


def execute(drive: AtapiCdrom, cdb: bytes) -> Reply:
    """Return the answer to a 12-byte command packet."""
    code = cdb[0]
    if code not in HANDLERS:
        return Reply(sense=INVALID_COMMAND)
    if code not in UNATTENDED:
        if drive.modes.attention != GOOD:
            attention = drive.modes.attention
            drive.modes = replace(drive.modes, attention=GOOD)
            return Reply(sense=attention)
        drive.modes = replace(drive.modes, sense=GOOD)
    if code in MEDIUM_NEEDED and not drive.sectors:
        return Reply(sense=NO_MEDIUM)
    return HANDLERS[code](drive, cdb)


def msf(lba: int) -> tuple[int, int, int]:
    """Return minute, second and frame of a sector (MMC-5 table 676)."""
    minute, rest = divmod(lba + LEAD_IN, 60 * FRAMES)
    return min(minute, 255), rest // FRAMES, rest % FRAMES


def _word(cdb: bytes, at: int) -> int:
    return int.from_bytes(cdb[at : at + 2], "big")


def _long(cdb: bytes, at: int) -> int:
    return int.from_bytes(cdb[at : at + 4], "big")


def _ready(drive: AtapiCdrom, cdb: bytes) -> Reply:
    return OK


def _request_sense(drive: AtapiCdrom, cdb: bytes) -> Reply:
    sense = drive.modes.sense
    if sense == GOOD and drive.modes.attention != GOOD:
        sense = drive.modes.attention
        drive.modes = replace(drive.modes, attention=GOOD)
    drive.modes = replace(drive.modes, sense=GOOD)
    data = struct.pack(">BxBIB4xBBxI", 0x70, sense.key, 0, 10, sense.asc, sense.ascq, 0)
    return Reply(data[:18][: cdb[4]])


def _inquiry(drive: AtapiCdrom, cdb: bytes) -> Reply:
    if cdb[1] & 3 or cdb[2]:
        return Reply(sense=INVALID_FIELD)  # no vital product data
    vendor, _, product = drive.model.partition(" ")
    data = struct.pack(">BBBBB3x", 5, 0x80, 0, 0x21, 31)
    data += vendor.encode("ascii", "replace")[:8].ljust(8) + product.encode("ascii", "replace")[:16].ljust(16) + b"1.0 "
    return Reply(data[: cdb[4]])


def _start_stop(drive: AtapiCdrom, cdb: bytes) -> Reply:
    if cdb[4] & 2:  # LoEj: bit 0 says which way
        if cdb[4] & 1:
            drive.modes = replace(drive.modes, loaded=True)
        elif drive.modes.locked:
            return Reply(sense=LOCKED)
        else:
            drive.modes = replace(drive.modes, loaded=False, event=3)
    return OK


def _prevent_removal(drive: AtapiCdrom, cdb: bytes) -> Reply:
    drive.modes = replace(drive.modes, locked=bool(cdb[4] & 1))
    return OK


def _read_capacity(drive: AtapiCdrom, cdb: bytes) -> Reply:
    return Reply(struct.pack(">II", min(drive.sectors - 1, 0xFFFFFFFF), 2048))


def _sectors(drive: AtapiCdrom, lba: int, count: int) -> Reply:
    if lba + count > drive.sectors:
        return Reply(sense=OUT_OF_RANGE)
    return Reply(lba=lba, count=count)


def _read10(drive: AtapiCdrom, cdb: bytes) -> Reply:
    return _sectors(drive, _long(cdb, 2), _word(cdb, 7))


def _read12(drive: AtapiCdrom, cdb: bytes) -> Reply:
    return _sectors(drive, _long(cdb, 2), _long(cdb, 6))


def _read_cd(drive: AtapiCdrom, cdb: bytes) -> Reply:
    """READ CD with the 2048 bytes of user data of a mode 1 sector only."""
    if not cdb[9] & 0xF8:
        return OK
    if cdb[9] & 0xF8 != 0x10 or cdb[10] & 7 or cdb[1] >> 2 & 7 not in (0, 2):
        return Reply(sense=INVALID_FIELD)
    return _sectors(drive, _long(cdb, 2), int.from_bytes(cdb[6:9], "big"))


def _seek(drive: AtapiCdrom, cdb: bytes) -> Reply:
    return OK if _long(cdb, 2) < drive.sectors else Reply(sense=OUT_OF_RANGE)


def _read_toc(drive: AtapiCdrom, cdb: bytes) -> Reply:
    """Formats 0 (the track and the lead-out), 1 (the only session) and 2 (as in the lead-in area)."""
    form = cdb[2] & 0x0F or cdb[9] >> 6  # SFF-8020i had it in the control byte
    time = bool(cdb[1] & 2)

    def place(lba: int) -> bytes:
        return bytes((0, *msf(lba))) if time else struct.pack(">I", min(lba, 0xFFFFFFFF))

    if form == 0:
        if cdb[6] > 1 and cdb[6] != 0xAA:
            return Reply(sense=INVALID_FIELD)
        tracks = [(1, 0)] if cdb[6] <= 1 else []
        tracks.append((0xAA, drive.sectors))
        body = b"".join(bytes((0, 0x14, number, 0)) + place(lba) for number, lba in tracks)
    elif form == 1:
        body = bytes((0, 0x14, 1, 0)) + place(0)
    elif form == 2:
        points = [(0xA0, (1, 0, 0)), (0xA1, (1, 0, 0)), (0xA2, msf(drive.sectors)), (1, msf(0))]
        body = b"".join(bytes((1, 0x14, 0, point, 0, 0, 0, 0, *when)) for point, when in points)
    else:
        return Reply(sense=INVALID_FIELD)
    return Reply((struct.pack(">HBB", len(body) + 2, 1, 1) + body)[: _word(cdb, 7)])


def _subchannel(drive: AtapiCdrom, cdb: bytes) -> Reply:
    """READ SUB-CHANNEL: no audio, so there is only the header (status 15h: no current status)."""
    return Reply(bytes((0, 0x15, 0, 0))[: _word(cdb, 7)])


def _get_configuration(drive: AtapiCdrom, cdb: bytes) -> Reply:
    current = PROFILE_CDROM if drive.sectors else 0
    features = [
        (0x0000, 0x03, struct.pack(">HBx", PROFILE_CDROM, bool(current))),
        (0x0001, 0x0B, struct.pack(">IB3x", 2, 1)),  # core; ATAPI
        (0x0003, 0x03, struct.pack(">B3x", 0x29)),  # removable medium: tray, eject, lock
        (0x0010, bool(current), struct.pack(">IHBx", 2048, 1, 0)),  # random readable
        (0x001E, bool(current), bytes(4)),  # CD read
    ]
    kind, first = cdb[1] & 3, _word(cdb, 2)
    chosen = [
        struct.pack(">HBB", code, flags, len(data)) + data
        for code, flags, data in features
        if (code == first if kind == 2 else code >= first) and (kind != 1 or flags & 1)
    ]
    body = b"".join(chosen)
    return Reply((struct.pack(">IHH", len(body) + 4, 0, current) + body)[: _word(cdb, 7)])


def _get_event(drive: AtapiCdrom, cdb: bytes) -> Reply:
    """GET EVENT STATUS NOTIFICATION, polled, of the media class."""
    if not cdb[1] & 1:
        return Reply(sense=INVALID_FIELD)
    if cdb[4] & 0x10:
        status = 2 if drive.sectors else 0 if drive.modes.loaded else 1
        data = struct.pack(">HBBBBxx", 6, 4, 0x10, drive.modes.event, status)
        if _word(cdb, 7) > 4:
            drive.modes = replace(drive.modes, event=0)
    else:
        data = struct.pack(">HBB", 2, 0x80, 0x10)
    return Reply(data[: _word(cdb, 7)])


def _disc_information(drive: AtapiCdrom, cdb: bytes) -> Reply:
    """READ DISC INFORMATION: finalised, one complete session with one track."""
    data = struct.pack(">HBBBBBBB3x", 32, 0x0E, 1, 1, 1, 1, 0x20, 0)
    return Reply(data.ljust(34, b"\0")[: _word(cdb, 7)])


def _mode_pages(drive: AtapiCdrom, cdb: bytes) -> bytes | None:
    pages = {
        0x01: bytes((0x01, 0x06, 0, 5, 0, 0, 0, 0)),  # error recovery: five retries
        0x0E: bytes((0x0E, 0x0E, 4)).ljust(16, b"\0"),  # audio control
        0x2A: bytes((0x2A, 0x12, 0, 0, 0, 0x60, 0x29 | drive.modes.locked << 1, 0)) + struct.pack(">HHHH4x", 4234, 2, 256, 4234),
    }
    page, changeable = cdb[2] & 0x3F, cdb[2] >> 6 == 1
    chosen = list(pages.values()) if page == 0x3F else [pages[page]] if page in pages else None
    if chosen is None or cdb[2] >> 6 == 3:
        return None  # no such page; no saved values
    return b"".join(data[:2] + bytes(len(data) - 2) if changeable else data for data in chosen)


def _mode_sense6(drive: AtapiCdrom, cdb: bytes) -> Reply:
    body = _mode_pages(drive, cdb)
    if body is None:
        return Reply(sense=INVALID_FIELD)
    return Reply((struct.pack(">BBBB", len(body) + 3, 1, 0x80, 0) + body)[: cdb[4]])


def _mode_sense10(drive: AtapiCdrom, cdb: bytes) -> Reply:
    body = _mode_pages(drive, cdb)
    if body is None:
        return Reply(sense=INVALID_FIELD)
    medium = 1 if drive.sectors else 0x70 if drive.modes.loaded else 0x71
    return Reply((struct.pack(">HB5x", len(body) + 6, medium) + body)[: _word(cdb, 7)])


def _mechanism_status(drive: AtapiCdrom, cdb: bytes) -> Reply:
    data = struct.pack(">BB3xBH", 0, 0 if drive.modes.loaded else 0x10, 1, 0)
    return Reply(data[: _word(cdb, 8)])


HANDLERS: dict[int, Handler] = {
    0x00: _ready,  # TEST UNIT READY
    0x03: _request_sense,
    0x12: _inquiry,
    0x1A: _mode_sense6,
    0x1B: _start_stop,
    0x1E: _prevent_removal,
    0x25: _read_capacity,
    0x28: _read10,
    0x2B: _seek,
    0x42: _subchannel,
    0x43: _read_toc,
    0x46: _get_configuration,
    0x4A: _get_event,
    0x51: _disc_information,
    0x5A: _mode_sense10,
    0xA8: _read12,
    0xBB: _ready,  # SET CD SPEED
    0xBD: _mechanism_status,
    0xBE: _read_cd,
}
UNATTENDED = frozenset((0x03, 0x12, 0x46, 0x4A))
"""Commands that unit attention does not stop (SPC-3 clause 5.6, MMC-5 clause 4.1.6)."""
MEDIUM_NEEDED = frozenset((0x00, 0x25, 0x28, 0x2B, 0x42, 0x43, 0x51, 0xA8, 0xBE))
