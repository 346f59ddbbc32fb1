"""The server's side of a VMBus connection: versions, offers, GPADLs, open and close, rescind and release, unload.

Messages as in Linux' include/linux/hyperv.h; all logic in a class without I/O, as in OpenVMM's vmbus_server. Messages and the
host's own wishes go in; messages to the guest and what is to be done with channels come out of :meth:`Connection.take`.

The invariant: no message of a guest raises; a malformed one, or one in the wrong state, becomes a ``Dropped`` action.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from avmm.vmbus.gpadl import Gpadl, GpadlTable
from avmm.vmbus.server import Offer
from avmm.vmbus.wire import (
    FAILED,
    MAX_CHANNEL,
    NEVER_INTERRUPT,
    SUCCESS,
    USER_DATA,
    AllOffersDelivered,
    CloseChannel,
    GpadlBody,
    GpadlCreated,
    GpadlHeader,
    GpadlTeardown,
    GpadlTorndown,
    InitiateContact,
    Message,
    ModifyChannel,
    ModifyChannelResponse,
    OfferChannel,
    OpenChannel,
    OpenChannelResult,
    RelidReleased,
    RequestOffers,
    RescindChannelOffer,
    Unload,
    UnloadComplete,
    Version,
    VersionResponse,
    WireError,
    message_type,
)

VMBUS_SINT = 2
LEGACY_MESSAGES, MESSAGES = 1, 4
"""Connection ids that a guest posts channel messages to: below 5.0, and from there on."""
NO_MONITOR = 0xFF


class ChannelState(enum.Enum):
    """Where a channel is, as the guest and the server agree on it."""

    CLOSED = "closed"
    OPEN = "open"
    REVOKED = "revoked"
    """Rescinded; the guest still holds its id."""


@dataclass(slots=True, eq=False)
class ChannelRecord:
    """A channel of the connection."""

    channel_id: int
    offer: Offer
    state: ChannelState = ChannelState.CLOSED
    known: bool = False
    """Whether the guest was told of it, and has not let go of it since."""
    ring: Gpadl | None = None
    open_message: OpenChannel | None = None

    @property
    def connection_id(self) -> int:
        """What the guest signals, by HvSignalEvent."""
        return self.channel_id | VMBUS_SINT << 12


@dataclass(frozen=True, slots=True)
class Send:
    """Post this to the guest."""

    message: Message


@dataclass(frozen=True, slots=True)
class Open:
    """Connect the rings and tell the server; answer with :meth:`Connection.opened`."""

    channel: ChannelRecord
    pfns: tuple[int, ...]
    downstream_page: int
    target_vp: int
    user_data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Let go of the rings now and tell the server."""

    channel: ChannelRecord


