"""Rings: any sizes, wrapping, full and empty, both signal rules, the mask, and a guest that scribbles over the control page."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.memory import GuestMemory
from avmm.vmbus.packets import pack_packet
from avmm.vmbus.ring import INTERRUPT_MASK, PENDING_SEND_SIZE, READ_INDEX, WRITE_INDEX, Incoming, Outgoing, RingError, RingMemory

PFNS = (3, 7, 6, 9)  # not contiguous: 12 KiB of data in three pieces


def make(pfns: tuple[int, ...] = PFNS) -> tuple[RingMemory, Outgoing, Incoming]:
    memory = GuestMemory(memoryview(bytearray(1 << 20)))
    return (ring := RingMemory(memory, pfns)), Outgoing(ring), Incoming(ring)


def packet(size: int, number: int = 0) -> bytes:
    return pack_packet(6, bytes((number + i) & 0xFF for i in range(size)), number)


def test_the_literal_packet_with_its_footer() -> None:
    ring, outgoing, incoming = make()
    outgoing.write(pack_packet(6, bytes(range(1, 9)), 0x11, flags=1))
    assert ring.read(0, 32) == bytes.fromhex("0600 0200 0300 0100 1100000000000000 0102030405060708 0000000000000000")
    outgoing.write(packet(0))
    assert ring.read(32 + 16, 8) == bytes.fromhex("00000000 20000000")
    assert ring.memory.unpack("<II", 3 * 4096) == (32 + 24, 0)
    assert incoming.take() is not None


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 5000))
def test_what_goes_in_comes_out(seed: int, largest: int) -> None:
    """A random walk of writes, reads and commits keeps content and order, through many wraps."""
    chance = random.Random(seed)
    _, outgoing, incoming = make()
    expected: list[bytes] = []
    for number in range(150):
        if chance.random() < 0.6:
            one = packet(chance.randrange(largest), number)
            room = outgoing.room()
            written = outgoing.write(one)
            assert (written is None) == (room < len(one) + 8)
            if written is not None:
                expected.append(one)
                assert outgoing.room() >= 0
        for _ in range(chance.randrange(3)):
            taken = incoming.take()
            assert taken == (expected.pop(0) if expected else None)
        if chance.random() < 0.5:
            incoming.commit()
    while expected:
        assert incoming.take() == expected.pop(0)
    assert incoming.empty()


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30))
def test_packets_shown_together_are_those_that_would_have_been_written(seed: int) -> None:
    chance = random.Random(seed)
    one_by_one, together = make(), make()
    for number in range(60):
        taken = chance.randrange(2)
        signals, shown = [], 0
        for i in range(chance.randrange(1, 5)):
            data = packet(chance.randrange(2000), number * 5 + i)
            signals.append(one_by_one[1].write(data))
            shown += together[1].gather(data)
            assert together[1].room() == one_by_one[1].room()
        before = together[0].memory.view.tobytes()
        assert shown == sum(signal is not None for signal in signals)
        assert together[1].show() == any(signals)
        assert (together[0].memory.view == before) == (shown == 0), "nothing of them before"
        assert together[0].memory.view == one_by_one[0].memory.view
        assert not together[1].show()
        for _, _, incoming in (one_by_one, together):
            while taken and incoming.take() is not None:
                pass
            incoming.commit()


def test_full_is_eight_bytes_short() -> None:
    _, outgoing, incoming = make()
    assert outgoing.largest == outgoing.room() == 3 * 4096 - 8
    one = packet(3 * 4096 - 8 - 16 - 8)
    assert outgoing.write(one) is True
    assert outgoing.room() == 0
    assert outgoing.write(packet(0)) is None
    assert incoming.take() == one
    assert outgoing.room() == 0  # not given back yet
    incoming.commit()
    assert outgoing.room() == outgoing.largest


def test_write_signals_only_a_consumer_that_had_seen_everything() -> None:
    ring, outgoing, incoming = make()
    assert outgoing.write(packet(8)) is True
    assert outgoing.write(packet(8)) is False
    incoming.take()
    incoming.commit()
    assert outgoing.write(packet(8)) is False  # one is still unread
    incoming.take()
    incoming.take()
    incoming.commit()
    assert outgoing.write(packet(8)) is True
    incoming.take()
    incoming.commit()
    incoming.mask(True)
    assert ring.word(INTERRUPT_MASK) == 1
    assert outgoing.write(packet(8)) is False
    incoming.mask(False)
    assert ring.word(INTERRUPT_MASK) == 0


def test_read_signals_a_producer_whose_wish_is_met_just_now() -> None:
    ring, outgoing, incoming = make()
    size = 1000
    while outgoing.write(packet(size)) is not None:
        pass
    packets = (outgoing.largest - outgoing.room()) // (size + 24)
    assert outgoing.want_room(3 * (size + 24)) is False
    assert ring.word(PENDING_SEND_SIZE) == 3 * (size + 24)
    signals = []
    for _ in range(packets):
        incoming.take()
        signals.append(incoming.commit())
    free = outgoing.largest - packets * (size + 24)
    expected = next(n for n in range(1, packets + 1) if free + n * (size + 24) >= 3 * (size + 24))
    assert [n + 1 for n, signal in enumerate(signals) if signal] == [expected]
    outgoing.want_room(0)
    outgoing.write(packet(size))
    incoming.take()
    assert incoming.commit() is False


def test_the_low_bits_of_the_pending_size_are_ignored() -> None:
    ring, outgoing, incoming = make()
    outgoing.write(packet(4000))
    ring.set_word(PENDING_SEND_SIZE, 3 * 4096 - 8 + 7)
    incoming.take()
    assert incoming.commit() is True


@pytest.mark.parametrize("value", [1, 4, 3 * 4096, 0xFFFFFFF8, 0x80000000])
@pytest.mark.parametrize("offset", [WRITE_INDEX, READ_INDEX])
def test_a_wild_index_is_an_error(offset: int, value: int) -> None:
    ring, outgoing, incoming = make()
    outgoing.write(packet(8))
    ring.set_word(offset, value)
    with pytest.raises(RingError, match=r"index .* is not in a ring"):
        incoming.take() if offset == WRITE_INDEX else outgoing.write(packet(8))
    with pytest.raises(RingError):
        Incoming(ring)


@pytest.mark.parametrize(
    "head",
    ["0600 0200 0000 0000", "0600 0100 0300 0000", "0600 0400 0300 0000", "0600 0200 ffff 0000", "0600 0200 0400 0000"],
)
def test_a_torn_packet_is_an_error(head: str) -> None:
    ring, outgoing, incoming = make()
    outgoing.write(packet(8))
    ring.write(0, bytes.fromhex(head))
    with pytest.raises(RingError, match="bytes"):
        incoming.take()


def test_too_few_bytes_are_an_error() -> None:
    ring, _, incoming = make()
    ring.set_word(WRITE_INDEX, 8)
    with pytest.raises(RingError, match="no packet"):
        incoming.take()


def test_a_ring_needs_data_pages() -> None:
    with pytest.raises(RingError, match="no room for data"):
        make((3,))


@settings(derandomize=True, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=40), st.integers(0, 3))
def test_memory_changing_under_the_host_ends_in_a_ring_error_at_most(pokes: list[tuple[int, int]], page: int) -> None:
    ring, outgoing, incoming = make()
    before = bytes(ring.memory.view)
    for at, value in pokes:
        ring.memory.write(PFNS[page] * 4096 + at, bytes((value,)))
        try:
            outgoing.write(packet(at % 700))
            taken = incoming.take()
            assert taken is None or len(taken) % 8 == 0
            incoming.commit()
        except RingError:
            pass
    after = ring.memory.view
    for pfn in range(len(before) // 4096):
        if pfn not in PFNS:
            assert after[pfn * 4096 : (pfn + 1) * 4096] == before[pfn * 4096 : (pfn + 1) * 4096]


def test_saved_ends_go_on_where_they_were() -> None:
    ring, outgoing, incoming = make()
    outgoing.write(packet(100, 1))
    outgoing.write(packet(50, 2))
    incoming.take()
    incoming.commit()
    out_state, in_state = outgoing.save(), incoming.save()
    out_again, in_again = Outgoing(ring), Incoming(ring)
    out_again.restore(out_state)
    in_again.restore(in_state)
    out_again.write(packet(70, 3))
    assert [in_again.take(), in_again.take(), in_again.take()] == [packet(50, 2), packet(70, 3), None]
    with pytest.raises(ValueError, match="saved end of a ring"):
        Outgoing(RingMemory(ring.memory, (1, 2))).restore(out_state)
