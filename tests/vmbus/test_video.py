"""The synthetic monitor, message by message: literal bytes in, literal bytes out, and guests that say what cannot be."""

from __future__ import annotations

import struct

import pytest

from avmm.memory import PAGE
from avmm.vmbus import video_wire as wire
from avmm.vmbus.packets import Packet, PacketKind
from avmm.vmbus.server import ChannelServer
from avmm.vmbus.video import SIZE, WAITING, SyntheticVideo
from avmm.vmbus.video_wire import Message, Situation
from avmm.vmbus.wire import WireError
from tests.devices.bench import Bench
from tests.storage.guest import FakeChannel

WINDOW = (0xF8000000, 0xFBFFFFFF)
AT = 0xF8000000
SMALL = Situation(1, 0, 32, 4, 2, 16)


def sent(kind: Message, body: bytes) -> tuple[PacketKind, bytes, int]:
    return PacketKind.IN_BAND, wire.pack(kind, body), 0


class Guest:
    """A driver: ``say`` a message and get what the monitor answers."""

    def __init__(self, room: int = 1000, ram: int = 1 << 20) -> None:
        self.bench = Bench(ram)
        self.video = SyntheticVideo(self.bench, WINDOW)
        self.channel = FakeChannel(self.bench, room)
        self.video.opened(self.channel)

    def raw(self, payload: bytes, kind: PacketKind = PacketKind.IN_BAND, flags: int = 0) -> None:
        self.video.received(Packet(kind, flags, 7, payload))

    def say(self, kind: Message, body: bytes) -> list[tuple[PacketKind, bytes, int]]:
        self.raw(wire.pack(kind, body))
        return self.channel.drain()

    def connect(self) -> Guest:
        assert self.say(Message.VERSION_REQUEST, struct.pack("<HH", 3, 5)) == [sent(Message.VERSION_RESPONSE, bytes.fromhex("030005000101"))]
        return self

    def place(self, address: int = AT) -> Guest:
        answers = self.say(Message.VRAM_LOCATION, struct.pack("<QBQ", 99, 1, address))
        assert answers[0] == sent(Message.VRAM_LOCATION_ACK, struct.pack("<Q", 99))
        assert answers[1] == sent(Message.FEATURE_CHANGE, b"\1\1\1\1")
        return self

    def show(self, situation: Situation = SMALL) -> Guest:
        assert self.say(Message.SITUATION_UPDATE, wire.pack_situation(5, situation)) == [
            sent(Message.SITUATION_UPDATE_ACK, struct.pack("<Q", 5))
        ]
        return self


def test_offer() -> None:
    video: ChannelServer = SyntheticVideo(Bench(), WINDOW)
    assert video.offer.interface.bytes_le.hex() == "02780ada77e3ac4a8e770558eb1073f8"
    assert (video.offer.flags, video.offer.mmio_megabytes, video.offer.user_data) == (0x11, 8, b"\4\0\0\0")


def test_the_bytes_of_a_message() -> None:
    """A version request as Linux's driver packs it."""
    raw = bytes.fromhex("01000000 0c000000 01000000 0c000000 03000500")
    assert wire.parse(raw + bytes(4)) == (1, b"\3\0\5\0")  # the ring pads to eight bytes
    guest = Guest()
    guest.raw(raw + bytes(4))
    assert guest.channel.drain()[0][1] == bytes.fromhex("01000000 0e000000 02000000 0e000000 03000500 01 01")


@pytest.mark.parametrize(("major", "minor", "accepted"), [(3, 0, 1), (3, 2, 1), (3, 5, 1), (3, 6, 0), (4, 0, 0), (2, 9, 0)])
def test_versions(major: int, minor: int, accepted: int) -> None:
    guest = Guest()
    ((_, answer, _),) = guest.say(Message.VERSION_REQUEST, struct.pack("<HH", major, minor))
    assert answer[16:] == struct.pack("<HHBB", major, minor, accepted, 1)
    guest.say(Message.CAPABILITY_REQUEST, b"")
    assert bool(guest.channel.failure) == (not accepted), "nothing else is heard before a version was agreed on"


@pytest.mark.parametrize("most", [1, 3, 64, 255])
def test_resolutions_and_edid(most: int) -> None:
    guest = Guest().connect()
    guest.video.resolution = (1152, 864)
    ((_, answer, _),) = guest.say(Message.RESOLUTION_REQUEST, bytes((most,)))
    body = answer[16:]
    assert len(body) == 128 + 3 + 256
    edid, (count, preferred, _) = body[:128], body[128:131]
    assert edid[:8].hex() == "00ffffffffffff00"
    assert sum(edid) % 256 == 0
    assert edid[56] | edid[58] >> 4 << 8 == 1152
    assert edid[59] | edid[61] >> 4 << 8 == 864
    assert count == min(most, 7)
    assert struct.unpack_from("<HH", body, 131 + 4 * preferred) == (1152, 864)
    assert len(set(struct.iter_unpack("<HH", body[131 : 131 + 4 * count]))) == count