@dataclass(frozen=True, slots=True)
class Retarget:
    """Interrupt this virtual processor from now on."""

    channel: ChannelRecord
    target_vp: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A message was not obeyed; for the trace."""

    reason: str


Action = Send | Open | Close | Retarget | Dropped


@dataclass(slots=True)
class Connection:
    """One guest's connection. ``pages`` is how many pages its memory has, ``processors`` how many virtual processors."""

    pages: int
    processors: int = 1
    version: Version | None = None
    """None while disconnected."""
    target_vp: int = 0
    sint: int = VMBUS_SINT
    offers_sent: bool = False
    channels: dict[int, ChannelRecord] = field(default_factory=dict)
    gpadls: GpadlTable = field(init=False)
    _actions: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gpadls = GpadlTable(self.pages)

    def take(self) -> list[Action]:
        """Return what is to be done, in order, and forget it."""
        actions, self._actions = self._actions, []
        return actions

    def _send(self, message: Message) -> None:
        self._actions.append(Send(message))

    def _drop(self, reason: str) -> None:
        self._actions.append(Dropped(reason))

    # -- the host's wishes

    def offer(self, offer: Offer) -> ChannelRecord:
        """Add a channel; a connected guest that has asked for offers hears of it at once. ValueError when ids run out."""
        channel_id = next((n for n in range(1, MAX_CHANNEL + 1) if n not in self.channels), None)
        if channel_id is None:
            raise ValueError(f"a bus has {MAX_CHANNEL} channels at most")
        channel = self.channels[channel_id] = ChannelRecord(channel_id, offer)
        if self.version is not None and self.offers_sent:
            self._tell(channel)
        return channel

    def rescind(self, channel: ChannelRecord) -> None:
        """Take a channel away. Its id is kept until the guest lets go of it."""
        if channel.state is ChannelState.REVOKED:
            return
        self._close(channel)
        if not channel.known:
            self._forget(channel)
            return
        channel.state = ChannelState.REVOKED
        self._send(RescindChannelOffer(channel.channel_id))

    def reset(self) -> None:
        """The guest is gone: force-close every channel and forget what it set up. The offers stay."""
        self.version = None
        self.offers_sent = False
        self.target_vp, self.sint = 0, VMBUS_SINT
        for channel in list(self.channels.values()):
            self._close(channel)
            channel.known = False
            if channel.state is ChannelState.REVOKED:
                self._forget(channel)
        self.gpadls.clear()

    def opened(self, channel: ChannelRecord, accepted: bool) -> None:
        """The answer to an :class:`Open` action."""
        message = channel.open_message
        if channel.state is not ChannelState.OPEN or message is None:
            return
        if not accepted:
            channel.state, channel.ring, channel.open_message = ChannelState.CLOSED, None, None
        self._send(OpenChannelResult(channel.channel_id, message.open_id, SUCCESS if accepted else FAILED))

    def _tell(self, channel: ChannelRecord) -> None:
        offer = channel.offer
        channel.known = True
        self._send(
            OfferChannel(
                offer.interface.bytes_le, offer.instance.bytes_le, offer.flags, offer.mmio_megabytes, offer.user_data[:USER_DATA],
                offer.sub_channel, 0, channel.channel_id, NO_MONITOR, 0, 1, channel.connection_id,
            )
        )  # fmt: skip

    def _close(self, channel: ChannelRecord) -> None:
        if channel.state is ChannelState.OPEN:
            channel.state, channel.ring, channel.open_message = ChannelState.CLOSED, None, None
            self._actions.append(Close(channel))

    def _forget(self, channel: ChannelRecord) -> None:
        self.gpadls.drop_channel(channel.channel_id)
        del self.channels[channel.channel_id]

    # -- the guest's messages

    def handle(self, data: bytes) -> None:
        """Take one posted message."""
        try:
            number = message_type(data)
            handler = _HANDLERS.get(number)
            if handler is None:
                self._drop(f"message {number} is not known")
            elif self.version is None and number not in (InitiateContact.TYPE, Unload.TYPE):
                if number != RelidReleased.TYPE:  # guests let go of their channels after UNLOAD, too
                    self._drop(f"message {number} without a connection")
            else:
                handler(self, data)
        except WireError as error:
            self._drop(str(error))

    def _initiate_contact(self, data: bytes) -> None:
        message = InitiateContact.unpack(data)
        self.reset()
        try:
            version = Version(message.version)
        except ValueError:
            self._send(VersionResponse(0, 0, 0))
            return
        vp = message.target_vp if version >= Version.WIN8_1 else 0
        if version >= Version.WIN10_5_0:
            sint = message.sint
            if not 0 < sint < 16 or (version >= Version.WIN10_5_1 and message.vtl):
                self._drop(f"contact with SINT {sint}, VTL {message.vtl}")
                self._send(VersionResponse(0, 0, 0))
                return
            self.sint = sint
        if vp >= self.processors:
            self._drop(f"contact by virtual processor {vp}")
            self._send(VersionResponse(0, 0, 0))
            return
        self.version, self.target_vp = version, vp
        self._send(VersionResponse(1, 0, MESSAGES if version >= Version.WIN10_5_0 else version))

    def _request_offers(self, data: bytes) -> None:
        if self.offers_sent:
            self._drop("offers requested twice")
            return
        self.offers_sent = True
        for channel in sorted(self.channels.values(), key=lambda channel: channel.channel_id):
            self._tell(channel)
        self._send(AllOffersDelivered())

    def _channel(self, channel_id: int) -> ChannelRecord:
        channel = self.channels.get(channel_id)
        if channel is None or not channel.known:
            raise WireError(f"there is no channel {channel_id}")
        return channel

    def _gpadl_header(self, data: bytes) -> None:
        message = GpadlHeader.unpack(data)
        channel = self._channel(message.channel_id)
        if channel.state is ChannelState.REVOKED:
            raise WireError(f"a GPADL for channel {message.channel_id}, which was rescinded")
        self._build(channel.channel_id, message.gpadl, lambda: self.gpadls.header(message))

    def _gpadl_body(self, data: bytes) -> None:
        message = GpadlBody.unpack(data)
        owner = self.gpadls.owner(message.gpadl)
        if owner is None:
            raise WireError(f"a GPADL body for {message.gpadl:#x}, which is not being built")
        self._build(owner, message.gpadl, lambda: self.gpadls.body(message)[1])

    def _build(self, channel_id: int, gpadl: int, step: Callable[[], Gpadl | None]) -> None:
        try:
            complete = step() is not None
        except WireError as error:
            self._drop(str(error))
            self._send(GpadlCreated(channel_id, gpadl, FAILED))
            return
        if complete:
            self._send(GpadlCreated(channel_id, gpadl, SUCCESS))

    def _gpadl_teardown(self, data: bytes) -> None:
        message = GpadlTeardown.unpack(data)
        channel = self._channel(message.channel_id)
        if channel.ring is not None and channel.ring.gpadl == message.gpadl:
            raise WireError(f"channel {channel.channel_id} is open on GPADL {message.gpadl:#x}")
        if not self.gpadls.remove(channel.channel_id, message.gpadl):
            raise WireError(f"channel {channel.channel_id} has no GPADL {message.gpadl:#x}")
        self._send(GpadlTorndown(message.gpadl))

    def _open_channel(self, data: bytes) -> None:
        message = OpenChannel.unpack(data)
        channel = self._channel(message.channel_id)
        if channel.state is not ChannelState.CLOSED:
            raise WireError(f"channel {channel.channel_id} cannot be opened, it is {channel.state.value}")
        wrong = self.wrong_open(message)
        if wrong:
            self._drop(wrong)
            self._send(OpenChannelResult(channel.channel_id, message.open_id, FAILED))
            return
        ring = self.gpadls.get(channel.channel_id, message.gpadl)
        assert ring is not None
        channel.state, channel.ring, channel.open_message = ChannelState.OPEN, ring, message
        pfns = ring.ranges[0].pfns
        self._actions.append(Open(channel, pfns, message.downstream_page, message.target_vp, message.user_data))

    def wrong_open(self, message: OpenChannel) -> str:
        """Return why a channel cannot be opened as this message says, in a few words; none when it can."""
        ring = self.gpadls.get(message.channel_id, message.gpadl)
        if ring is None:
            return f"channel {message.channel_id} has no GPADL {message.gpadl:#x}"
        if len(ring.ranges) != 1 or ring.ranges[0].byte_offset or ring.ranges[0].byte_count % 4096:
            return f"GPADL {message.gpadl:#x} is not one page-aligned range"
        if not 2 <= message.downstream_page <= ring.pages - 2:
            return f"rings of {message.downstream_page} and {ring.pages - message.downstream_page} pages"
        if message.target_vp >= self.processors and message.target_vp != NEVER_INTERRUPT:
            return f"there is no virtual processor {message.target_vp}"
        return ""

    def _close_channel(self, data: bytes) -> None:
        channel = self._channel(CloseChannel.unpack(data).channel_id)
        if channel.state is ChannelState.CLOSED:
            raise WireError(f"channel {channel.channel_id} is not open")
        self._close(channel)

    def _relid_released(self, data: bytes) -> None:
        channel = self._channel(RelidReleased.unpack(data).channel_id)
        if channel.state is ChannelState.REVOKED:
            self._forget(channel)
            return
        self._close(channel)  # a guest may let go of what it could have kept, as Linux does where it has no UNLOAD
        self.gpadls.drop_channel(channel.channel_id)
        channel.known = False

    def _modify_channel(self, data: bytes) -> None:
        assert self.version is not None
        if self.version < Version.WIN10_4_1:
            raise WireError("MODIFY_CHANNEL before version 4.1")
        message = ModifyChannel.unpack(data)
        channel = self._channel(message.channel_id)
        fits = channel.state is ChannelState.OPEN and (message.target_vp < self.processors or message.target_vp == NEVER_INTERRUPT)
        if fits:
            self._actions.append(Retarget(channel, message.target_vp))
        else:
            self._drop(f"channel {channel.channel_id} cannot be moved to virtual processor {message.target_vp}")
        if self.version >= Version.WIN10_5_3:
            self._send(ModifyChannelResponse(channel.channel_id, SUCCESS if fits else FAILED))

    def _unload(self, data: bytes) -> None:
        sint = self.sint
        self.reset()
        self.sint = sint  # the guest waits for the answer where it has waited for all others
        self._send(UnloadComplete())


_HANDLERS: dict[int, Callable[[Connection, bytes], None]] = {
    InitiateContact.TYPE: Connection._initiate_contact,
    RequestOffers.TYPE: Connection._request_offers,
    GpadlHeader.TYPE: Connection._gpadl_header,
    GpadlBody.TYPE: Connection._gpadl_body,
    GpadlTeardown.TYPE: Connection._gpadl_teardown,
    OpenChannel.TYPE: Connection._open_channel,
    CloseChannel.TYPE: Connection._close_channel,
    RelidReleased.TYPE: Connection._relid_released,
    ModifyChannel.TYPE: Connection._modify_channel,
    Unload.TYPE: Connection._unload,
}
