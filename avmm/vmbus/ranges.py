"""Ranges of guest pages, as GPADLs and ring packets list them: their format, and the guest's memory behind them.

As in Linux' include/linux/hyperv.h (gpa_range). The invariant: what was unpacked names only pages of the guest's memory, and as
many as its bytes take.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, final

from librt.strings import read_i32_le, read_i64_le
from mypy_extensions import i64

from avmm._pieces import Pieces
from avmm.memory import PAGE, GuestMemory, Segment
from avmm.vmbus.wire import WireError

RANGE: Final = struct.Struct("<II")


class GpaRange(NamedTuple):
    """``byte_count`` bytes of guest memory, beginning ``byte_offset`` bytes into the first of the pages ``pfns``.

    In a transfer-page packet there are no page numbers: the range lies in the buffer that ``Packet.page_set`` names.
    """

    byte_count: int
    byte_offset: int
    pfns: tuple[int, ...] = ()

    def segments(self) -> Iterator[Segment]:
        """Yield (guest-physical address, length) of each contiguous piece, in order."""
        left, offset = self.byte_count, self.byte_offset
        address = length = 0
        for pfn in self.pfns:
            if left <= 0:
                break
            piece = min(left, PAGE - offset)
            at = pfn * PAGE + offset
            if length and address + length == at:
                length += piece
            else:
                if length:
                    yield address, length
                address, length = at, piece
            left -= piece
            offset = 0
        if length:
            yield address, length


@final
class GpaRanges:
    """The ranges of one packet, in order; reads and writes go through all of them as if they were one.

    Nearly always there is one. Its page numbers stay in the copy of the packet until somebody asks for them.
    """

    __slots__ = ("_at", "_listed", "_offset", "_packet", "byte_count")

    def __init__(self, listed: Iterable[GpaRange] = ()) -> None:
        self._listed: tuple[GpaRange, ...] | None = tuple(listed) if listed else ()
        self.byte_count = 0
        """The bytes of all ranges together."""
        for one in self._listed:
            self.byte_count += one.byte_count
        self._packet = b""
        self._at = self._offset = 0

    @staticmethod
    def unpack(packet: bytes, count: int, pages: int, at: int, end: int) -> GpaRanges:
        """Return the ranges that lie in a packet from ``at`` on; see :func:`unpack_ranges`."""
        if count != 1:
            return GpaRanges(unpack_ranges(packet, count, pages, at, end)[0])
        _range_end(packet, at, end, pages)
        ranges = GpaRanges()
        ranges._listed = None
        ranges.byte_count = int(i64(read_i32_le(packet, at)) & 0xFFFFFFFF)
        ranges._offset = int(read_i32_le(packet, at + 4))
        ranges._packet, ranges._at = packet, at + 8
        return ranges

    @property
    def listed(self) -> tuple[GpaRange, ...]:
        """The ranges themselves."""
        if self._listed is None:
            pages = self._offset + self.byte_count + PAGE - 1 >> 12
            self._listed = (GpaRange(self.byte_count, self._offset, struct.unpack_from(f"<{pages}Q", self._packet, self._at)),)
        return self._listed

    def segments(self, length: int) -> list[Segment]:
        """Return (guest-physical address, length) of each contiguous piece of the first ``length`` bytes, in order."""
        segments: list[Segment] = []
        for one in self.listed:
            for address, size in one.segments():
                if length <= 0:
                    return segments
                segments.append((address, min(size, length)))
                length -= size
        return segments

    def pieces(self, memory: GuestMemory, length: int) -> Pieces | None:
        """Return the RAM of the first ``length`` bytes (there are so many); see :meth:`GuestMemory.pieces`."""
        if self._at:
            return memory.pages(self._packet, self._at, self._offset, length)
        return memory.pieces(self.segments(length))

    def read(self, memory: GuestMemory) -> bytes:
        """Return the bytes of all ranges."""
        return b"".join([memory.read(*segment) for segment in self.segments(self.byte_count)])

    def write(self, memory: GuestMemory, data: bytes | bytearray | memoryview) -> int:
        """Store ``data``, as much as fits; return how many bytes were stored."""
        view, done = memoryview(data), 0
        for address, length in self.segments(len(view)):
            memory.write(address, view[done : done + length])
            done += length
        return done


def pack_ranges(ranges: list[GpaRange]) -> bytes:
    """Return ranges as GPADLs and GPA-direct packets carry them."""
    return b"".join(RANGE.pack(one.byte_count, one.byte_offset) + struct.pack(f"<{len(one.pfns)}Q", *one.pfns) for one in ranges)


def unpack_ranges(data: bytes, count: int, pages: int, at: int = 0, end: int | None = None) -> tuple[tuple[GpaRange, ...], int]:
    """Read ``count`` ranges from ``at`` on; return them and where they end. Page numbers must be below ``pages``."""
    ranges: list[GpaRange] = []
    if end is None:
        end = len(data)
    while len(ranges) < count:
        first, at = at, _range_end(data, at, end, pages)
        byte_count, byte_offset = RANGE.unpack_from(data, first)
        pfns = struct.unpack_from(f"<{(at - first >> 3) - 1}Q", data, first + 8)
        ranges.append(GpaRange(byte_count, byte_offset, pfns))
    return tuple(ranges), at


def _range_end(data: bytes, at: i64, end: i64, pages: i64) -> i64:
    """Check the range that begins at ``at``. Returns where its page numbers end."""
    first = at + 8
    if first > end:
        raise WireError(f"ranges do not fit in {len(data)} bytes")
    byte_count, byte_offset = i64(read_i32_le(data, at)) & 0xFFFFFFFF, i64(read_i32_le(data, at + 4)) & 0xFFFFFFFF
    if not byte_count or byte_offset >= PAGE:
        raise WireError(f"a range of {byte_count} bytes at offset {byte_offset} into its page")
    needed = byte_offset + byte_count + 0xFFF >> 12
    last = first + (needed << 3)
    if last > end:
        raise WireError(f"a range of {byte_count} bytes needs {needed} pages, and {(end - first) >> 3} are named")
    for number in range(first, last, 8):
        if not 0 <= read_i64_le(data, number) < pages:
            raise WireError(f"page {int.from_bytes(data[number : number + 8], 'little'):#x} is not in the guest's memory")
    return last
