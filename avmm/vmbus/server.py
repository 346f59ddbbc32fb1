"""What a device server in VM-H sees of VMBus: the channel it offers, the packets it receives, and its end of the channel.

A server is written once against these types and knows nothing of hypercalls, messages or ring layout. All calls to a
server are plain functions made on the machine's event loop; what takes time goes through ``ChannelEnd.board.start``.
A whole packet is copied out of guest memory before the server sees it; what it gets is checked as far as the transport
goes (sizes, alignment, page numbers below the end of RAM), never as far as its own protocol goes.

The invariant: ``opened``, then any number of ``received``, then ``closed``; after ``closed`` nothing the server still
holds reaches the guest through the channel (:attr:`ChannelEnd.is_open` is false, :meth:`ChannelEnd.send` refuses).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from avmm.clock import Timer
from avmm.devices.device import Board
from avmm.memory import GuestMemory
from avmm.vmbus.packets import Packet, PacketKind

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
class AnsweringServer(Protocol):
    """A server for whose answers a guest would wait for ever."""

    def retire(self) -> None:
        """The channel is about to be taken away: end what is in flight, as long as the guest hears of it."""


@runtime_checkable
class SavedServer(Protocol):
    """A server whose open channel can be in a snapshot. That of another makes the machine one that cannot be saved."""

    def save_channel(self) -> object:
        """Return what it knows of its channel as a frozen dataclass with a ``version``. The machine stands still."""

    def restore_channel(self, channel: ChannelEnd, state: Any) -> None:
        """Go on from what :meth:`save_channel` returned, instead of being told ``opened``. ValueError when it does not fit."""

    def deadlines(self) -> list[Timer]:
        """Return the timers of what is under way on the channel, in an order that is the same after it was restored."""
