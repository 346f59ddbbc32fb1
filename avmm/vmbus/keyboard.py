"""The synthetic keyboard: a channel on which VM-H tells an enlightened guest which keys go down and up.

What Linux's hyperv-keyboard speaks (protocol 1.0; public headers of Microsoft's integration services): the guest asks for
a version and is answered, then each keystroke is one in-band packet with a set 1 make code and flags for break, E0 and
E1; the guest may tell which lights are on. Messages have a u32 type and no pipe header.

The invariant: what a guest was told is down is told up again on this channel, whatever is refused in between for lack of
room in its ring.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from avmm.clock import Timer
from avmm.devices.keys import find
from avmm.vmbus.outbox import Outbox
from avmm.vmbus.packets import Packet, PacketKind
from avmm.vmbus.server import ENUMERATE_INTERFACE, ChannelEnd, Offer

INTERFACE: Final = UUID("f912ad6d-2b17-48ea-bd65-f927a61c7684")
INSTANCE: Final = UUID("d34b2567-b9b6-42b9-8778-0a4ec0b955bf")
VERSION_1_0: Final = 1 << 16
ACCEPTED: Final = 1
QUEUE: Final = 4096

IS_BREAK: Final = 2
IS_E0: Final = 4
IS_E1: Final = 8

_REQUEST = struct.Struct("<II")
_KEYSTROKE = struct.Struct("<IHHI")


class Message(enum.IntEnum):
    """Types of messages."""

    PROTOCOL_REQUEST = 1
    PROTOCOL_RESPONSE = 2
    EVENT = 3
    LED_INDICATORS = 4


def keystrokes(codes: bytes) -> list[bytes]:
    """Return the events that a run of set 1 bytes makes: one for each code, with its prefix in the flags."""
    events = []
    flags = 0
    for code in codes:
        if code in (0xE0, 0xE1):
            flags = IS_E0 if code == 0xE0 else IS_E1
            continue
        info = flags | (IS_BREAK if code & 0x80 else 0)
        events.append(_KEYSTROKE.pack(Message.EVENT, code & 0x7F, 0, info))
        flags = 0
    return events


@dataclass(frozen=True, slots=True)
class KeyboardState:
    """Saved state of an open channel: keys that are down with what lets them go, and events that wait."""

    accepted: bool
    down: tuple[tuple[str, bytes], ...]
    waiting: tuple[bytes, ...]
    leds: int
    version: int = 1


class SyntheticKeyboard:
    """A keyboard on VMBus. Implements ``ChannelServer``; ``press`` and ``release`` as with the emulated controller."""

    def __init__(self, instance: UUID = INSTANCE) -> None:
        self._offer = Offer(INTERFACE, instance, bytes(120), ENUMERATE_INTERFACE, name="keyboard")
        self._accepted = False
        self._down: dict[str, bytes] = {}
        self._outbox = Outbox()
        self.leds = 0
        """Bit 0 Scroll Lock, bit 1 Num Lock, bit 2 Caps Lock."""

    # -- the host

    @property
    def ready(self) -> bool:
        """Whether a guest's driver listens."""
        return self._accepted

    @property
    def queued(self) -> int:
        """Events that wait for room in the guest's ring."""
        return len(self._outbox)

    def press(self, key: str) -> bool:
        """Press ``key`` (again, for a repeat). False when nobody listens or too much waits; ValueError when no key is called so."""
        found = find(key)
        if not self._accepted or len(self._outbox) >= QUEUE:
            return False
        self._down[found.name] = found.release[0]
        self._send(found.make[0])
        return True

    def release(self, key: str) -> bool:
        """Let ``key`` go. False when it was not down."""
        codes = self._down.pop(find(key).name, None)
        if codes is None:
            return False
        self._send(codes)
        return True

    def holds(self, key: str) -> bool:
        """Whether the guest was told that ``key`` is down."""
        return find(key).name in self._down

    # -- ChannelServer

    @property
    def offer(self) -> Offer:
        """What the guest is told of the channel."""
        return self._offer

    def opened(self, channel: ChannelEnd) -> None:
        """The guest's driver came."""
        self.closed()
        self._outbox.open(channel)

    def closed(self) -> None:
        """The guest's driver went; it knows of no key any more."""
        self._outbox.close()
        self._accepted = False
        self._down.clear()
        self.leds = 0

    def received(self, packet: Packet) -> None:
        """A message came in."""
        channel, payload = self._outbox.channel, packet.payload
        if channel is None:
            return
        if packet.kind is not PacketKind.IN_BAND or len(payload) < _REQUEST.size:
            if packet.kind is not PacketKind.COMPLETION:
                channel.fail("keyboard: a packet that is no message")
            return
        kind, value = _REQUEST.unpack_from(payload)
        if packet.completion_requested:
            channel.send(PacketKind.COMPLETION, b"", packet.transaction_id)
        if kind == Message.PROTOCOL_REQUEST:
            if len(self._outbox) >= QUEUE:
                channel.fail("keyboard: the guest asks and does not take the answers")
                return
            self._accepted = value == VERSION_1_0
            self._outbox.put([_REQUEST.pack(Message.PROTOCOL_RESPONSE, ACCEPTED if self._accepted else 0)])
        elif kind == Message.LED_INDICATORS:
            self.leds = value & 7
        else:
            channel.board.trace("keyboard: unknown message", type=kind)

    # -- to the guest

    def _send(self, codes: bytes) -> None:
        self._outbox.put(keystrokes(codes))

    # -- saved state

    def save_channel(self) -> KeyboardState:
        """Return the state."""
        return KeyboardState(self._accepted, tuple(self._down.items()), tuple(self._outbox.waiting), self.leds)

    def restore_channel(self, channel: ChannelEnd, state: Any) -> None:
        """Go on from a saved state."""
        if not isinstance(state, KeyboardState) or state.version != 1:
            raise ValueError("not a saved state of this keyboard")
        self.opened(channel)
        self._accepted, self.leds = state.accepted, state.leds & 7
        self._down = {find(key).name: bytes(codes) for key, codes in state.down}
        self._outbox.waiting.extend(bytes(event) for event in state.waiting)

    @staticmethod
    def deadlines() -> list[Timer]:
        """Return an empty list: nothing takes time."""
        return []
