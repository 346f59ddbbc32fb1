"""VMBus ring packets: encoders and decoders.

As in Linux' include/linux/hyperv.h, OpenVMM's vmbus_core and QEMU's vmbus-proto.h. All values are little-endian.
Decoders take bytes that were copied out of shared memory and check every length in them.

The invariant: a decoder either returns values that lie within its input or raises WireError with one clear sentence.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NoReturn, final

from librt.strings import BytesWriter, read_i32_le, read_i64_le, write_i64_le
from mypy_extensions import i64

from avmm.vmbus.ranges import RANGE, GpaRange, GpaRanges, pack_ranges
from avmm.vmbus.wire import WireError

DESCRIPTOR: Final = struct.Struct("<HHHHQ")
FOOTER: Final = struct.Struct("<II")
SMALLEST: Final = DESCRIPTOR.size + FOOTER.size
"""Bytes of a packet with nothing in it."""
COMPLETION_REQUESTED: Final = 1
_TOP: Final = 1 << 63
_COMPLETION: Final = 0xB  # compiled, a kind that is any int is the number and no longer the PacketKind
_GPA_DIRECT: Final = struct.Struct("<II")
_TRANSFER_PAGES: Final = struct.Struct("<HHI")


class PacketKind(enum.IntEnum):
    """Types of ring packets."""

    IN_BAND = 6
    TRANSFER_PAGES = 7
    GPA_DIRECT = 9
    COMPLETION = 0xB


@final
class Packet:
    """A ring packet taken apart. ``payload`` is what follows the descriptor and the ranges, padded to 8 bytes by the ring."""

    __slots__ = ("flags", "kind", "page_set", "payload", "ranges", "request_id", "transaction_id")

    def __init__(
        self, kind: PacketKind, flags: int, transaction_id: int, payload: bytes, ranges: GpaRanges | None = None, *,
        page_set: int = 0, request_id: int = 0,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.flags = flags
        self.transaction_id = transaction_id
        self.payload = payload
        self.ranges = _NO_RANGES if ranges is None else ranges
        """Their ``pfns`` are empty in a transfer-page packet."""
        self.page_set = page_set
        """The transfer page set that the ranges of a transfer-page packet lie in."""
        self.request_id = request_id
        """Names the request's whole journey in traces."""

    @property
    def completion_requested(self) -> bool:
        """Whether the guest waits for a completion packet with this transaction id."""
        return self.flags & COMPLETION_REQUESTED != 0


def packet_length(payload: int, between: int = 0) -> int:
    """Return the bytes a packet takes in the ring, footer included, for ``payload`` bytes behind ``between`` of ranges."""
    return DESCRIPTOR.size + (between + 7 & ~7) + (payload + 7 & ~7) + FOOTER.size


def pack_packet(kind: int, payload: bytes, transaction_id: int, *, flags: int = 0, ranges: list[GpaRange] | None = None) -> bytes:
    """Return a packet without its footer, padded to 8 bytes. ``ranges`` go into a GPA-direct or a transfer-page packet."""
    if kind == _COMPLETION and not len(payload) & 7:  # most are, and need no padding
        writer = BytesWriter()
        write_i64_le(writer, _COMPLETION | 2 << 16 | i64(2 + (len(payload) >> 3)) << 32 | i64(flags) << 48)
        write_i64_le(writer, i64(transaction_id if transaction_id < _TOP else transaction_id - (_TOP << 1)))
        writer.write(payload)
        return writer.getvalue()
    between = b""
    if kind == PacketKind.GPA_DIRECT:
        listed = ranges or []
        between = _GPA_DIRECT.pack(0, len(listed)) + pack_ranges(listed)
    elif kind == PacketKind.TRANSFER_PAGES:
        listed = ranges or []
        between = _TRANSFER_PAGES.pack(0, 0, len(listed)) + b"".join(RANGE.pack(one.byte_count, one.byte_offset) for one in listed)
    offset = DESCRIPTOR.size + len(between)
    length = offset + len(payload) + 7 >> 3
    head = DESCRIPTOR.pack(kind, offset >> 3, length, flags, transaction_id)
    return (head + between + payload).ljust(length << 3, b"\0")


def unpack_packet(data: bytes, pages: int, request_id: int = 0) -> Packet:
    """Take a packet apart that was copied out of a ring (descriptor to padding, no footer: 16 bytes at least).

    Page numbers must be below ``pages``. ``request_id`` is the packet's from now on.
    """
    head = read_i64_le(data, 0)
    number, offset, length, flags = int(head & 0xFFFF), int(head >> 13 & 0x7FFF8), int(head >> 29 & 0x7FFF8), int(head >> 48 & 0xFFFF)
    kind = _DIRECT if number == 9 else _KINDS.get(number)
    if kind is None or flags > COMPLETION_REQUESTED or offset < 16 or offset > length or length != len(data):
        _refuse(number, flags, offset, length)
    page_set, ranges = 0, _NO_RANGES
    if kind is _DIRECT:
        count = int(i64(read_i32_le(data, 20)) & 0xFFFFFFFF) if offset >= 24 else 0
        if not count:
            raise WireError("a GPA-direct packet without ranges")
        ranges = GpaRanges.unpack(data, count, pages, 24, offset)
    elif kind is _TRANSFER:
        page_set, ranges = _transfer_pages(data[16:offset])
    transaction_id = int(read_i64_le(data, 8))
    if transaction_id < 0:
        transaction_id += _TOP << 1
    return Packet(kind, flags, transaction_id, data[offset:], ranges, page_set=page_set, request_id=request_id)


def _refuse(number: int, flags: int, offset: int, length: int) -> NoReturn:
    if number not in _KINDS:
        raise WireError(f"a packet of unknown type {number}")
    if flags & ~COMPLETION_REQUESTED:
        raise WireError(f"a packet with unknown flags {flags:#x}")
    raise WireError(f"a packet of {length} bytes whose data begin at {offset}")


def _transfer_pages(between: bytes) -> tuple[int, GpaRanges]:
    if len(between) < _TRANSFER_PAGES.size:
        raise WireError("a transfer-page packet without its header")
    page_set, _, count = _TRANSFER_PAGES.unpack_from(between)
    end = _TRANSFER_PAGES.size + count * RANGE.size
    if end > len(between):
        raise WireError(f"{count} transfer-page ranges do not fit in {len(between)} bytes")
    return page_set, GpaRanges(GpaRange(*pair) for pair in RANGE.iter_unpack(between[_TRANSFER_PAGES.size : end]))


_KINDS: Final = {int(kind): kind for kind in PacketKind}
_DIRECT: Final = PacketKind.GPA_DIRECT
_TRANSFER: Final = PacketKind.TRANSFER_PAGES
_NO_RANGES: Final = GpaRanges()
