"""A VMBus connection as it is saved, and taken up again by a host that offers the same channels.

A guest that goes on must not notice: it knows channels by their numbers and GPADLs by theirs, and is sent nothing. What the host offers
is not saved but matched, by interface, instance and sub-channel.

The invariant: what :func:`restore` accepts, a guest could have come to by its own messages; else it changes nothing but the GPADLs.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from avmm.vmbus.connection import ChannelRecord, ChannelState, Connection
from avmm.vmbus.gpadl import GpadlTableState
from avmm.vmbus.server import Offer
from avmm.vmbus.wire import MAX_CHANNEL, OpenChannel, Version


@dataclass(frozen=True, slots=True)
class SavedRecord:
    """A channel as it is saved. ``offered`` is the interface, the instance and the sub-channel by which the host knows it again."""

    channel_id: int
    offered: tuple[bytes, bytes, int]
    state: ChannelState
    known: bool
    open_message: OpenChannel | None


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """What a guest and the server have agreed on. ``version`` None: nobody is connected, and the rest means nothing."""

    version: Version | None
    target_vp: int
    sint: int
    offers_sent: bool
    channels: tuple[SavedRecord, ...]
    gpadls: GpadlTableState
    state_version: int = 1


def save(connection: Connection) -> ConnectionState:
    """Return the state. All actions were taken."""
    channels = [
        SavedRecord(number, _offered(one.offer), one.state, one.known, one.open_message) for number, one in connection.channels.items()
    ]
    return ConnectionState(
        connection.version, connection.target_vp, connection.sint, connection.offers_sent, tuple(channels), connection.gpadls.save()
    )


def restore(connection: Connection, state: ConnectionState) -> None:
    """Go on from a saved state, with the channels that are offered here under the numbers that the guest knows; nothing is sent.

    ValueError when it does not fit what is offered here, or no guest can have come there. Begin with :meth:`Connection.reset`.
    """
    if state.state_version != 1:
        raise ValueError(f"a saved connection of version {state.state_version}")
    if state.version is None:
        return
    if not 0 < state.sint < 16 or not 0 <= state.target_vp < connection.processors:
        raise ValueError(f"a saved connection to SINT {state.sint} of virtual processor {state.target_vp}")
    version = Version(state.version)
    offers = {_offered(one.offer): one.offer for one in connection.channels.values()}
    if len(offers) != len(connection.channels):
        raise ValueError("two channels of this machine cannot be told from each other")
    channels = {one.channel_id: _record(one, offers) for one in state.channels}
    if offers:
        raise ValueError(f"the guest was not offered {next(iter(offers.values())).name}, which this machine has")
    if len(channels) != len(state.channels):
        raise ValueError("two saved channels have one number")
    connection.gpadls.restore(state.gpadls)
    for saved in state.channels:
        if saved.open_message is not None:
            _reopen(connection, channels[saved.channel_id], saved.open_message)
    connection.version, connection.target_vp, connection.sint = version, state.target_vp, state.sint
    connection.offers_sent, connection.channels = state.offers_sent, channels


def _record(saved: SavedRecord, offers: dict[tuple[bytes, bytes, int], Offer]) -> ChannelRecord:
    if not 0 < saved.channel_id <= MAX_CHANNEL or (saved.state is ChannelState.OPEN) != (saved.open_message is not None):
        raise ValueError(f"a saved channel {saved.channel_id} that is {saved.state.value}")
    interface, instance, sub_channel = saved.offered
    if saved.state is ChannelState.REVOKED:  # there is no more to it than its number
        offer = Offer(UUID(bytes=interface), UUID(bytes=instance), sub_channel=sub_channel, name="rescinded")
    elif saved.offered in offers:
        offer = offers.pop(saved.offered)
    else:
        raise ValueError(f"the guest was offered channel {saved.channel_id} ({UUID(bytes=instance)}), which this machine does not have")
    return ChannelRecord(saved.channel_id, offer, saved.state, saved.known)


def _reopen(connection: Connection, channel: ChannelRecord, message: OpenChannel) -> None:
    ours = message.channel_id == channel.channel_id and channel.known
    wrong = connection.wrong_open(message) if ours else "it is another's message"
    if wrong:
        raise ValueError(f"saved channel {channel.channel_id} cannot be open: {wrong}")
    channel.ring, channel.open_message = connection.gpadls.get(channel.channel_id, message.gpadl), message


def _offered(offer: Offer) -> tuple[bytes, bytes, int]:
    return offer.interface.bytes, offer.instance.bytes, offer.sub_channel
