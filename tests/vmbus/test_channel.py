"""Client against server over memory: channels open, packets go both ways, room and limits, with and without delays."""

from __future__ import annotations

import random
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.hypervisor.irp import next_id
from avmm.hypervisor.partition import RunState
from avmm.vmbus import wire
from avmm.vmbus.channel import TURN
from avmm.vmbus.packets import Packet, PacketKind, packet_length
from avmm.vmbus.ranges import GpaRange, GpaRanges
from avmm.vmbus.ring import INTERRUPT_MASK
from avmm.vmbus.wire import Version
from tests.vmbus.rig import BusRig, Recorder


@pytest.mark.parametrize("version", list(Version))
def test_a_request_and_its_completion(version: Version) -> None:
    server = Recorder()
    rig = BusRig(server)
    channel = rig.connect(version).open(1, user_data=b"hello")
    assert rig.bus.version is version
    assert server.events == ["opened"]
    assert server.channel is not None
    assert server.channel.open_data == b"hello".ljust(120, b"\0")
    channel.send(b"8 bytes!", 0x11)
    rig.settle(1_000)
    assert not server.packets  # the signal takes 2 us of machine time
    rig.settle(1_000)
    assert [packet.payload for packet in server.packets] == [b"8 bytes!"]
    assert rig.client.take_events() == [1]
    assert rig.apic.acknowledge() == 0xF3
    (answer,) = channel.receive()
    assert (answer.kind, answer.transaction_id, answer.payload) == (PacketKind.COMPLETION, 0x11, b"8 bytes!")


def test_unaccepted_version_then_a_lower_one() -> None:
    rig = BusRig()
    assert not rig.client.contact(0x60000)
    assert rig.client.contact(0x50000)


def test_gpa_direct_ranges_reach_the_guests_memory() -> None:
    server = Recorder(echo=False)
    rig = BusRig(server)
    channel = rig.connect().open(1)
    pages = rig.client.allocate(4)
    mixed = (pages[3], pages[0], pages[1])
    rig.memory.write(pages[3] * 4096 + 4000, b"A" * 96)
    rig.memory.write(pages[0] * 4096, b"B" * 4096 + b"C" * 10)
    channel.send(b"read me", 5, kind=PacketKind.GPA_DIRECT, ranges=[GpaRange(96 + 4096 + 10, 4000, mixed)])
    rig.settle()
    (packet,) = server.packets
    assert packet.ranges.byte_count == 4202
    assert packet.completion_requested
    assert list(packet.ranges.listed[0].segments()) == [(pages[3] * 4096 + 4000, 96), (pages[0] * 4096, 4106)]
    assert packet.ranges.read(rig.memory) == b"A" * 96 + b"B" * 4096 + b"C" * 10
    assert packet.ranges.write(rig.memory, b"x" * 100) == 100
    assert rig.memory.read(pages[3] * 4096 + 4000, 97) == b"x" * 96 + b"\0"
    assert rig.memory.read(pages[0] * 4096, 5) == b"xxxxB"
    assert packet.ranges.write(rig.memory, b"y" * 9999) == 4202


def test_several_ranges_are_one() -> None:
    memory = BusRig().memory
    ranges = GpaRanges([GpaRange(5, 4090, (1, 2)), GpaRange(0, 0, (9,)), GpaRange(3, 1, (2,))])
    assert ranges.write(memory, b"12345678") == 8
    assert ranges.read(memory) == b"12345678"
    assert memory.read(4096 + 4090, 9) == b"12345\0\x0067"
    assert memory.read(8193, 3) == b"678"


def test_each_packet_gets_an_id_of_the_one_sequence() -> None:
    server = Recorder()
    rig = BusRig(server)
    channel = rig.connect().open(1)
    before = next_id()
    channel.send(b"", 1)
    channel.send(b"", 2)
    rig.settle()
    assert [packet.request_id - before for packet in server.packets] == [1, 2]


def test_one_signal_and_one_interrupt_for_many() -> None:
    server = Recorder()
    rig = BusRig(server)
    channel = rig.connect().open(1)
    for number in range(8):
        channel.send(b"12345678", number)
    rig.settle()
    open_channel = rig.bus.channel(server)
    assert open_channel is not None
    stats = open_channel.stats
    assert (stats.signals, stats.interrupts, stats.received, stats.sent) == (1, 1, 8, 8)
    assert rig.hyperv.calls[0x5D] == 1