def test_a_picture_in_the_window() -> None:
    guest = Guest().connect()
    assert not guest.video.shown
    guest.place()
    size, buffer = guest.bench.ram_maps[AT]
    assert (size, buffer) == (SIZE, guest.video.vram)
    assert not guest.video.shown
    guest.show(Situation(1, 4, 32, 2, 2, 12))
    guest.video.vram[:28] = bytes.fromhex("ffffffff 332211ff 665544ff 00000000 998877ff ccbbaaff ffffffff")
    assert guest.video.shown
    assert (guest.video.mode(), guest.video.size) == ("graphics", (2, 2))
    assert guest.video.pixels() == (2, 2, bytes.fromhex("112233 445566 778899 aabbcc"))
    generation = guest.video.generation
    guest.say(Message.DIRT, struct.pack("<BBiiii", 0, 1, 0, 0, 2, 2))
    assert guest.video.generation == generation + 1
    guest.show(Situation(0, 0, 0, 0, 0, 0))
    assert not guest.video.shown


def test_a_picture_in_ram_with_16_bits() -> None:
    guest = Guest().connect().place(0x8000)
    assert not guest.bench.ram_maps
    guest.show(Situation(1, 0, 16, 3, 1, 8))
    guest.bench.memory.write(0x8000, struct.pack("<3H", 0xF800, 0x07E0, 0x001F))
    assert guest.video.pixels() == (3, 1, bytes.fromhex("ff0000 00ff00 0000ff"))


