"""Wire formats against literal byte vectors and hostile bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.vmbus import packets, wire
from avmm.vmbus.packets import PacketKind
from avmm.vmbus.ranges import GpaRange, pack_ranges, unpack_ranges
from avmm.vmbus.wire import PAGE, WireError

SIZES: dict[type[wire.Message], int] = {
    wire.OfferChannel: 196, wire.RescindChannelOffer: 12, wire.RequestOffers: 8, wire.AllOffersDelivered: 8, wire.OpenChannel: 148,
    wire.OpenChannelResult: 20, wire.CloseChannel: 12, wire.GpadlHeader: 20, wire.GpadlBody: 16, wire.GpadlCreated: 20,
    wire.GpadlTeardown: 16, wire.GpadlTorndown: 12, wire.RelidReleased: 12, wire.InitiateContact: 40, wire.VersionResponse: 16,
    wire.Unload: 8, wire.UnloadComplete: 8, wire.ModifyChannel: 16, wire.ModifyChannelResponse: 16,
}  # fmt: skip
NUMBERS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 22, 24]

READ_10 = bytes.fromhex(
    "090005000d0001000100000000000000" "0000000001000000" "0010000000000000" "0800000000000000"
    "030000000100000000000000" "3400000000000000" "0a14" "0100" "00100000" "28000000000100000800" "00000000000000000000"
    "0000" "ff" "20" "4a010000" "3c000000" "00000000"
)  # fmt: skip


@pytest.mark.parametrize(("message", "size"), SIZES.items())
def test_sizes_include_the_header(message: type[wire.Message], size: int) -> None:
    assert message.size() == size


def test_numbers() -> None:
    assert [message.TYPE for message in SIZES] == NUMBERS


@pytest.mark.parametrize(
    ("message", "data"),
    [
        (wire.CloseChannel(5), "07000000 00000000 05000000"),
        (wire.Unload(), "10000000 00000000"),
        (wire.GpadlHeader(5, 1, 7, 6, bytes.fromhex("0a0b0c0d")), "08000000 00000000 05000000 01000000 0700 0600 0a0b0c0d"),
        (wire.GpadlBody(3, 0xE1E10, bytes(8)), "09000000 00000000 03000000 101e0e00 0000000000000000"),
        (wire.InitiateContact(0x50003, 0, 2), "0e000000 00000000 03000500 00000000 0200000000000000" + "00" * 16),
        (wire.VersionResponse(1, 0, 4), "0f000000 00000000 01 00 0000 04000000"),
        (wire.GpadlCreated(1, 0xE1E10, 0), "0a000000 00000000 01000000 101e0e00 00000000"),
        (wire.GpadlTorndown(0xE1E10), "0c000000 00000000 101e0e00"),
        (wire.OpenChannelResult(1, 1, 0x8000FFFF), "06000000 00000000 01000000 01000000 ffff0080"),
        (wire.ModifyChannelResponse(1, 0), "18000000 00000000 01000000 00000000"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, wire.Message) else "",
)
def test_literal_messages_both_ways(message: wire.Message, data: str) -> None:
    assert message.pack() == bytes.fromhex(data)
    assert type(message).unpack(bytes.fromhex(data)) == message


def test_offer_fields_lie_where_they_must() -> None:
    data = wire.OfferChannel(b"i" * 16, b"n" * 16, 0x10, 3, b"user", 7, 0, 0x123, 0xFF, 0, 1, 0x2123).pack()
    assert data[8:24] == b"i" * 16
    assert data[24:40] == b"n" * 16
    assert data[40:56] == bytes(16)
    assert data[56:60] == bytes.fromhex("10000300")
    assert data[60:180] == b"user".ljust(120, b"\0")
    assert data[180:] == bytes.fromhex("0700 0000 23010000 ff 00 0100 23210000")


def test_open_fields_lie_where_they_must() -> None:
    data = wire.OpenChannel(1, 2, 3, 4, 5, b"u" * 120).pack()
    assert data == bytes.fromhex("05000000 00000000 01000000 02000000 03000000 04000000 05000000") + b"u" * 120


def test_in_band_packet() -> None:
    packet = packets.pack_packet(6, bytes(range(1, 9)), 0x11, flags=1)
    assert packet == bytes.fromhex("0600 0200 0300 0100 1100000000000000 0102030405060708")
    found = packets.unpack_packet(packet, 1)
    assert (found.kind, found.flags, found.transaction_id, found.payload) == (PacketKind.IN_BAND, 1, 0x11, bytes(range(1, 9)))
    assert (found.ranges.listed, found.ranges.byte_count, found.page_set, found.request_id) == ((), 0, 0, 0)
    assert packets.packet_length(8) == len(packet) + 8


@pytest.mark.parametrize("transaction", [0, 1, (1 << 63) - 1, 1 << 63, 0xFFFF888005688C00, (1 << 64) - 1])
@pytest.mark.parametrize("kind", [PacketKind.IN_BAND, PacketKind.COMPLETION, 0xB])
def test_transaction_ids_have_64_bits(kind: int, transaction: int) -> None:
    for payload in (b"12345678", b"odd"):
        packet = packets.pack_packet(kind, payload, transaction, flags=1)
        expected = struct.pack("<HHHHQ", kind, 2, 3, 1, transaction) + payload.ljust(8, b"\0")
        assert packet == expected
        assert packets.unpack_packet(packet, 1).transaction_id == transaction


def test_gpa_direct_packet() -> None:
    packet = packets.pack_packet(9, READ_10[40:], 1, flags=1, ranges=[GpaRange(4096, 0, (8,))])
    assert packet == READ_10
    assert len(packet) == 112 - 8
    found = packets.unpack_packet(READ_10, 16, 77)
    assert (found.kind, found.flags, found.transaction_id) == (PacketKind.GPA_DIRECT, 1, 1)
    assert found.payload == READ_10[40:]
    assert found.ranges.byte_count == 4096
    assert found.ranges.listed == (GpaRange(4096, 0, (8,)),)
    assert found.request_id == 77


def test_transfer_pages_packet() -> None:
    packet = packets.pack_packet(7, b"12345678", 9, ranges=[GpaRange(100, 50, ()), GpaRange(7, 0, ())])
    found = packets.unpack_packet(packet, 1)
    assert (found.payload, found.page_set) == (b"12345678", 0)
    assert found.ranges.listed == (GpaRange(100, 50, ()), GpaRange(7, 0, ()))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("0500 0200 0300 0000" + "00" * 16, "unknown type"),
        ("0600 0200 0300 0200" + "00" * 16, "unknown flags"),
        ("0600 0100 0300 0000" + "00" * 16, "data begin"),
        ("0600 0400 0300 0000" + "00" * 16, "data begin"),
        ("0600 0200 0400 0000" + "00" * 16, "data begin"),
        ("0900 0200 0300 0000" + "00" * 16, "without ranges"),
        ("0900 0300 0300 0000" + "00" * 16, "without ranges"),
        ("0900 0300 0300 0000" + "00" * 8 + "0000000001000000", "do not fit"),
        ("0900 0400 0400 0000" + "00" * 8 + "0000000001000000 0100000000000000", "1 pages"),
        ("0900 0500 0500 0000" + "00" * 8 + "0000000001000000 0000000000000000 0000000000000000", "a range of 0 bytes"),
        ("0900 0500 0500 0000" + "00" * 8 + "0000000001000000 0100000000100000 0000000000000000", "at offset 4096"),
        ("0900 0500 0500 0000" + "00" * 8 + "0000000001000000 0100000000000000 ffffffff00000000", "not in the guest's memory"),
        ("0900 0500 0500 0000" + "00" * 8 + "00000000ffffffff 0100000000000000 0100000000000000", "do not fit"),
        ("0700 0300 0300 0000" + "00" * 8 + "00000000ffffff7f", "do not fit"),
        ("0700 0200 0300 0000" + "00" * 16, "without its header"),
    ],
)
def test_bad_packets_are_refused(data: str, why: str) -> None:
    with pytest.raises(WireError, match=why):
        packets.unpack_packet(bytes.fromhex(data), 256)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.binary(min_size=16, max_size=96), st.sampled_from([6, 7, 9, 11]))
def test_any_bytes_decode_or_raise_wire_error(data: bytes, kind: int) -> None:
    data = bytes([kind, 0]) + data[2:4] + (len(data) // 8).to_bytes(2, "little") + bytes([data[6] & 1, 0]) + data[8:]
    try:
        packet = packets.unpack_packet(data[: len(data) // 8 * 8], 256)
    except WireError:
        return
    assert all(pfn < 256 for one in packet.ranges.listed for pfn in one.pfns)
    assert data.startswith(packet.payload, data[2] * 8) or not packet.payload


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40000), st.integers(0, 4095)), min_size=1, max_size=4))
def test_ranges_round_trip(shapes: list[tuple[int, int]]) -> None:
    ranges = [GpaRange(n, at, tuple(range(-(-(n + at) // PAGE)))) for n, at in shapes]
    data = pack_ranges(ranges)
    assert unpack_ranges(data + b"more", len(ranges), 64) == (tuple(ranges), len(data))


@pytest.mark.parametrize("message", [one for one in SIZES if one.size() > 8], ids=lambda one: one.__name__)
def test_short_messages_are_refused(message: type[wire.Message]) -> None:
    with pytest.raises(WireError, match="shorter"):
        message.unpack(bytes(message.size() - 1))