def test_the_host_wants_no_signal_while_it_takes_packets() -> None:
    """A guest on another processor may go on writing; the last packet comes when all before were taken, and is found by another look."""

    class Followed(Recorder):
        def received(self, packet: Packet) -> None:
            masks.append(channel.outgoing.ring.word(INTERRUPT_MASK))
            if packet.transaction_id < 5:
                channel.send(b"", packet.transaction_id + 1)
            super().received(packet)

    masks: list[int] = []
    server = Followed()
    rig = BusRig(server)
    channel = rig.connect().open(1)
    channel.send(b"", 1)
    rig.settle(2_000)
    assert [packet.transaction_id for packet in server.packets] == [1, 2, 3, 4, 5]
    assert masks == [1] * 5
    assert channel.outgoing.ring.word(INTERRUPT_MASK) == 0
    assert rig.hyperv.calls[0x5D] == 1


def test_a_busy_channel_lets_others_have_their_turn() -> None:
    order: list[int] = []

    class Noting(Recorder):
        def received(self, packet: Packet) -> None:
            order.append(packet.transaction_id)
            super().received(packet)

    rig = BusRig(Noting(1), Noting(2))
    client = rig.connect()
    channels = [client.open(1), client.open(2)]
    for _ in range(3 * TURN):
        for which, channel in enumerate(channels):
            assert channel.send(b"", which)
    rig.settle()
    assert [(which, len(list(run))) for which, run in groupby(order)] == [(0, TURN), (1, TURN)] * 3


def test_the_guests_mask_holds_interrupts_back() -> None:
    server = Recorder()
    rig = BusRig(server)
    channel = rig.connect().open(1)
    channel.incoming.mask(True)
    channel.send(b"", 1)
    rig.settle()
    assert rig.client.take_events() == []
    assert len(channel.receive()) == 1


def test_the_host_waits_for_room_and_is_told_of_it() -> None:
    server = Recorder(echo=False)
    rig = BusRig(server)
    channel = rig.connect().open(1, pages=2)
    end = server.channel
    assert end is not None
    rooms: list[bool] = []
    end.on_room = lambda: rooms.append(end.send(PacketKind.IN_BAND, bytes(1000), 99))
    sent = 0
    while end.send(PacketKind.IN_BAND, bytes(1000), sent):
        sent += 1
    assert sent == (4096 - 8) // packet_length(1000)
    assert not end.can_send(1000)
    signals = rig.hyperv.calls.get(0x5D, 0)
    assert len(channel.receive()) == sent
    assert rig.hyperv.calls[0x5D] == signals + 1  # because of the pending send size
    rig.settle()
    assert rooms == [True]
    assert channel.receive()[0].transaction_id == 99
    assert rig.hyperv.calls[0x5D] == signals + 1


def test_requests_are_taken_only_as_far_as_the_limit() -> None:
    server = Recorder(echo=False)
    rig = BusRig(server)
    channel = rig.connect().open(1)
    assert server.channel is not None
    server.channel.limit(3, 64)
    for number in range(10):
        channel.send(b"", number)
    rig.settle()
    assert len(server.packets) == 3
    server.channel.send(PacketKind.COMPLETION, b"", 2)
    rig.settle()
    assert [packet.transaction_id for packet in server.packets] == [0, 1, 2, 3]
    for number in range(2, 10):
        server.channel.send(PacketKind.COMPLETION, b"", number)
        rig.settle()
    assert len(server.packets) == 10


def test_no_request_is_taken_whose_reply_would_not_fit() -> None:
    server = Recorder(echo=False)
    rig = BusRig(server)
    channel = rig.connect().open(1, pages=2)
    assert server.channel is not None
    server.channel.limit(100, 1000)
    for number in range(10):
        channel.send(b"", number)
    rig.settle()
    fits = (4096 - 8) // packet_length(1000)
    assert len(server.packets) == fits
    for number in range(fits):
        assert server.channel.send(PacketKind.COMPLETION, bytes(1000), number)
    rig.settle()
    assert len(server.packets) == fits  # the guest has not read the replies
    assert len(channel.receive()) == fits
    rig.settle()
    assert len(server.packets) == 2 * fits


@pytest.mark.parametrize("seed", range(6))
def test_random_traffic_with_random_delays(seed: int) -> None:
    """Requests of random sizes, answered later and out of order, over small rings: nothing is lost, doubled or mixed up."""
    chance = random.Random(seed)

    class Late(Recorder):
        def received(self, packet: Packet) -> None:
            self.packets.append(packet)
            rig.bench.clock.timer(lambda: self.answer(packet)).arm(rig.bench.clock.now() + chance.randrange(50_000))

        def answer(self, packet: Packet) -> None:
            assert self.channel is not None
            assert self.channel.send(PacketKind.COMPLETION, packet.payload, packet.transaction_id)

    server = Late()
    rig = BusRig(server)
    channel = rig.connect(chance.choice(list(Version))).open(1, pages=2 + chance.randrange(2))
    assert server.channel is not None
    server.channel.limit(chance.randrange(1, 20), 600)
    waiting: dict[int, bytes] = {}
    number = done = 0
    for _ in range(20_000):
        if done == 200:
            break
        if number < 200 and chance.random() < 0.7:
            payload = chance.randbytes(8 * chance.randrange(75))
            if channel.send(payload, number):
                waiting[number] = payload
                number += 1
        if chance.random() < 0.5:
            rig.settle(chance.randrange(20_000))
        if chance.random() < 0.3:
            for answer in channel.receive():
                assert waiting.pop(answer.transaction_id) == answer.payload
                done += 1
    assert done == 200
    assert not waiting
    assert not rig.failures
    channel.close()
    assert server.events == ["opened", "closed"]


