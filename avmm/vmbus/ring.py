"""Ring buffers in guest memory: the producer's and the consumer's end, for host and guest alike.

As in Linux' include/linux/hyperv.h (hv_ring_buffer, vmpacket_descriptor). A ring is a control page and D bytes of data; packets
wrap byte-wise at D. Each end owns one index and keeps it privately; the other side's index is read once, checked, and used from the
copy, since shared memory may change at any time. Packets are copied out whole before they are looked at.

The invariant: whatever the other side writes, an end touches no byte outside its ring; nonsense raises RingError.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from librt.strings import BytesWriter, read_i16_le, write_i64_le
from mypy_extensions import i64, mypyc_attr

from avmm._pieces import copy
from avmm.memory import PAGE, GuestMemory
from avmm.vmbus.packets import SMALLEST

WRITE_INDEX: Final = 0
READ_INDEX: Final = 4
INTERRUPT_MASK: Final = 8
PENDING_SEND_SIZE: Final = 12
FEATURES: Final = 64
_WRITE: Final = WRITE_INDEX // 4
_READ: Final = READ_INDEX // 4
_MASK: Final = INTERRUPT_MASK // 4
_PENDING: Final = PENDING_SEND_SIZE // 4
AHEAD: Final = 512  # bytes copied at once when a packet is taken: most are smaller
FEATURE_PENDING_SEND_SIZE: Final = 1
_copy: Final = copy  # of an imported name the module's table would be asked each time
GAP: Final = 8  # a ring is never filled to the last byte: equal indices mean empty


if sys.byteorder != "little":
    raise ImportError("avmm runs on little-endian hosts only")


class RingError(Exception):
    """The other side broke the ring's rules; one sentence says how."""


class RingMemory:
    """One ring in guest memory: ``pfns[0]`` is the control page, the rest the data. The caller has checked the page numbers.

    Words of the control page, and data in one piece, are read and written in place: nobody runs code there.
    """

    def __init__(self, memory: GuestMemory, pfns: Sequence[int]) -> None:
        if len(pfns) < 2:
            raise RingError(f"a ring of {len(pfns)} pages has no room for data")
        self.memory = memory
        at = pfns[0] * PAGE
        self.words = memory.view[at : at + PAGE].cast("B").cast("I")
        """The control page, in 32-bit words (this host is little-endian as the guest)."""
        self.size = (len(pfns) - 1) * PAGE
        """D: the bytes of data."""
        self._runs: list[tuple[int, int, int]] = []  # (offset in data, length, guest-physical address), contiguous pages joined
        for i, pfn in enumerate(pfns[1:]):
            if self._runs and self._runs[-1][2] + self._runs[-1][1] == pfn * PAGE:
                at, length, address = self._runs[-1]
                self._runs[-1] = (at, length + PAGE, address)
            else:
                self._runs.append((i * PAGE, PAGE, pfn * PAGE))
        at, length, address = self._runs[0]
        self._whole = memory.view[address : address + length] if length == self.size else None  # the data, when in one piece

    def word(self, offset: int) -> int:
        """Return a word of the control page."""
        return self.words[offset >> 2]

    def set_word(self, offset: int, value: int) -> None:
        """Store a word of the control page."""
        self.words[offset >> 2] = value

    def index(self, offset: int) -> int:
        """Return one of the two indices, checked."""
        value = self.words[offset >> 2]
        if value >= self.size or value & 7:
            name = "write" if offset == WRITE_INDEX else "read"
            raise RingError(f"the {name} index {value:#x} is not in a ring of {self.size:#x} bytes")
        return value

    def read(self, offset: int, length: int) -> bytes:
        """Copy ``length`` bytes of data from ``offset`` on, wrapping."""
        end = offset + length
        if self._whole is not None and end <= self.size:
            self.memory.copied += length
            return _copy(self._whole, offset, length)
        return b"".join([self.memory.read(address, piece) for address, piece in self._pieces(offset, length)])

    def write(self, offset: int, data: bytes) -> None:
        """Store data from ``offset`` on, wrapping."""
        end = offset + len(data)
        if self._whole is not None and end <= self.size:
            self.memory.copied += len(data)
            self._whole[offset:end] = data
            return
        at = 0
        for address, piece in self._pieces(offset, len(data)):
            self.memory.write(address, data[at : at + piece])
            at += piece

    def _pieces(self, offset: int, length: int) -> list[tuple[int, int]]:
        pieces = []
        while length > 0:
            offset %= self.size
            for at, size, address in self._runs:
                if at <= offset < at + size:
                    piece = min(length, at + size - offset)
                    pieces.append((address + offset - at, piece))
                    offset += piece
                    length -= piece
                    break
        return pieces


@dataclass(frozen=True)
@mypyc_attr(native_class=False)
class RingState:
    """An end's own index, and how large the ring must be for it."""

    index: int
    size: int
    version: int = 1


