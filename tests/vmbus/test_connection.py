"""The connection's state machine, message by message, with no bus behind it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.vmbus import gpadl, wire
from avmm.vmbus.connection import ChannelState, Close, Connection, Dropped, Open, Retarget, Send
from avmm.vmbus.ranges import GpaRange, pack_ranges
from avmm.vmbus.server import Offer
from avmm.vmbus.wire import FAILED, SUCCESS, Message, Version
from tests.vmbus.rig import INTERFACE, instance

PAGES = 1024


def offer(number: int) -> Offer:
    return Offer(INTERFACE, instance(number), b"data", name=f"test{number}")


class Wire:
    """A connection; ``say`` posts a message and returns what was answered."""

    def __init__(self, *numbers: int, version: int | None = Version.WIN10_5_3) -> None:
        self.connection = Connection(PAGES)
        self.dropped: list[str] = []
        self.other: list[object] = []
        for number in numbers:
            self.connection.offer(offer(number))
        if version is not None:
            self.say(contact(version))
            self.say(wire.RequestOffers())

    def say(self, message: Message | bytes) -> list[Message]:
        self.connection.handle(message if isinstance(message, bytes) else message.pack())
        return self.answers()

    def answers(self) -> list[Message]:
        sent: list[Message] = []
        while actions := self.connection.take():
            for action in actions:
                if isinstance(action, Send):
                    sent.append(action.message)
                elif isinstance(action, Dropped):
                    self.dropped.append(action.reason)
                else:
                    self.other.append(action)
                    if isinstance(action, Open):
                        self.connection.opened(action.channel, True)
        return sent

    def gpadl(self, channel: int = 1, number: int = 7, pfns: tuple[int, ...] = (1, 2, 3, 4)) -> list[Message]:
        data = pack_ranges([GpaRange(4096 * len(pfns), 0, pfns)])
        answers = self.say(wire.GpadlHeader(channel, number, len(data), 1, data[:220]))
        for at in range(220, len(data), 224):
            answers += self.say(wire.GpadlBody(0, number, data[at : at + 224]))
        return answers

    def open(self, channel: int = 1, number: int = 7, vp: int = 0, downstream: int = 2) -> list[Message]:
        return self.say(wire.OpenChannel(channel, channel, number, vp, downstream, b"u" * 120))

    def state(self, channel: int = 1) -> ChannelState:
        return self.connection.channels[channel].state


def contact(version: int, vp: int = 0, page: int | None = None) -> wire.InitiateContact:
    return wire.InitiateContact(version, vp, (2 if version >= 0x50000 else 0) if page is None else page)


@pytest.mark.parametrize("version", list(Version))
def test_each_version_is_accepted(version: Version) -> None:
    line = Wire(version=None)
    assert line.say(contact(version)) == [wire.VersionResponse(1, 0, 4 if version >= 0x50000 else version)]
    assert line.connection.version is version
    assert not line.dropped


@pytest.mark.parametrize("version", [0x0000000D, 0x00010001, 0x00020003, 0x00050004, 0x00060000, 0xFFFFFFFF, 0])
def test_other_versions_are_refused_and_leave_no_connection(version: int) -> None:
    line = Wire(1)
    assert line.say(contact(version)) == [wire.VersionResponse(0, 0, 0)]
    assert line.connection.version is None
    assert line.say(wire.RequestOffers()) == []
    assert "without a connection" in line.dropped[-1]


@pytest.mark.parametrize(("version", "page", "vp", "accepted"), [
    (0x50003, 5, 0, True), (0x50003, 0, 0, False), (0x50003, 16, 0, False), (0x50003, 0x102, 0, False), (0x50000, 0x102, 0, True),
    (0x40001, 0x12345000, 0, True), (0x30000, 0, 1, False), (0x20004, 0, 1, True),
])  # fmt: skip
def test_where_messages_shall_go(version: int, page: int, vp: int, accepted: bool) -> None:
    line = Wire(version=None)
    answer = line.say(contact(version, vp, page))[0]
    assert isinstance(answer, wire.VersionResponse)
    assert answer.supported == accepted
    assert line.connection.sint == (5 if page == 5 else 2)
    assert line.connection.target_vp == 0


def test_offers_in_order_and_once() -> None:
    line = Wire(3, 1, version=None)
    line.say(contact(0x40000))
    answers = line.say(wire.RequestOffers())
    assert [type(one).__name__ for one in answers] == ["OfferChannel", "OfferChannel", "AllOffersDelivered"]
    first = answers[0]
    assert isinstance(first, wire.OfferChannel)
    assert (first.channel_id, first.connection_id, first.instance) == (1, 0x2001, instance(3).bytes_le)
    assert (first.interface, first.dedicated_interrupt, first.monitor_allocated) == (INTERFACE.bytes_le, 1, 0)
    assert line.say(wire.RequestOffers()) == []
    assert line.dropped == ["offers requested twice"]


def test_hot_add_is_told_only_to_those_who_asked() -> None:
    line = Wire(version=None)
    line.connection.offer(offer(1))
    line.say(contact(0x50003))
    line.connection.offer(offer(2))
    assert line.answers() == []
    assert len(line.say(wire.RequestOffers())) == 3
    line.connection.offer(offer(3))
    (told,) = line.answers()
    assert isinstance(told, wire.OfferChannel)
    assert told.channel_id == 3


@pytest.mark.parametrize("version", list(Version))
def test_open_close_reopen_teardown(version: Version) -> None:
    line = Wire(1, version=version)
    assert line.gpadl() == [wire.GpadlCreated(1, 7, SUCCESS)]
    assert line.open() == [wire.OpenChannelResult(1, 1, SUCCESS)]
    opened = line.other[-1]
    assert isinstance(opened, Open)
    assert (opened.pfns, opened.downstream_page, opened.user_data) == ((1, 2, 3, 4), 2, b"u" * 120)
    assert line.open() == []
    assert "is open" in line.dropped[-1]
    assert line.say(wire.GpadlTeardown(1, 7)) == []
    assert "is open on" in line.dropped[-1]
    assert line.say(wire.CloseChannel(1)) == []
    assert isinstance(line.other[-1], Close)
    assert line.state() is ChannelState.CLOSED
    assert line.open() == [wire.OpenChannelResult(1, 1, SUCCESS)]
    line.say(wire.CloseChannel(1))
    assert line.say(wire.GpadlTeardown(1, 7)) == [wire.GpadlTorndown(7)]
    assert line.open() == [wire.OpenChannelResult(1, 1, FAILED)]
    assert line.say(wire.CloseChannel(1)) == []
    assert "is not open" in line.dropped[-1]


@pytest.mark.parametrize(("number", "vp", "downstream", "why"), [
    (8, 0, 2, "no GPADL"), (7, 1, 2, "no virtual processor"), (7, 0, 0, "rings of"), (7, 0, 1, "rings of"), (7, 0, 3, "rings of"),
    (7, 0, 4, "rings of"), (7, 0, 0xFFFFFFFF, "rings of"),
])  # fmt: skip
def test_refused_opens(number: int, vp: int, downstream: int, why: str) -> None:
    line = Wire(1)
    line.gpadl()
    assert line.open(1, number, vp, downstream) == [wire.OpenChannelResult(1, 1, FAILED)]
    assert why in line.dropped[-1]
    assert line.state() is ChannelState.CLOSED


def test_a_guest_that_polls_may_open() -> None:
    line = Wire(1)
    line.gpadl()
    assert line.open(vp=wire.NEVER_INTERRUPT) == [wire.OpenChannelResult(1, 1, SUCCESS)]


def test_a_ring_must_be_whole_pages() -> None:
    line = Wire(1)
    data = pack_ranges([GpaRange(4096 * 4 - 8, 8, (1, 2, 3, 4))])
    assert line.say(wire.GpadlHeader(1, 7, len(data), 1, data)) == [wire.GpadlCreated(1, 7, SUCCESS)]
    assert line.open() == [wire.OpenChannelResult(1, 1, FAILED)]


def test_the_storvsc_default_ring_in_three_messages() -> None:
    line = Wire(1)
    data = pack_ranges([GpaRange(64 * 4096, 0, tuple(range(64)))])
    assert len(data) == 520
    assert line.say(wire.GpadlHeader(1, 0xE1E10, 520, 1, data[:216])) == []
    assert line.say(wire.GpadlBody(1, 0xE1E10, data[216:440])) == []
    assert line.say(wire.GpadlBody(2, 0xE1E10, data[440:])) == [wire.GpadlCreated(1, 0xE1E10, SUCCESS)]


def test_overlapping_gpadls_of_two_channels_are_independent() -> None:
    line = Wire(1, 2)
    assert line.gpadl(1, 7) == [wire.GpadlCreated(1, 7, SUCCESS)]
    assert line.gpadl(2, 7) == [wire.GpadlCreated(2, 7, SUCCESS)]
    assert line.say(wire.GpadlTeardown(1, 7)) == [wire.GpadlTorndown(7)]
    assert line.open(2) == [wire.OpenChannelResult(2, 2, SUCCESS)]


def test_torn_and_huge_gpadls() -> None:
    line = Wire(1, 2)
    assert line.gpadl() == [wire.GpadlCreated(1, 7, SUCCESS)]
    assert line.gpadl() == [wire.GpadlCreated(1, 7, FAILED)]  # exists already
    head = pack_ranges([GpaRange(8192, 0, (1, 2))])
    assert line.say(wire.GpadlHeader(1, 8, 24, 1, head[:16])) == []
    assert line.say(wire.GpadlHeader(2, 8, 24, 1, head)) == [wire.GpadlCreated(2, 8, FAILED)]  # which would the bodies be for?
    assert line.say(wire.GpadlBody(1, 9, b"12345678")) == []
    assert "not being built" in line.dropped[-1]
    assert line.say(wire.GpadlBody(1, 8, head[16:] + bytes(8))) == [wire.GpadlCreated(1, 8, FAILED)]  # too much
    assert line.say(wire.GpadlBody(1, 8, head[16:])) == []
    for size, count, data, number in (
        (24, 2, head, 10), (24, 1, pack_ranges([GpaRange(4096 * 9, 0, (1, 2))]), 11), (0, 1, b"", 12), (24, 0, head, 13),
        (24, 1, pack_ranges([GpaRange(8192, 0, (1, PAGES))]), 14),
        (24, 1, pack_ranges([GpaRange(100, 0, (1,))]) + bytes(8), 15),
        (24, 1, bytes(24), 16), (20, 1, head, 17),
    ):  # fmt: skip
        assert line.say(wire.GpadlHeader(1, number, size, count, data)) == [wire.GpadlCreated(1, number, FAILED)], number
    assert line.gpadl(number=18) == [wire.GpadlCreated(1, 18, SUCCESS)]


def test_gpadls_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpadl, "MAX_LISTS", 5)
    monkeypatch.setattr(gpadl, "MAX_PAGES", 10)
    line = Wire(1)
    answers = [line.gpadl(number=n)[0] for n in range(4)]
    assert [one.status for one in answers if isinstance(one, wire.GpadlCreated)] == [SUCCESS, SUCCESS, FAILED, FAILED]
    data = pack_ranges([GpaRange(4096 * 40, 0, tuple(range(40)))])
    for number in range(10, 20):  # never finished
        line.say(wire.GpadlHeader(1, number, len(data), 1, data[:100]))
    assert "more than 5 GPADLs" in line.dropped[-1]
    line.say(wire.Unload())
    line.say(contact(0x50003))
    line.say(wire.RequestOffers())
    assert line.gpadl() == [wire.GpadlCreated(1, 7, SUCCESS)]


def test_rescind_and_release() -> None:
    line = Wire(1, 2)
    line.gpadl()
    line.open()
    record = line.connection.channels[1]
    line.connection.rescind(record)
    assert line.answers() == [wire.RescindChannelOffer(1)]
    assert isinstance(line.other[-1], Close)
    line.connection.rescind(record)
    assert line.answers() == []
    assert line.connection.offer(offer(3)).channel_id == 3  # 1 is still the guest's
    line.answers()
    assert line.open() == []
    assert "it is revoked" in line.dropped[-1]
    assert line.gpadl(number=9) == []
    assert "rescinded" in line.dropped[-1]
    line.say(wire.CloseChannel(1))
    assert line.say(wire.GpadlTeardown(1, 7)) == [wire.GpadlTorndown(7)]
    line.say(wire.RelidReleased(1))
    assert line.connection.offer(offer(4)).channel_id == 1


def test_a_guest_may_let_go_of_a_channel_that_was_not_rescinded() -> None:
    line = Wire(1, 2)
    for channel in (1, 2):
        line.gpadl(channel)
    line.open(1)
    line.say(wire.RelidReleased(1))
    line.say(wire.RelidReleased(2))
    assert isinstance(line.other[-1], Close)
    assert not line.connection.gpadls.lists
    assert not line.dropped
    assert line.say(wire.OpenChannel(1, 1, 7, 0, 2, b"")) == []
    assert line.dropped == ["there is no channel 1"]
    assert line.say(wire.RelidReleased(1)) == []
    line.connection.rescind(line.connection.channels[2])
    assert line.answers() == [], "it knows of none"
    line.say(contact(0x50003))
    assert [type(one).__name__ for one in line.say(wire.RequestOffers())] == ["OfferChannel", "AllOffersDelivered"]


def test_rescind_before_anybody_knew() -> None:
    line = Wire(1, version=None)
    line.connection.rescind(line.connection.channels[1])
    assert line.answers() == []
    assert not line.connection.channels


@pytest.mark.parametrize("bye", [wire.Unload(), contact(0x40000), contact(0x60000)], ids=["unload", "contact", "refused contact"])
def test_everything_ends_with_the_connection(bye: Message) -> None:
    line = Wire(1, 2)
    line.gpadl()
    line.open()
    line.connection.rescind(line.connection.channels[2])
    line.answers()
    answers = line.say(bye)
    assert len(answers) == 1
    assert isinstance(line.other[-1], Close)
    assert list(line.connection.channels) == [1]
    assert line.state() is ChannelState.CLOSED
    assert not line.connection.gpadls.lists
    dropped = len(line.dropped)
    line.say(wire.RelidReleased(1))  # Linux releases its channels after UNLOAD
    assert len(line.dropped) == dropped + isinstance(bye, wire.InitiateContact) * (line.connection.version is not None)


def test_the_answer_to_a_goodbye_comes_where_the_guest_listens() -> None:
    line = Wire(version=None)
    line.say(contact(0x50003, page=5))
    assert line.say(wire.Unload()) == [wire.UnloadComplete()]
    assert (line.connection.version, line.connection.sint) == (None, 5)
    assert line.say(contact(0x50003, vp=1, page=7)) == [wire.VersionResponse(0, 0, 0)]
    assert (line.connection.version, line.connection.sint) == (None, 7)
    assert line.say(contact(0x40000)) == [wire.VersionResponse(1, 0, 0x40000)]
    assert line.connection.sint == 2


@pytest.mark.parametrize("version", list(Version))
def test_modify_channel(version: Version) -> None:
    line = Wire(1, version=version)
    line.gpadl()
    line.open()
    answers = line.say(wire.ModifyChannel(1, wire.NEVER_INTERRUPT))
    assert answers == ([wire.ModifyChannelResponse(1, SUCCESS)] if version >= Version.WIN10_5_3 else [])
    assert isinstance(line.other[-1], Retarget) == (version >= Version.WIN10_4_1)
    answers = line.say(wire.ModifyChannel(1, 5))
    assert answers == ([wire.ModifyChannelResponse(1, FAILED)] if version >= Version.WIN10_5_3 else [])


@pytest.mark.parametrize("data", [b"", b"1234", bytes(8), bytes.fromhex("0100000000000000"), bytes.fromhex("ffffffff00000000"),
                                  bytes.fromhex("0500000000000000"), bytes.fromhex("1500000000000000")])  # fmt: skip
def test_malformed_messages_are_dropped(data: bytes) -> None:
    line = Wire(1)
    assert line.say(data) == []
    assert line.dropped


@settings(derandomize=True, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from([3, 5, 7, 8, 9, 11, 13, 14, 16, 22]), st.lists(st.integers(0, 9), max_size=30)), max_size=25))
def test_no_sequence_of_messages_raises(messages: list[tuple[int, list[int]]]) -> None:
    line = Wire(1, 2)
    for number, words in messages:
        line.say(number.to_bytes(4, "little") + bytes(4) + b"".join(word.to_bytes(4, "little") for word in words))
    for record in line.connection.channels.values():
        assert (record.state is ChannelState.OPEN) == (record.ring is not None)
