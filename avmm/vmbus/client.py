"""The guest's side of VMBus in Python, for tests and scripted guests: it drives the server through guest memory only.

It does what a guest driver does (as in Linux' drivers/hv): posts messages from a page of its own, takes messages out of
its SIMP slot and writes EOM, scans its event flags, and works both ends of each channel's rings from the other side.

The invariant: it knows the host only through :class:`Host`, that is hypercalls, synthetic MSRs and memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from avmm.hypervisor.hyperv import registers as reg
from avmm.hypervisor.hyperv.hypercall import POST_MESSAGE, SIGNAL_EVENT, Status
from avmm.memory import PAGE, GuestMemory
from avmm.vmbus import wire
from avmm.vmbus.packets import FOOTER, Packet, PacketKind, pack_packet, unpack_packet
from avmm.vmbus.ranges import GpaRange, pack_ranges
from avmm.vmbus.ring import Incoming, Outgoing, RingMemory

SINT = 2
SLOT = 256
FAST = 1 << 16


class Host(Protocol):
    """The hypervisor as a guest reaches it."""

    def call(self, control: int, first: int) -> int:
        """Make a hypercall."""

    def write(self, index: int, value: int) -> bool:
        """WRMSR; False is #GP."""


@dataclass(slots=True)
class GuestChannel:
    """An open channel as its guest driver holds it."""

    client: GuestClient
    offer: wire.OfferChannel
    gpadl: int
    pfns: tuple[int, ...]
    outgoing: Outgoing
    incoming: Incoming

    def send(
        self, payload: bytes, transaction_id: int, *, kind: PacketKind = PacketKind.IN_BAND, completion: bool = True,
        ranges: list[GpaRange] | None = None,
    ) -> bool:  # fmt: skip
        """Write a packet and signal by the rules; False when the ring is full (the host is asked to signal room)."""
        packet = pack_packet(kind, payload, transaction_id, flags=int(completion), ranges=ranges)
        signal = self.outgoing.write(packet)
        if signal is None and self.outgoing.want_room(len(packet) + FOOTER.size):
            signal = self.outgoing.write(packet)
        if signal is None:
            return False
        if signal:
            self.signal()
        return True

    def receive(self) -> list[Packet]:
        """Take everything the host has sent."""
        packets = []
        while (raw := self.incoming.take()) is not None:
            packets.append(unpack_packet(raw, self.client.memory.size // PAGE))
        if self.incoming.commit():
            self.signal()
        return packets

    def signal(self) -> int:
        """HvSignalEvent, fast."""
        return self.client.host.call(SIGNAL_EVENT | FAST, self.offer.connection_id)

    def close(self) -> None:
        """Close the channel and take the ring pages back."""
        client = self.client
        client.post(wire.CloseChannel(self.offer.channel_id))
        client.teardown(self.offer.channel_id, self.gpadl)


@dataclass(slots=True)
class GuestClient:
    """A guest's bus driver. ``pages`` are where it puts its own pages; :meth:`allocate` gives out those behind."""

    memory: GuestMemory
    host: Host
    first_page: int = 0x100
    version: int = 0
    message_connection: int = 1
    offers: dict[int, wire.OfferChannel] = field(default_factory=dict)
    rescinded: list[int] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    """Messages taken that nobody has waited for yet."""
    on_wait: Callable[[], None] = lambda: None
    """Called while waiting for an answer: lets machine time pass."""
    _next_gpadl: int = 0xE1E10
    _next_page: int = 0

    def __post_init__(self) -> None:
        self._next_page = self.first_page + 3
        self.enable()

    @property
    def _post_page(self) -> int:
        return self.first_page * PAGE

    @property
    def _slot(self) -> int:
        return (self.first_page + 1) * PAGE + SINT * SLOT

    def enable(self) -> None:
        """Set SynIC up as Linux does: message page, event page, SINT 2, and the controller itself."""
        write = self.host.write
        write(reg.SIMP, (self.first_page + 1) * PAGE | 1)
        write(reg.SIEFP, (self.first_page + 2) * PAGE | 1)
        write(reg.SINT0 + SINT, 0x200F3)
        write(reg.SCONTROL, 1)

    def allocate(self, count: int) -> tuple[int, ...]:
        """Return ``count`` zeroed pages."""
        pfns = tuple(range(self._next_page, self._next_page + count))
        self._next_page += count
        self.memory.write(pfns[0] * PAGE, bytes(count * PAGE))
        return pfns

    # -- messages

    def post_bytes(self, payload: bytes, connection: int | None = None) -> Status:
        """HvPostMessage."""
        head = struct.pack("<IIII", self.message_connection if connection is None else connection, 0, 1, len(payload))
        self.memory.write(self._post_page, head + payload.ljust(240, b"\0"))
        return Status(self.host.call(POST_MESSAGE, self._post_page) & 0xFFFF)

    def post(self, message: wire.Message) -> Status:
        """Post a control message."""
        return self.post_bytes(message.pack())

    def take_messages(self) -> list[bytes]:
        """Take what is in the slot, and what follows after EOM."""
        taken = []
        while self.memory.unpack("<I", self._slot)[0]:
            size, flags = self.memory.read(self._slot + 4, 2)
            taken.append(self.memory.read(self._slot + 16, size))
            self.memory.pack("<I", self._slot, 0)
            if flags & 1:
                self.host.write(reg.EOM, 0)
        for message in taken:
            self._note(message)
        self.messages += taken
        return taken

    def _note(self, message: bytes) -> None:
        number = wire.message_type(message)
        if number == wire.OfferChannel.TYPE:
            offer = wire.OfferChannel.unpack(message)
            self.offers[offer.channel_id] = offer
        elif number == wire.RescindChannelOffer.TYPE:
            self.rescinded.append(wire.RescindChannelOffer.unpack(message).channel_id)

    def wait(self, number: int) -> bytes:
        """Return the next message of a type. AssertionError when it does not come."""
        for _ in range(100):
            self.take_messages()
            for i, message in enumerate(self.messages):
                if wire.message_type(message) == number:
                    return self.messages.pop(i)
            self.on_wait()
        raise AssertionError(f"no message {number} came")

    # -- connection

    def contact(self, version: int) -> bool:
        """INITIATE_CONTACT; whether the version was accepted."""
        modern = version >= wire.Version.WIN10_5_0
        message = wire.InitiateContact(version, 0, SINT if modern else 0)
        status = self.post_bytes(message.pack(), 4 if modern else 1)
        if status is not Status.SUCCESS:
            return False
        answer = wire.VersionResponse.unpack(self.wait(wire.VersionResponse.TYPE))
        if answer.supported:
            self.version = version
            self.message_connection = answer.selected if modern else 1
        return bool(answer.supported)

    def request_offers(self) -> dict[int, wire.OfferChannel]:
        """Ask for the channels and wait for all of them."""
        self.post(wire.RequestOffers())
        self.wait(wire.AllOffersDelivered.TYPE)
        return self.offers

    def create_gpadl(self, channel_id: int, ranges: list[GpaRange]) -> tuple[int, int]:
        """Hand pages to the host; returns the GPADL's number and the status."""
        gpadl = self._next_gpadl
        self._next_gpadl += 1
        data = pack_ranges(ranges)
        first = 240 - wire.GpadlHeader.size()
        self.post(wire.GpadlHeader(channel_id, gpadl, len(data), len(ranges), data[:first]))
        step = 240 - wire.GpadlBody.size()
        for number, at in enumerate(range(first, len(data), step)):
            self.post(wire.GpadlBody(number, gpadl, data[at : at + step]))
        return gpadl, wire.GpadlCreated.unpack(self.wait(wire.GpadlCreated.TYPE)).status

    def teardown(self, channel_id: int, gpadl: int) -> None:
        """Take pages back."""
        self.post(wire.GpadlTeardown(channel_id, gpadl))
        self.wait(wire.GpadlTorndown.TYPE)

    def open(self, channel_id: int, pages: int = 4, *, pfns: tuple[int, ...] | None = None, user_data: bytes = b"") -> GuestChannel:
        """Open a channel with two rings of ``pages`` pages each. ConnectionError when the host refuses."""
        frames = pfns or self.allocate(2 * pages)
        gpadl, status = self.create_gpadl(channel_id, [GpaRange(len(frames) * PAGE, 0, frames)])
        if status:
            raise ConnectionError(f"GPADL refused: {status:#x}")
        at = len(frames) // 2
        outgoing, incoming = Outgoing(RingMemory(self.memory, frames[:at])), Incoming(RingMemory(self.memory, frames[at:]))
        self.post(wire.OpenChannel(channel_id, channel_id, gpadl, 0, at, user_data.ljust(120, b"\0")))
        result = wire.OpenChannelResult.unpack(self.wait(wire.OpenChannelResult.TYPE))
        if result.status:
            raise ConnectionError(f"channel {channel_id} refused: {result.status:#x}")
        return GuestChannel(self, self.offers[channel_id], gpadl, frames, outgoing, incoming)

    def take_events(self) -> list[int]:
        """Take the event flags: the channels that have something."""
        at = (self.first_page + 2) * PAGE + SINT * SLOT
        flags = int.from_bytes(self.memory.read(at, SLOT), "little")
        self.memory.write(at, bytes(SLOT))
        return [n for n in range(8 * SLOT) if flags >> n & 1]

    def unload(self) -> None:
        """Say good-bye."""
        self.post(wire.Unload())
        self.wait(wire.UnloadComplete.TYPE)
