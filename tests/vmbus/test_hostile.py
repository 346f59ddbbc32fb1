"""Guests that want to hurt: each ends its own channel at most, with a trace event, and the bus goes on for the others."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.hypervisor.hyperv import registers as reg
from avmm.hypervisor.hyperv.hypercall import Status
from avmm.vmbus import wire
from avmm.vmbus.client import GuestChannel
from avmm.vmbus.packets import PacketKind
from avmm.vmbus.ranges import GpaRange
from avmm.vmbus.ring import READ_INDEX, WRITE_INDEX
from tests.vmbus.rig import BusRig, Recorder


def two_channels() -> tuple[BusRig, Recorder, Recorder, GuestChannel, GuestChannel]:
    bad, good = Recorder(1), Recorder(2)
    rig = BusRig(bad, good)
    client = rig.connect()
    return rig, bad, good, client.open(1), client.open(2)


def ended(rig: BusRig, bad: Recorder, good: Recorder, other: GuestChannel) -> str:
    """The bad channel is closed with a reason, the other one works."""
    assert bad.events == ["opened", "closed"]
    (reason,) = rig.reasons("vmbus channel ended")
    before = len(good.packets)
    other.send(b"", 77)
    rig.settle()
    assert len(good.packets) == before + 1
    assert other.receive()[-1].transaction_id == 77
    assert not rig.failures
    return str(reason)


@pytest.mark.parametrize("value", [4, 1 << 14, 0xFFFFFFF8])
def test_wild_write_index(value: int) -> None:
    rig, bad, good, channel, other = two_channels()
    channel.outgoing.ring.set_word(WRITE_INDEX, value)
    channel.signal()
    rig.settle()
    assert "write index" in ended(rig, bad, good, other)
    assert channel.signal() == Status.SUCCESS  # nobody listens
    channel.close()
    again = rig.client.open(1)
    again.send(b"", 1)
    rig.settle()
    assert len(again.receive()) == 1


def test_wild_read_index_of_the_hosts_ring() -> None:
    rig, bad, good, channel, other = two_channels()
    channel.incoming.ring.set_word(READ_INDEX, 12)
    assert bad.channel is not None
    assert not bad.channel.send(PacketKind.IN_BAND, b"", 1)
    assert "read index" in ended(rig, bad, good, other)
    assert not bad.channel.can_send(0)


@pytest.mark.parametrize("raw", [
    bytes.fromhex("0600 0200 ffff 0100") + bytes(16), bytes.fromhex("0600 0200 0000 0100") + bytes(16),
    bytes.fromhex("ff00 0200 0300 0100") + bytes(16),
    bytes.fromhex("0900 0500 0500 0100") + bytes(8) + bytes.fromhex("0000000001000000 0010000000000000 0000000000000001"),
    bytes.fromhex("0900 0500 0500 0100") + bytes(8) + bytes.fromhex("00000000ffffffff 0010000000000000 0000000000000000"),
    bytes.fromhex("0900 0500 0500 0100") + bytes(8) + bytes.fromhex("0000000001000000 ffffffffff0f0000 0000000000000000"),
])  # fmt: skip
def test_malformed_packets(raw: bytes) -> None:
    rig, bad, good, channel, other = two_channels()
    channel.outgoing.write(raw)
    channel.signal()
    rig.settle()
    ended(rig, bad, good, other)
    assert not bad.packets


def test_rings_whose_pages_overlap_or_are_all_the_same() -> None:
    rig, _, _, channel, other = two_channels()
    channel.close()
    page = rig.client.allocate(1)[0]
    try:
        evil = rig.client.open(1, pfns=(page,) * 8)
        evil.send(bytes(3000), 1)
        rig.settle()
        for _ in range(20):
            evil.signal()
            rig.settle()
    except Exception:  # the client's own view may break
        pass
    other.send(b"", 5)
    rig.settle()
    assert len(other.receive()) == 1
    assert not rig.failures


def test_gpadl_pages_shared_by_two_open_channels() -> None:
    rig, _, _, channel, other = two_channels()
    channel.close()
    other.close()
    frames = rig.client.allocate(8)
    first, second = rig.client.open(1, pfns=frames), rig.client.open(2, pfns=frames)
    for number in range(50):
        try:
            first.send(b"12345678", number)
            second.send(b"abc", number)
            rig.settle()
            first.receive()
        except Exception:
            break
    assert not rig.failures
    rig.client.unload()
    assert not rig.failures


def test_message_flood_without_eom_is_stopped_by_insufficient_buffers() -> None:
    rig = BusRig(Recorder())
    client = rig.connect()
    statuses = [client.post(wire.GpadlHeader(1, 7, 24, 1, bytes(24))) for _ in range(100)]
    assert statuses[0] is Status.SUCCESS
    assert statuses[-1] is Status.INSUFFICIENT_BUFFERS
    assert statuses.count(Status.SUCCESS) == 17  # one in the slot, 16 waiting
    assert rig.hyperv.synic.depth(2) == 16
    client.take_messages()  # with EOM
    assert len([one for one in client.messages if wire.message_type(one) == wire.GpadlCreated.TYPE]) == 17
    client.messages.clear()
    assert client.open(1)
    # Without EOM a new guest that comes up (kexec) must still get through.
    for _ in range(40):
        client.post(wire.GpadlHeader(1, 8, 24, 1, bytes(24)))
    rig.memory.write(client._slot, bytes(256))
    rig.write(reg.EOM, 0)
    rig.memory.write(client._slot, bytes(256))
    client.messages.clear()
    assert client.contact(0x40000)
    assert client.messages == [], "what was meant for the one before is forgotten"


def test_garbage_messages_are_traced_and_cost_nothing() -> None:
    rig, _, good, _, other = two_channels()
    chance = random.Random(1)
    for _ in range(500):
        data = struct.pack("<II", chance.randrange(30), 0) + chance.randbytes(chance.randrange(232))
        if data[0] in (wire.InitiateContact.TYPE, wire.Unload.TYPE):
            continue
        rig.client.post_bytes(data, chance.choice([1, 4]))
        rig.client.take_messages()
    other.send(b"", 9)
    rig.settle()
    assert len(good.packets) == 1
    assert rig.reasons("vmbus message dropped")
    assert not rig.failures


def test_unknown_connections_and_flags() -> None:
    rig, *_ = two_channels()
    assert rig.client.post_bytes(wire.RequestOffers().pack(), 3) is Status.INVALID_CONNECTION_ID
    fast = 0x1005D
    for value, status in ((0x2001, 0), (0x2003, 0x12), (1, 0x12), (0x1002001, 3), (0x1_0000_2001, 0x11), (0x1_0000_0000_2001, 3)):
        assert rig.call(fast, value) == status, hex(value)


def test_close_in_mid_io() -> None:
    rig = BusRig(server := Recorder(echo=False))
    channel = rig.connect().open(1)
    page = rig.client.allocate(1)[0]
    channel.send(b"", 1, kind=PacketKind.GPA_DIRECT, ranges=[GpaRange(4096, 0, (page,))])
    rig.settle()
    end = server.channel
    assert end is not None
    ring = rig.memory.read(channel.pfns[0] * 4096, len(channel.pfns) * 4096)
    channel.close()
    assert not end.is_open
    assert not end.send(PacketKind.COMPLETION, b"too late", 1)
    end.fail("too late as well")
    assert server.events == ["opened", "closed"]
    assert not rig.reasons("vmbus channel ended")
    rig.settle(1_000_000)
    assert rig.memory.read(channel.pfns[0] * 4096, len(channel.pfns) * 4096) == ring


def test_close_from_within_received() -> None:
    class Picky(Recorder):
        def received(self, packet: object) -> None:
            assert self.channel is not None
            self.channel.fail("I do not like it")

    rig = BusRig(server := Picky())
    channel = rig.connect().open(1)
    channel.send(b"", 1)
    channel.send(b"", 2)
    rig.settle()
    assert server.events == ["opened", "closed"]
    assert rig.reasons("vmbus channel ended") == ["I do not like it"]


def test_endless_signals_are_one_look_each_turn() -> None:
    rig, bad, _, channel, _ = two_channels()
    channel.send(b"", 1)
    for _ in range(1000):
        channel.signal()
    rig.settle()
    assert len(bad.packets) == 1


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30))
def test_memory_changing_under_the_host(seed: int) -> None:
    """Traffic while random words of the rings and of the SynIC pages are overwritten: our side never breaks."""
    chance = random.Random(seed)
    rig, bad, _, channel, other = two_channels()
    pages = [*channel.pfns, rig.client.first_page + 1, rig.client.first_page + 2]
    assert bad.channel is not None
    bad.channel.limit(64, 200)  # it answers with as much as it got
    for number in range(40):
        page = chance.choice(pages) * 4096
        at = page + 4 * chance.randrange(1024 if chance.random() < 0.5 else 5)
        rig.memory.pack("<I", at, chance.choice([chance.randrange(1 << 32), 8 * chance.randrange(600), 0]))
        try:
            channel.send(bytes(chance.randrange(200)), number)
            channel.receive()
        except Exception:  # the client is no better protected than a guest driver
            channel.signal()
        rig.settle()
        if bad.channel is not None:
            bad.channel.send(PacketKind.IN_BAND, b"12345678", 0)
    assert not rig.failures
    other.send(b"", 5)
    rig.settle()
    assert len(other.receive()) == 1