def test_the_pointer_is_drawn() -> None:
    guest = Guest().connect().place().show()
    picture = struct.pack("<BBIIII", 0xFF, 1, 1, 2, 0, 0) + bytes.fromhex("0000ffff 00ff0000")  # red, and nothing
    guest.say(Message.POINTER_SHAPE, picture)
    guest.say(Message.POINTER_POSITION, struct.pack("<BBii", 1, 0, 2, 0))
    width, height, rgb = guest.video.pixels()
    assert (width, height) == (4, 2)
    assert [at // 3 for at in range(0, 24, 3) if any(rgb[at : at + 3])] == [2]
    assert rgb[6:9] == b"\xff\0\0"
    guest.say(Message.POINTER_POSITION, struct.pack("<BBii", 1, 0, -(1 << 31), (1 << 31) - 1))
    assert not any(guest.video.pixels()[2])
    guest.say(Message.POINTER_POSITION, struct.pack("<BBii", 0, 0, 2, 0))
    assert not any(guest.video.pixels()[2])
    assert not guest.channel.failure


def test_a_pointer_in_pieces() -> None:
    guest = Guest().connect().place().show()
    for index, piece in ((0, "0000ff"), (1, "ff00"), (0xFF, "ff00ff")):
        guest.say(Message.POINTER_SHAPE, struct.pack("<BBIIII", index, 1, 2, 1, 0, 0) + bytes.fromhex(piece))
    guest.say(Message.POINTER_POSITION, struct.pack("<BBii", 1, 0, 0, 1))
    assert guest.video.pixels()[2][12:18].hex() == "ff000000ff00"


def test_moving_and_closing_gives_the_memory_back() -> None:
    guest = Guest().connect().place().show()
    guest.video.write_memory(AT + 8, 4, 0xDDCCBBAA)
    assert guest.video.read_memory(AT + 8, 2) == 0xBBAA
    guest.place(AT + SIZE)
    assert guest.bench.ram_maps[AT] == (SIZE, None)
    assert guest.bench.ram_maps[AT + SIZE] == (SIZE, guest.video.vram)
    assert guest.video.read_memory(AT + 8, 2) == 0xFFFF
    guest.say(Message.VRAM_LOCATION, struct.pack("<QBQ", 1, 0, 0))
    assert guest.bench.ram_maps[AT + SIZE] == (SIZE, None)
    guest.place().show()
    guest.video.closed()
    assert guest.bench.ram_maps[AT] == (SIZE, None)
    assert (guest.video.shown, guest.video.size) == (False, (0, 0))
    guest.raw(wire.pack(Message.CAPABILITY_REQUEST, b""))
    assert not guest.channel.drain()


def test_saved_and_restored() -> None:
    guest = Guest().connect().place().show()
    guest.video.vram[:16] = b"0123456789abcdef"
    other = Guest()
    other.video.restore(guest.video.save())
    assert other.video.pixels() == guest.video.pixels()
    assert other.bench.ram_maps[AT] == (SIZE, other.video.vram)
    with pytest.raises(ValueError, match="not a saved state"):
        other.video.restore(object())


@pytest.mark.parametrize("payload", [
    b"", bytes(15), wire.pack(Message.VERSION_REQUEST, b"\3\0\5"), struct.pack("<IIII", 2, 12, 1, 12) + b"\3\0\5\0",
    struct.pack("<IIII", 1, 7, 1, 12) + b"\3\0\5\0", struct.pack("<IIII", 1, 0xFFFFFFFF, 1, 12) + b"\3\0\5\0",
])  # fmt: skip
def test_what_is_no_message_ends_the_channel(payload: bytes) -> None:
    with pytest.raises(WireError):
        wire.parse(payload)
    guest = Guest()
    guest.raw(payload)
    assert guest.channel.failure


@pytest.mark.parametrize("address", [0xF8000001, 0xFBFFF000, 0xFB801000, 1 << 20, 1 << 63, (1 << 64) - PAGE])
def test_frame_buffers_that_cannot_be(address: int) -> None:
    guest = Guest().connect()
    guest.say(Message.VRAM_LOCATION, struct.pack("<QBQ", 99, 1, address))
    assert "frame buffer" in guest.channel.failure
    assert not guest.video.shown


@pytest.mark.parametrize("situation", [
    Situation(1, 0, 24, 4, 2, 16), Situation(1, 0, 32, 0, 2, 16), Situation(1, 0, 32, 4, 0, 16), Situation(1, 0, 32, 4, 2, 15),
    Situation(1, SIZE - 31, 32, 4, 2, 16), Situation(1, 0, 32, 4, 2, 0xFFFFFFFF), Situation(1, 0xFFFFFFFF, 32, 4, 2, 16),
    Situation(1, 0, 32, 0x40000000, 1, 0), Situation(1, 0, 32, 1, 0xFFFFFFFF, 4),
])  # fmt: skip
@pytest.mark.parametrize("address", [AT, (1 << 20) - 32])
def test_pictures_that_cannot_be(situation: Situation, address: int) -> None:
    guest = Guest().connect().place(address)
    guest.say(Message.SITUATION_UPDATE, wire.pack_situation(1, situation))
    assert guest.channel.failure
    assert not guest.video.shown


def test_a_picture_at_the_very_end_of_ram() -> None:
    guest = Guest().connect().place((1 << 20) - 32).show()
    assert guest.video.pixels()[:2] == (4, 2)
    guest = Guest().connect().place((1 << 20) - 28)
    guest.say(Message.SITUATION_UPDATE, wire.pack_situation(1, SMALL))
    assert guest.channel.failure


@pytest.mark.parametrize(("kind", "body"), [
    (Message.SITUATION_UPDATE, wire.pack_situation(1, SMALL)),
    (Message.POINTER_SHAPE, struct.pack("<BBIIII", 0xFF, 1, 97, 1, 0, 0)),
    (Message.POINTER_SHAPE, struct.pack("<BBIIII", 0xFF, 1, 1, 0, 0, 0)),
    (Message.DIRT, struct.pack("<BBiiii", 0, 2, 0, 0, 1, 1)),
    (Message.VRAM_LOCATION, bytes(16)),
])  # fmt: skip
def test_bodies_that_end_the_channel(kind: Message, body: bytes) -> None:
    guest = Guest().connect()
    guest.say(kind, body)
    assert guest.channel.failure


def test_packets_of_another_kind_and_unknown_messages() -> None:
    guest = Guest().connect()
    guest.raw(struct.pack("<IIII", 1, 8, 77, 8))
    assert guest.bench.events == [("video: unknown message", {"type": 77})]
    guest.raw(wire.pack(Message.BIOS_INFO_REQUEST, b""), flags=1)
    assert guest.channel.drain() == [(PacketKind.COMPLETION, b"", 7), sent(Message.BIOS_INFO_RESPONSE, bytes(16))]
    guest.raw(b"", PacketKind.GPA_DIRECT)
    assert guest.channel.failure


def test_answers_wait_for_room_and_a_flood_ends_the_channel() -> None:
    guest = Guest(room=1).connect()
    for _ in range(5):
        guest.raw(wire.pack(Message.CAPABILITY_REQUEST, b""))
    taken = []
    while guest.channel.sent:
        taken += guest.channel.drain()
    assert taken == [sent(Message.CAPABILITY_RESPONSE, bytes(64))] * 5
    for _ in range(WAITING + 2):
        guest.raw(wire.pack(Message.CAPABILITY_REQUEST, b""))
    assert "does not take the answers" in guest.channel.failure