class Outgoing:
    """The producer's end: of a ring that begins, or as it was saved."""

    def __init__(self, ring: RingMemory, saved: RingState | None = None) -> None:
        self.ring = ring
        self._gathered = BytesWriter()
        if saved is not None:
            self.restore(saved)
            return
        self._write = ring.index(WRITE_INDEX)
        ring.index(READ_INDEX)
        self._room = 0  # as last seen: the consumer only makes more
        ring.set_word(FEATURES, ring.word(FEATURES) | FEATURE_PENDING_SEND_SIZE)

    @property
    def largest(self) -> int:
        """The largest packet that an empty ring takes, with its footer."""
        return self.ring.size - GAP

    def room(self) -> int:
        """Return how many bytes of packets, footers included, can be written now."""
        read = self.ring.index(READ_INDEX)
        self._room = self.ring.size - GAP - (self._write - read) % self.ring.size
        return self._room

    def fits(self, length: int) -> bool:
        """Whether so many bytes can be written now."""
        return self._room >= length or self.room() >= length

    def write(self, packet: bytes) -> bool | None:
        """Append a packet (a multiple of 8 bytes, without footer). Returns whether to signal; None when there is no room."""
        return self.show() if self.gather(packet) else None

    def gather(self, packet: bytes) -> bool:
        """Append a packet that the consumer is shown later, with others. False when there is no room."""
        at, length = self._write, len(packet) + 8
        if self._room < length and self.room() < length:
            return False
        self._gathered.write(packet)
        write_i64_le(self._gathered, i64(at) << 32)  # the footer
        self._room -= length
        at += length
        self._write = at if at < self.ring.size else at - self.ring.size
        return True

    def show(self) -> bool:
        """Let the consumer see what was gathered. Returns whether to signal: it had taken all there was before."""
        ring, data = self.ring, self._gathered.getvalue()
        if not data:
            return False
        self._gathered.truncate(0)
        before = self._write - len(data)
        if before < 0:
            before += ring.size
        ring.write(before, data)
        words = ring.words
        words[_WRITE] = self._write
        if words[_READ] == before:
            return not words[_MASK]
        ring.index(READ_INDEX)  # says so if it is none
        return False

    def want_room(self, length: int) -> bool:
        """Ask the consumer to signal when ``length`` bytes are free; 0 takes it back. Returns whether they are free now."""
        self.ring.set_word(PENDING_SEND_SIZE, min(length, self.largest))
        return self.room() >= length

    def save(self) -> RingState:
        """Return the state of this end; everything gathered must have been shown."""
        return RingState(self._write, self.ring.size)

    def restore(self, state: RingState) -> None:
        """Go on from a saved state."""
        _fits(self.ring, state)
        self._write, self._room = state.index, 0


class Incoming:
    """The consumer's end, new or as it was saved. :meth:`take` advances privately, :meth:`commit` gives the room back."""

    def __init__(self, ring: RingMemory, saved: RingState | None = None) -> None:
        self.ring = ring
        if saved is not None:
            self.restore(saved)
            return
        self._read = ring.index(READ_INDEX)
        self._committed = self._read
        self._seen = ring.index(WRITE_INDEX)

    def empty(self) -> bool:
        """Look how far the producer has come; whether everything has been taken."""
        self._seen = self.ring.index(WRITE_INDEX)
        return self._seen == self._read

    @property
    def drained(self) -> bool:
        """Whether everything has been taken that was there at the last look."""
        return self._seen == self._read

    def take(self) -> bytes | None:
        """Copy the next packet out, descriptor to padding, and go past it; None when there is none."""
        ring, at = self.ring, self._read
        if self._seen == at and self.empty():
            return None
        available = self._seen - at
        if available < 0:
            available += ring.size
        if available < SMALLEST:
            raise RingError(f"{available} bytes in the ring are no packet")
        head = ring.read(at, available if available < AHEAD else AHEAD)
        offset, length = int(i64(read_i16_le(head, 2)) << 3 & 0x7FFF8), int(i64(read_i16_le(head, 4)) << 3 & 0x7FFF8)
        if offset < 16 or length < offset or length + 8 > available:
            raise RingError(f"a packet of {length} bytes, data at {offset}, where {available} bytes are in the ring")
        end = at + length + 8
        self._read = end if end < ring.size else end - ring.size
        if length <= AHEAD:
            return head[:length]
        return head + ring.read((at + AHEAD) % ring.size, length - AHEAD)

    def commit(self) -> bool:
        """Give the room of what was taken back to the producer. Returns whether to signal: it waits for that much room."""
        ring = self.ring
        taken = self._read - self._committed
        if not taken:
            return False
        if taken < 0:
            taken += ring.size
        ring.words[_READ] = self._read
        self._committed = self._read
        wanted = ring.words[_PENDING] & ~7
        if not wanted:
            return False
        free = ring.size - GAP - (ring.index(WRITE_INDEX) - self._read) % ring.size
        return free - taken < wanted <= free

    def mask(self, masked: bool) -> None:
        """Tell the producer whether signals are of no use now."""
        self.ring.words[_MASK] = masked

    def save(self) -> RingState:
        """Return the state of this end; everything taken must be committed."""
        return RingState(self._committed, self.ring.size)

    def restore(self, state: RingState) -> None:
        """Go on from a saved state."""
        _fits(self.ring, state)
        self._read = self._committed = self._seen = state.index  # what the producer says is looked at when something is taken


def _fits(ring: RingMemory, state: RingState) -> None:
    if state.version != 1 or state.size != ring.size or not 0 <= state.index < state.size or state.index % 8:
        raise ValueError(f"this is not the saved end of a ring of {ring.size} bytes")
