"""Ranges of guest pages, as GPADLs and ring packets list them: their format, and the guest's memory behind them.

As in Linux' include/linux/hyperv.h (gpa_range). The invariant: what was unpacked names only pages of the guest's memory, and as
many as its bytes take.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from mypy_extensions import mypyc_attr

from avmm.memory import PAGE, GuestMemory, Segment
from avmm.vmbus.wire import WireError

RANGE: Final = struct.Struct("<II")
_new: Final = tuple.__new__  # a named tuple's own is a Python function


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


@mypyc_attr(native_class=False)  # mypyc makes none of a tuple
class GpaRanges(tuple[GpaRange, ...]):
    """The ranges of one packet, in order; reads and writes go through all of them as if they were one."""

    __slots__ = ()

    @property
    def byte_count(self) -> int:
        """The bytes of all ranges together."""
        if len(self) == 1:
            return self[0][0]
        return sum(one.byte_count for one in self)

    def segments(self, length: int) -> list[Segment]:
        """Return (guest-physical address, length) of each contiguous piece of the first ``length`` bytes, in order."""
        if len(self) == 1:
            count, offset, pfns = self[0]
            length = min(length, count)
            more = len(pfns) - 1
            if not more:
                return [(pfns[0] * PAGE + offset, length)]
            if more < 0:
                return []
            first = pfns[0]
            if pfns[more] - first == more and pfns == tuple(range(first, first + more + 1)):
                return [(first * PAGE + offset, length)]
            first = PAGE - offset
            whole, last = divmod(length - first, PAGE)
            if whole >= 0:
                scattered = [(pfns[0] * PAGE + offset, first)] + [(pfn * PAGE, PAGE) for pfn in pfns[1 : whole + 1]]
                return [*scattered, (pfns[whole + 1] * PAGE, last)] if last else scattered
        segments: list[Segment] = []
        for one in self:
            for address, size in one.segments():
                if length <= 0:
                    return segments
                segments.append((address, min(size, length)))
                length -= size
        return segments

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


def unpack_ranges(data: bytes, count: int, pages: int, at: int = 0, end: int | None = None) -> tuple[GpaRanges, int]:
    """Read ``count`` ranges from ``at`` on; return them and where they end. Page numbers must be below ``pages``."""
    ranges: list[GpaRange] = []
    if end is None:
        end = len(data)
    while len(ranges) < count:
        first = at + 8
        if first > end:
            raise WireError(f"{count} ranges do not fit in {len(data)} bytes")
        byte_count, byte_offset = RANGE.unpack_from(data, at)
        if not byte_count or byte_offset >= PAGE:
            raise WireError(f"a range of {byte_count} bytes at offset {byte_offset} into its page")
        needed = byte_offset + byte_count + 0xFFF >> 12
        at = first + (needed << 3)
        if at > end:
            raise WireError(f"a range of {byte_count} bytes needs {needed} pages, and {(end - first) // 8} are named")
        pfns = _PFNS[needed].unpack_from(data, first) if needed < 18 else struct.unpack_from(f"<{needed}Q", data, first)
        if max(pfns) >= pages:
            raise WireError(f"page {max(pfns):#x} is not in the guest's memory")
        ranges.append(_new(GpaRange, (byte_count, byte_offset, pfns)))
    return GpaRanges(ranges), at


_PFNS: Final = [struct.Struct(f"<{pages}Q") for pages in range(18)]  # up to 64 KiB, wherever in its first page they begin
