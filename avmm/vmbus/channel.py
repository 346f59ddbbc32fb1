"""The host's end of an open channel: rings on one side, the device server on the other. Implements ``ChannelEnd``.

Packets and signals as in Linux' include/linux/hyperv.h. Whatever the guest does to the rings ends at most its channel, with a trace
event.

The invariant: a packet is taken out of the guest's ring only if the replies to it and to all taken before are sure to fit
into the other ring (:meth:`Channel.limit`), so nothing is ever left half done with nowhere to go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mypy_extensions import mypyc_attr

from avmm.devices.device import Board
from avmm.hypervisor.irp import next_id
from avmm.memory import PAGE, GuestMemory
from avmm.vmbus.packets import COMPLETION_REQUESTED, PacketKind, pack_packet, packet_length, unpack_packet
from avmm.vmbus.ring import Incoming, Outgoing, RingError, RingMemory, RingState
from avmm.vmbus.server import ChannelServer
from avmm.vmbus.wire import WireError

TURN: Final = 32
"""Packets taken in one turn; then others have theirs."""
REQUESTS, REPLY_BYTES = 256, 64
_COMPLETION: Final = PacketKind.COMPLETION
_next_id: Final = next_id  # of an imported name the module's table would be asked each time


@dataclass(slots=True)
class ChannelStats:
    """What went through one channel since it was opened."""

    signals: int = 0
    """From the guest."""
    interrupts: int = 0
    """To the guest."""
    received: int = 0
    sent: int = 0
    refused: int = 0
    """Sends that found the ring full."""


@dataclass(frozen=True, slots=True)
@mypyc_attr(native_class=False)
class OpenRequest:
    """What the guest said when it opened the channel: its number, the pages, where the second ring begins, and user data."""

    channel_id: int
    pfns: tuple[int, ...]
    downstream_page: int
    user_data: bytes = b""


@dataclass(frozen=True, slots=True)
@mypyc_attr(native_class=False)
class ChannelState:
    """The host's end of an open channel, its server's state aside."""

    incoming: RingState
    outgoing: RingState
    outstanding: int
    waits_for_room: bool
    held: bool
    version: int = 1


class Channel:
    """An open channel. ``interrupt()`` tells the guest to look at its ring, ``again()`` has :meth:`service` run soon.

    Raises RingError when the rings are not usable as they are. With ``saved`` it goes on as it was: the guest's side of the rings is
    not looked at then, before it is its turn; ValueError when these are other rings.
    """

    def __init__(
        self,
        board: Board,
        server: ChannelServer,
        request: OpenRequest,
        *,
        interrupt: Callable[[], None],
        again: Callable[[], None],
        ended: Callable[[str], None],
        saved: ChannelState | None = None,
    ) -> None:
        self._board = board
        self._server = server
        self._request = request
        self._interrupt_guest = interrupt
        self._again = again
        self._ended = ended
        at = request.downstream_page
        self._incoming = Incoming(RingMemory(board.memory, request.pfns[:at]), saved.incoming if saved is not None else None)
        self._outgoing = Outgoing(RingMemory(board.memory, request.pfns[at:]), saved.outgoing if saved is not None else None)
        self._pages = board.memory.size // PAGE
        self._open = True
        self._limit, self._reply = REQUESTS, packet_length(REPLY_BYTES)
        self._waits_for_room = self._held = False
        self._turning = False  # what is sent meanwhile is shown to the guest together, at the end
        self.outstanding = 0
        """Packets taken that want a completion and have none yet."""
        self.on_room: Callable[[], None] | None = None
        self.watcher: Callable[[str, int, int], None] | None = None
        """Told ``signal``, ``taken`` (request id, transaction id), ``sent`` (0, transaction id) and ``interrupt`` while somebody traces."""
        self.stats = ChannelStats()
        if saved is not None:
            if saved.version != 1 or saved.outstanding < 0:
                raise ValueError(f"a saved channel of version {saved.version} with {saved.outstanding} packets outstanding")
            self.outstanding, self._waits_for_room, self._held = saved.outstanding, saved.waits_for_room, saved.held

    # -- what the server sees

    @property
    def memory(self) -> GuestMemory:
        """The guest's memory."""
        return self._board.memory

    @property
    def board(self) -> Board:
        """The machine."""
        return self._board

    @property
    def channel_id(self) -> int:
        """The number the guest knows the channel by."""
        return self._request.channel_id

    @property
    def open_data(self) -> bytes:
        """The user data of the guest's OPEN_CHANNEL."""
        return self._request.user_data

    @property
    def is_open(self) -> bool:
        """Whether the guest still has it open."""
        return self._open

    def limit(self, requests: int, reply_bytes: int) -> None:
        """Bound the packets that are out unanswered, and reserve ring room for each reply; see ``ChannelEnd.limit``."""
        self._limit, self._reply = requests, packet_length(reply_bytes)

    def can_send(self, length: int) -> bool:
        """Whether a packet with ``length`` payload bytes fits now."""
        if not self._open:
            return False
        try:
            return self._outgoing.fits(packet_length(length))
        except RingError as error:
            self.fail(str(error))
            return False

    def send(self, kind: PacketKind, payload: bytes, transaction_id: int, *, completion_requested: bool = False) -> bool:
        """Put a packet into the guest's ring; False when it does not fit or the channel is closed."""
        if not self._open:
            return False
        packet = pack_packet(kind, payload, transaction_id, flags=COMPLETION_REQUESTED if completion_requested else 0)
        outgoing = self._outgoing
        try:
            if not outgoing.gather(packet) and not (outgoing.want_room(len(packet) + 8) and outgoing.gather(packet)):
                self.stats.refused += 1
                self._waits_for_room = True
                return False
        except RingError as error:
            self.fail(str(error))
            return False
        self.stats.sent += 1
        if self.watcher is not None:
            self.watcher("sent", 0, transaction_id)
        if kind is _COMPLETION and self.outstanding:
            self.outstanding -= 1
            if self._held:
                self._again()
        if not self._turning:
            self._show()
        return self._open

    def _show(self) -> None:
        """Let the guest see what was sent, and interrupt it if it waits for that."""
        try:
            if self._outgoing.show():
                self._interrupt()
        except RingError as error:
            self.fail(str(error))

    def fail(self, reason: str) -> None:
        """End the channel: the guest broke a rule."""
        if self._open:
            self._board.trace("vmbus channel ended", channel=self._server.offer.name, id=self.channel_id, reason=reason)
            self.close()
            self._ended(reason)

    # -- what the bus does

    def close(self) -> None:
        """Let go of the rings and tell the server."""
        if self._open:
            self._open = False
            self._server.closed()

    def save(self) -> ChannelState:
        """Return the state, between two turns of :meth:`service`."""
        return ChannelState(self._incoming.save(), self._outgoing.save(), self.outstanding, self._waits_for_room, self._held)

    def service(self) -> None:
        """The guest signalled: room may have been made, packets may have come."""
        if not self._open:
            return
        self._turning = True
        try:
            if self._waits_for_room:
                self._made_room()
            self._take()
            if self._open and self._outgoing.show():
                self._interrupt()
        except (RingError, WireError) as error:
            self.fail(str(error))
        finally:
            self._turning = False

    def _interrupt(self) -> None:
        self.stats.interrupts += 1
        if self.watcher is not None:
            self.watcher("interrupt", 0, 0)
        self._interrupt_guest()

    def _made_room(self) -> None:
        self._waits_for_room = False
        self._outgoing.want_room(0)
        if self.on_room is not None:
            self.on_room()

    def _take(self) -> None:
        """Hand the packets in the ring to the server, as many as may be out at once."""
        incoming = self._incoming
        if incoming.empty():
            return
        self._outgoing.room()  # a look at the index that the replies of this turn depend on
        left = TURN
        incoming.mask(True)
        while True:
            while left and not incoming.drained and self._may_take() and (raw := incoming.take()) is not None:
                left -= 1
                if not self._receive(raw):
                    return
            if incoming.commit():
                self._interrupt()
            incoming.mask(False)
            if incoming.empty():
                return
            if not left or self._held:
                if not self._held:
                    self._again()
                return
            incoming.mask(True)  # something came in between
            left -= 1

    def _may_take(self) -> bool:
        outstanding = self.outstanding
        if outstanding < self._limit:
            needed = (outstanding + 1) * self._reply
            if self._outgoing.fits(needed) or self._outgoing.want_room(needed):
                self._held = False
                return True
            self._waits_for_room = True  # the guest's signal that there is room goes on, or
        self._held = True  # the next completion
        return False

    def _receive(self, raw: bytes) -> bool:
        """Hand one packet over. Returns whether the channel is still open."""
        packet = unpack_packet(raw, self._pages, _next_id())
        if packet.flags & COMPLETION_REQUESTED and packet.kind is not _COMPLETION:
            self.outstanding += 1
        self.stats.received += 1
        if self.watcher is not None:
            self.watcher("taken", packet.request_id, packet.transaction_id)
        self._server.received(packet)
        return self._open