def test_close_reopen_and_unload() -> None:
    server = Recorder()
    rig = BusRig(server)
    client = rig.connect()
    channel = client.open(1)
    end = server.channel
    assert end is not None
    assert end.is_open
    channel.close()
    assert server.events[-1] == "closed"
    assert not end.send(PacketKind.IN_BAND, b"", 0)
    assert not end.can_send(0)
    again = client.open(1)
    again.send(b"", 1)
    rig.settle()
    assert len(again.receive()) == 1
    client.unload()
    assert server.events == ["opened", "closed", "opened", "closed"]
    assert rig.bus.version is None
    rig.connect(0x40000).open(1).send(b"", 3)
    rig.settle()
    assert len(server.packets) == 2


def test_rescind_while_open_and_hot_add() -> None:
    first, second = Recorder(1), Recorder(2)
    rig = BusRig(first)
    client = rig.connect()
    channel = client.open(1)
    channel.send(b"", 1)
    rig.bus.rescind(first)
    assert first.events == ["opened", "retired", "closed"]
    client.take_messages()
    assert client.rescinded == [1]
    channel.signal()
    rig.settle()
    assert not first.packets
    with pytest.raises(ValueError, match="test1 is not offered"):
        rig.bus.rescind(first)
    rig.bus.offer(second)
    client.take_messages()
    assert list(client.offers) == [1, 2]
    client.open(2).send(b"", 2)
    rig.settle()
    assert len(second.packets) == 1
    client.post(wire.RelidReleased(1))
    rig.bus.offer(first)
    client.take_messages()
    client.open(1).send(b"", 3)
    rig.settle()
    assert len(first.packets) == 1


def test_a_machine_reset_closes_everything_and_the_offers_stay() -> None:
    server = Recorder()
    rig = BusRig(server)
    rig.connect().open(1)
    rig.bus.reset()
    rig.hyperv.reset()
    assert server.events == ["opened", "closed"]
    rig.client.enable()
    rig.client.offers.clear()
    rig.connect().open(1).send(b"", 1)
    rig.settle()
    assert len(server.packets) == 1


def test_a_paused_machine_holds_its_channels() -> None:
    server = Recorder()
    rig = BusRig(server)
    channel = rig.connect().open(1)
    rig.settle()
    rig.bus.hold(True)
    channel.send(b"", 1)
    rig.settle()
    assert not server.packets
    rig.bus.hold(False)
    rig.settle()
    assert len(server.packets) == 1
    rig.bus.machine_state(RunState.OFF)
    assert server.events == ["opened", "closed"]


def test_an_error_of_a_server_is_reported_as_ours() -> None:
    class Broken(Recorder):
        def received(self, packet: Packet) -> None:
            raise KeyError("bug")

    rig = BusRig(Broken())
    rig.connect().open(1).send(b"", 1)
    rig.settle()
    assert [type(error) for error in rig.failures] == [KeyError]


RANGE = st.tuples(st.integers(1, 5 * 4096), st.integers(0, 4095), st.booleans(), st.integers(0, 40))


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(RANGE, min_size=1, max_size=3), st.integers(1, 16 * 4096))
def test_segments_are_the_first_bytes_of_the_ranges_in_order(shapes: list[tuple[int, int, bool, int]], length: int) -> None:
    def page_numbers(count: int, at: int, straight: bool, first: int) -> tuple[int, ...]:
        straightly = range(first, first + (count + at + 4095) // 4096)
        return tuple(straightly) if straight else tuple(reversed(straightly))

    ranges = GpaRanges(GpaRange(count, at, page_numbers(count, at, straight, first)) for count, at, straight, first in shapes)
    expected = [
        one.pfns[at // 4096] * 4096 + at % 4096 for one in ranges.listed for at in range(one.byte_offset, one.byte_offset + one.byte_count)
    ]
    segments = ranges.segments(length)
    assert [at for first, size in segments for at in range(first, first + size)] == expected[:length]
    assert all(size > 0 for _, size in segments)
