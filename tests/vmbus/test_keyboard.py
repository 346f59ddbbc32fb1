from __future__ import annotations

import struct
from uuid import UUID

import pytest

from avmm.vmbus.keyboard import QUEUE, SyntheticKeyboard, keystrokes
from avmm.vmbus.packets import Packet, PacketKind
from avmm.vmbus.server import ChannelServer
from tests.devices.bench import Bench
from tests.storage.guest import FakeChannel

REQUEST = struct.pack("<II", 1, 0x10000)
ACCEPT = (PacketKind.IN_BAND, struct.pack("<II", 2, 1), 0)


def event(code: int, info: int) -> tuple[PacketKind, bytes, int]:
    return PacketKind.IN_BAND, struct.pack("<IHHI", 3, code, 0, info), 0


def connected(room: int = 1000) -> tuple[SyntheticKeyboard, FakeChannel]:
    keyboard, channel = SyntheticKeyboard(), FakeChannel(Bench(), room)
    keyboard.opened(channel)
    keyboard.received(Packet(PacketKind.IN_BAND, 0, 7, REQUEST))
    assert channel.drain() == [ACCEPT]
    return keyboard, channel


def test_offer() -> None:
    keyboard: ChannelServer = SyntheticKeyboard()
    assert keyboard.offer.interface == UUID("f912ad6d-2b17-48ea-bd65-f927a61c7684")
    assert keyboard.offer.flags == 1


def test_a_version_is_agreed_on() -> None:
    keyboard, channel = SyntheticKeyboard(), FakeChannel(Bench())
    keyboard.opened(channel)
    assert not keyboard.ready
    assert not keyboard.press("a")
    keyboard.received(Packet(PacketKind.IN_BAND, 1, 7, struct.pack("<II", 1, 0x20000)))
    assert channel.drain() == [(PacketKind.COMPLETION, b"", 7), (PacketKind.IN_BAND, struct.pack("<II", 2, 0), 0)]
    assert not keyboard.ready
    keyboard.received(Packet(PacketKind.IN_BAND, 1, 8, REQUEST))
    assert channel.drain() == [(PacketKind.COMPLETION, b"", 8), ACCEPT]
    assert keyboard.ready


@pytest.mark.parametrize(
    ("key", "down", "up"),
    [
        ("a", [(0x1E, 0)], [(0x1E, 2)]),
        ("enter", [(0x1C, 0)], [(0x1C, 2)]),
        ("up", [(0x48, 4)], [(0x48, 6)]),
        ("ctrl_r", [(0x1D, 4)], [(0x1D, 6)]),
        ("print", [(0x2A, 4), (0x37, 4)], [(0x37, 6), (0x2A, 6)]),
        ("pause", [(0x1D, 8), (0x45, 0), (0x1D, 10), (0x45, 2)], []),
    ],
)
def test_keys(key: str, down: list[tuple[int, int]], up: list[tuple[int, int]]) -> None:
    keyboard, channel = connected()
    assert keyboard.press(key)
    assert keyboard.holds(key)
    assert channel.drain() == [event(*one) for one in down]
    assert keyboard.release(key)
    assert channel.drain() == [event(*one) for one in up]
    assert not keyboard.release(key)
    assert not channel.drain()


def test_a_key_held_repeats() -> None:
    keyboard, channel = connected()
    keyboard.press("a")
    keyboard.press("a")
    keyboard.release("a")
    assert channel.drain() == [event(0x1E, 0), event(0x1E, 0), event(0x1E, 2)]
    with pytest.raises(ValueError, match="no key"):
        keyboard.press("anykey")


def test_a_guest_that_asks_and_takes_no_answer_is_cut_off() -> None:
    keyboard, channel = connected(room=1)
    for _ in range(QUEUE + 1):
        keyboard.received(Packet(PacketKind.IN_BAND, 0, 7, REQUEST))
        assert not channel.failure
    keyboard.received(Packet(PacketKind.IN_BAND, 0, 7, REQUEST))
    assert "does not take the answers" in channel.failure


def test_a_full_ring_loses_no_key() -> None:
    keyboard, channel = connected(room=2)
    for key in "abcde":
        keyboard.press(key)
        keyboard.release(key)
    assert keyboard.queued == 8
    seen = []
    while channel.sent:
        seen += channel.drain()
    assert seen == [one for code in (0x1E, 0x30, 0x2E, 0x20, 0x12) for one in (event(code, 0), event(code, 2))]
    assert keyboard.queued == 0


def test_too_much_is_refused_but_never_a_release() -> None:
    keyboard, channel = connected()
    channel.room = 0
    while keyboard.press("a"):
        pass
    assert keyboard.queued == 4096
    assert keyboard.release("a")
    assert keyboard.queued == 4097


def test_closing_forgets() -> None:
    keyboard, channel = connected()
    keyboard.press("a")
    keyboard.received(Packet(PacketKind.IN_BAND, 0, 1, struct.pack("<II", 4, 0xFF)))
    assert keyboard.leds == 7
    keyboard.closed()
    assert (keyboard.ready, keyboard.leds, keyboard.holds("a"), keyboard.release("a")) == (False, 0, False, False)
    keyboard.received(Packet(PacketKind.IN_BAND, 0, 1, REQUEST))
    assert len(channel.drain()) == 1


@pytest.mark.parametrize(("kind", "payload"), [(PacketKind.IN_BAND, bytes(4)), (PacketKind.GPA_DIRECT, REQUEST)])
def test_what_is_no_message_ends_the_channel(kind: PacketKind, payload: bytes) -> None:
    keyboard, channel = connected()
    keyboard.received(Packet(kind, 0, 1, payload))
    assert channel.failure


def test_prefixes_apply_to_one_code() -> None:
    assert keystrokes(bytes.fromhex("e0481e")) == [event(0x48, 4)[1], event(0x1E, 0)[1]]
    assert keystrokes(b"") == []
