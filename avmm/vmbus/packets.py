"""VMBus ring packets, and the ranges of guest pages in them and in GPADLs: encoders and decoders.

As in Linux' include/linux/hyperv.h, OpenVMM's vmbus_core and QEMU's vmbus-proto.h. All values are little-endian.
Decoders take bytes that were copied out of shared memory and check every length in them.

The invariant: a decoder either returns values that lie within its input or raises WireError with one clear sentence.
"""

from __future__ import annotations

import enum
import struct
from typing import Generic, NamedTuple, TypeVar

from avmm.vmbus.wire import PAGE, WireError

DESCRIPTOR = struct.Struct("<HHHHQ")
FOOTER = struct.Struct("<II")
COMPLETION_REQUESTED = 1
_GPA_DIRECT = struct.Struct("<II")
_TRANSFER_PAGES = struct.Struct("<HHI")
_RANGE = struct.Struct("<II")


class PacketKind(enum.IntEnum):
    """Types of ring packets."""

    IN_BAND = 6
    TRANSFER_PAGES = 7
    GPA_DIRECT = 9
    COMPLETION = 0xB


# -- ranges of guest pages, in GPADLs and in packets


class PageRange(NamedTuple):
    """``byte_count`` bytes from ``byte_offset`` into the first of ``pfns`` on."""

    byte_count: int
    byte_offset: int
    pfns: tuple[int, ...] = ()


R = TypeVar("R", bound=PageRange)


def pack_ranges(ranges: list[PageRange]) -> bytes:
    """Return ranges as GPADLs and GPA-direct packets carry them."""
    return b"".join(_RANGE.pack(one.byte_count, one.byte_offset) + struct.pack(f"<{len(one.pfns)}Q", *one.pfns) for one in ranges)


def unpack_ranges(
    data: bytes, count: int, pages: int, make: type[R], *, at: int = 0, end: int | None = None
) -> tuple[list[R], int]:
    """Read ``count`` ranges from ``at`` on; return them and where they end. Page numbers must be below ``pages``."""
    ranges: list[R] = []
    end = len(data) if end is None else end
    for _ in range(count):
        if at + _RANGE.size > end:
            raise WireError(f"{count} ranges do not fit in {len(data)} bytes")
        byte_count, byte_offset = _RANGE.unpack_from(data, at)
        at += _RANGE.size
        if not byte_count or byte_offset >= PAGE:
            raise WireError(f"a range of {byte_count} bytes at offset {byte_offset} into its page")
        needed = byte_offset + byte_count + PAGE - 1 >> 12
        if at + 8 * needed > end:
            raise WireError(f"a range of {byte_count} bytes needs {needed} pages, and {(end - at) // 8} are named")
        pfns = struct.unpack_from(f"<{needed}Q", data, at)
        at += 8 * needed
        if (pfns[0] if needed == 1 else max(pfns)) >= pages:
            raise WireError(f"page {max(pfns):#x} is not in the guest's memory")
        ranges.append(make(byte_count, byte_offset, pfns))
    return ranges, at


# -- ring packets


class RawPacket(NamedTuple, Generic[R]):
    """A ring packet taken apart. ``pfns`` of a transfer-page packet's ranges are empty."""

    kind: PacketKind
    flags: int
    transaction_id: int
    payload: bytes
    ranges: list[R]
    page_set: int


def packet_length(payload: int, between: int = 0) -> int:
    """Return the bytes a packet takes in the ring, footer included, for ``payload`` bytes behind ``between`` of ranges."""
    return DESCRIPTOR.size + (between + 7 & ~7) + (payload + 7 & ~7) + FOOTER.size


def pack_packet(
    kind: int, payload: bytes, transaction_id: int, *, flags: int = 0, ranges: list[PageRange] | None = None
) -> bytes:
    """Return a packet without its footer, padded to 8 bytes. ``ranges`` go into a GPA-direct packet."""
    between = b""
    if kind is _COMPLETION or kind is _IN_BAND:
        pass  # most, and no ranges between
    elif kind == PacketKind.GPA_DIRECT:
        listed = ranges or []
        between = _GPA_DIRECT.pack(0, len(listed)) + pack_ranges(listed)
    elif kind == PacketKind.TRANSFER_PAGES:
        listed = ranges or []
        between = _TRANSFER_PAGES.pack(0, 0, len(listed)) + b"".join(_RANGE.pack(one.byte_count, one.byte_offset) for one in listed)
    offset = DESCRIPTOR.size + len(between)
    length = offset + len(payload) + 7 >> 3
    head = DESCRIPTOR.pack(kind, offset >> 3, length, flags, transaction_id)
    return (head + between + payload).ljust(length << 3, b"\0")


def unpack_packet(data: bytes, pages: int, make: type[R]) -> RawPacket[R]:
    """Take a packet apart that was copied out of a ring (descriptor to padding, no footer), its ranges as ``make``.

    Page numbers must be below ``pages``.
    """
    number, offset8, length8, flags, transaction_id = DESCRIPTOR.unpack_from(data)
    offset = offset8 << 3
    kind = _KINDS.get(number)
    if kind is None:
        raise WireError(f"a packet of unknown type {number}")
    if flags & ~COMPLETION_REQUESTED:
        raise WireError(f"a packet with unknown flags {flags:#x}")
    if offset < DESCRIPTOR.size or offset > len(data) or length8 << 3 != len(data):
        raise WireError(f"a packet of {length8 << 3} bytes whose data begin at {offset}")
    if kind is _IN_BAND or kind is _COMPLETION:
        return RawPacket(kind, flags, transaction_id, data[offset:], [], 0)
    ranges: list[R] = []
    page_set = 0
    if kind is PacketKind.GPA_DIRECT:
        at = DESCRIPTOR.size + _GPA_DIRECT.size
        count = _GPA_DIRECT.unpack_from(data, DESCRIPTOR.size)[1] if at <= offset else 0
        if not count:
            raise WireError("a GPA-direct packet without ranges")
        ranges, _ = unpack_ranges(data, count, pages, make, at=at, end=offset)
    else:
        between = data[DESCRIPTOR.size : offset]
        if len(between) < _TRANSFER_PAGES.size:
            raise WireError("a transfer-page packet without its header")
        page_set, _, count = _TRANSFER_PAGES.unpack_from(between)
        if _TRANSFER_PAGES.size + count * _RANGE.size > len(between):
            raise WireError(f"{count} transfer-page ranges do not fit in {len(between)} bytes")
        pairs = _RANGE.iter_unpack(between[_TRANSFER_PAGES.size : _TRANSFER_PAGES.size + count * _RANGE.size])
        ranges = [make(byte_count, byte_offset, ()) for byte_count, byte_offset in pairs]
    return RawPacket(kind, flags, transaction_id, data[offset:], ranges, page_set)


_KINDS = {int(kind): kind for kind in PacketKind}
_IN_BAND, _COMPLETION = PacketKind.IN_BAND, PacketKind.COMPLETION
