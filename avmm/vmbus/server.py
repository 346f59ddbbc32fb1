"""What a device server in VM-H sees of VMBus: the channel it offers, the packets it receives, and its end of the channel.

A server is written once against these types and knows nothing of hypercalls, messages or ring layout. All calls to a
server are plain functions made on the machine's event loop; what takes time goes through ``ChannelEnd.board.start``.
A whole packet is copied out of guest memory before the server sees it; what it gets is checked as far as the transport
goes (sizes, alignment, page numbers below the end of RAM), never as far as its own protocol goes.

The invariant: ``opened``, then any number of ``received``, then ``closed``; after ``closed`` nothing the server still
holds reaches the guest through the channel (:attr:`ChannelEnd.is_open` is false, :meth:`ChannelEnd.send` refuses).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable
from uuid import UUID

from avmm.clock import Timer
from avmm.devices.device import Board
from avmm.memory import PAGE, GuestMemory, Segment
from avmm.vmbus.packets import PacketKind as PacketKind  # noqa: PLC0414 - servers take it from here
from avmm.vmbus.packets import PageRange

ENUMERATE_INTERFACE = 0x1
"""Offer flag: the guest makes a device of it."""
PIPE_MODE = 0x10
"""Offer flag: named-pipe mode; each message in a packet has an 8-byte pipe header, which the server handles."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What the guest is told of a channel. ``user_data`` of up to 120 bytes is padded with zeros."""

    interface: UUID
    instance: UUID
    user_data: bytes = b""
    flags: int = ENUMERATE_INTERFACE
    sub_channel: int = 0
    """0 for the primary channel; sub-channels carry the same two GUIDs and an index of 1 or more."""
    mmio_megabytes: int = 0
    name: str = "channel"
    """For traces and people."""


class GpaRange(PageRange):
    """``byte_count`` bytes of guest memory, beginning ``byte_offset`` bytes into the first of the pages ``pfns``.

    In a transfer-page packet there are no page numbers: the range lies in the buffer that ``Packet.page_set`` names.
    """

    __slots__ = ()

    def segments(self) -> Iterator[tuple[int, int]]:
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

    def read(self, memory: GuestMemory) -> bytes:
        """Return the bytes of the range."""
        return b"".join([memory.read(address, length) for address, length in self.segments()])

    def write(self, memory: GuestMemory, data: bytes | bytearray | memoryview) -> int:
        """Store ``data`` from the start of the range on, as much as fits; return how many bytes were stored."""
        view = memoryview(data)
        done = 0
        for address, length in self.segments():
            if done >= len(view):
                break
            piece = min(length, len(view) - done)
            memory.write(address, view[done : done + piece])
            done += piece
        return done


class GpaRanges(tuple[GpaRange, ...]):
    """The ranges of one packet, in order; reads and writes go through all of them as if they were one."""

    __slots__ = ()

    @property
    def byte_count(self) -> int:
        """The bytes of all ranges together."""
        if len(self) == 1:
            return self[0].byte_count
        return sum(one.byte_count for one in self)

    def segments(self, length: int) -> list[Segment]:
        """Return (guest-physical address, length) of each contiguous piece of the first ``length`` bytes, in order."""
        if len(self) == 1:
            count, offset, pfns = self[0]
            length = min(length, count)
            if len(pfns) == 1 or pfns == tuple(range(pfns[0], pfns[0] + len(pfns))):
                return [(pfns[0] * PAGE + offset, length)]
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
        return b"".join([one.read(memory) for one in self])

    def write(self, memory: GuestMemory, data: bytes | bytearray | memoryview) -> int:
        """Store ``data``, as much as fits; return how many bytes were stored."""
        view = memoryview(data)
        done = 0
        for one in self:
            done += one.write(memory, view[done:])
        return done


class Packet(NamedTuple):
    """One packet from the guest. ``payload`` is what follows the descriptor and the ranges, padded to 8 bytes by the ring."""

    kind: PacketKind
    flags: int
    transaction_id: int
    payload: bytes
    ranges: GpaRanges = GpaRanges()
    page_set: int = 0
    """The transfer page set that the ranges of a transfer-page packet lie in."""
    request_id: int = 0
    """Names the request's whole journey in traces; the same as ``avmm.hypervisor.irp.journey`` while it is received."""

    @property
    def completion_requested(self) -> bool:
        """Whether the guest waits for a completion packet with this transaction id."""
        return self.flags & 1 != 0


class ChannelEnd(Protocol):
    """The host's end of one open channel, as its server holds it."""

    on_room: Callable[[], None] | None
    """Called when the guest has made room after a refused :meth:`send`; None to hear nothing."""

    @property
    def memory(self) -> GuestMemory:
        """The guest's memory, for the ranges of packets."""

    @property
    def board(self) -> Board:
        """The machine: clock, background work (``start``), trace, random."""

    @property
    def channel_id(self) -> int:
        """The number the guest knows the channel by."""

    @property
    def open_data(self) -> bytes:
        """The 120 bytes of user data of the guest's OPEN_CHANNEL."""

    @property
    def is_open(self) -> bool:
        """Whether the guest still has it open. Look before writing into a packet's ranges when time has passed."""

    def can_send(self, length: int) -> bool:
        """Return whether a packet with ``length`` payload bytes fits in the ring now."""

    def send(self, kind: PacketKind, payload: bytes, transaction_id: int, *, completion_requested: bool = False) -> bool:
        """Put a packet into the guest's ring and signal by the ring's rules. False, and nothing sent, when it does not fit."""

    def limit(self, requests: int, reply_bytes: int) -> None:
        """Take at most ``requests`` packets that want a completion out of the ring before they are completed.

        And one more only while a completion of ``reply_bytes`` payload for each of them is sure to fit. By default 256
        requests of 64 bytes. A completion is any :meth:`send` of ``PacketKind.COMPLETION``.
        """

    def fail(self, reason: str) -> None:
        """End the channel because the guest broke its protocol: a trace event, ``closed()``, and no more packets."""


class ChannelServer(Protocol):
    """A device server: what it offers and what it is told. An exception from it is our bug and stops that one VM."""

    @property
    def offer(self) -> Offer:
        """What the guest is told of the channel. Constant while offered."""

    def opened(self, channel: ChannelEnd) -> None:
        """The guest opened the channel. It may come again after :meth:`closed`."""

    def received(self, packet: Packet) -> None:
        """One packet came in; called in ring order."""

    def closed(self) -> None:
        """The guest closed the channel, went away, or broke the transport's rules; drop what is in flight."""


@runtime_checkable
class SavedServer(Protocol):
    """A server whose open channel can be in a snapshot. That of another makes the machine one that cannot be saved."""

    def save_channel(self) -> object:
        """Return what it knows of its channel as a frozen dataclass with a ``version``. The machine stands still."""

    def restore_channel(self, channel: ChannelEnd, state: Any) -> None:
        """Go on from what :meth:`save_channel` returned, instead of being told ``opened``. ValueError when it does not fit."""

    def deadlines(self) -> list[Timer]:
        """Return the timers of what is under way on the channel, in an order that is the same after it was restored."""
