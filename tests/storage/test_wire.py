from __future__ import annotations

import struct
import uuid

import pytest

from avmm.storage import wire
from avmm.storage.wire import ChannelProperties, Direction, Operation, ScsiRequest, Srb, SrbStatus, Version, VstorPacket

# EXECUTE_SRB with READ(10) of LBA 1, 8 blocks, as Linux sends it (packet payload only).
READ_SRB = bytes.fromhex(
    "030000000100000000000000"
    "3400000000000000" "0a140100" "00100000" "2800000000010000080000000000000000000000"
    "0000ff204a0100003c00000000000000"
)  # fmt: skip


def test_read_request_of_the_document() -> None:
    packet = VstorPacket.parse(READ_SRB)
    assert (packet.operation, packet.flags, packet.status) == (Operation.EXECUTE_SRB, 1, 0)
    request = ScsiRequest.parse(packet.body)
    assert request.cdb[: request.cdb_length] == bytes.fromhex("28000000000100000800")
    assert (request.direction, request.transfer_length, request.sense_length) == (Direction.IN, 4096, 20)
    assert (request.path, request.target, request.lun, request.length) == (0, 0, 0, 0x34)
    assert request.tail == bytes.fromhex("0000ff204a0100003c00000000000000")
    assert VstorPacket(packet.operation, packet.flags, packet.status, request.pack()).pack(64) == READ_SRB


def test_completion_bytes() -> None:
    request = Srb(READ_SRB)
    good = request.complete(SrbStatus.SUCCESS, 0, 4096)
    assert good == bytes.fromhex(
        "010000000000000000000000" "3400" "0100" "00000000" "10000100" "00100000" + "00" * 20 + "0000ff204a0100003c00000000000000"
    )  # fmt: skip
    sense = bytes.fromhex("70000500000000" "0a00000000" "2400000000" "00")
    bad = request.complete(SrbStatus.ERROR, 2, 0, sense)
    assert bad[:12] == bytes.fromhex("0100000000000000850100c0")
    assert bad[12:16] == bytes.fromhex("34008402")
    assert bad[20:24] == bytes.fromhex("10140100")
    assert bad[28:48] == sense + bytes(2)


def test_sense_is_cut_to_the_room_the_guest_gave() -> None:
    def answer(room: int, sense: bytes) -> ScsiRequest:
        request = Srb(ScsiRequest(sense_length=room).pack(), 0)
        return ScsiRequest.parse(request.complete(SrbStatus.ERROR, 2, 0, sense)[wire.HEADER_SIZE :])

    some = answer(8, b"\x70" + b"\x55" * 17)
    assert some.srb_status == 0x84
    assert some.sense_length == 8
    assert some.cdb == (b"\x70" + b"\x55" * 7).ljust(20, b"\0")
    none = answer(0, b"\x70" * 18)
    assert (none.srb_status, none.sense_length, none.cdb) == (4, 0, bytes(20))
    assert answer(255, b"\x70" * 18).sense_length == 20


def test_a_request_is_seen_as_it_lies_in_the_packet() -> None:
    body = ScsiRequest(
        length=52, port=3, path=4, target=5, lun=6, cdb_length=10, sense_length=18, direction=1, transfer_length=0xFFFFFFFF,
        cdb=bytes(range(20)), tail=bytes(range(100, 116)),
    )  # fmt: skip
    for payload, at in ((VstorPacket(Operation.EXECUTE_SRB, 1, 0, body.pack()).pack(64), 12), (body.pack(), 0)):
        request = Srb(payload, at)
        assert request.body == body
        assert (request.path, request.target, request.lun) == (4, 5, 6)
        assert (request.cdb_length, request.operation, request.cdb) == (10, 0, bytes(range(10)))
        assert (request.direction, request.transfer_length) == (1, 0xFFFFFFFF)
        answer = ScsiRequest.parse(request.complete(SrbStatus.INVALID_LUN, 0, 7)[wire.HEADER_SIZE :])
        expected = body._replace(srb_status=SrbStatus.INVALID_LUN, cdb_length=16, sense_length=0, transfer_length=7, cdb=bytes(20))
        assert answer == expected
    assert len(Srb(body.pack()[:36], 0).complete(SrbStatus.SUCCESS, 0, 0)) == 48, "as long as the request"


@pytest.mark.parametrize(("request_size", "reply"), [(48, 48), (56, 56), (64, 64), (72, 64), (12, 12), (16, 16)])
def test_reply_sizes(request_size: int, reply: int) -> None:
    assert len(wire.complete(request_size, 0, bytes(100))) == reply == wire.reply_size(request_size)


@pytest.mark.parametrize(
    ("version", "size"), [(Version.WIN6, 48), (Version.WIN7, 48), (Version.WIN8, 48), (Version.WIN8_1, 64), (Version.WIN10, 64)]
)
def test_packet_sizes(version: Version, size: int) -> None:
    assert wire.packet_size(version) == size


def test_short_packets_are_refused() -> None:
    with pytest.raises(wire.WireError):
        VstorPacket.parse(bytes(11))
    with pytest.raises(wire.WireError):
        ScsiRequest.parse(bytes(35))
    with pytest.raises(wire.WireError):
        Srb(bytes(47))
    assert ScsiRequest.parse(bytes(36)).tail == b""
    with pytest.raises(wire.WireError):
        ChannelProperties.parse(bytes(23))


def test_channel_properties() -> None:
    properties = ChannelProperties(0x40000, 3, 1)
    assert properties.pack() == struct.pack("<IHHIIQ", 0, 3, 0, 1, 0x40000, 0)
    assert ChannelProperties.parse(properties.pack()) == properties


def test_offers() -> None:
    assert wire.SCSI_INTERFACE.bytes_le.hex() == "d96361baa104294db60572e2ffb1dc7f"
    assert wire.IDE_INTERFACE.bytes_le.hex() == "32264132cb86a2449b5c50d1417354f5"
    assert wire.ide_instance(1, 0).bytes_le == bytes.fromhex("01000000" "0000" "9988" "0000000000000000")  # fmt: skip
    assert wire.ide_instance(0, 1) == uuid.UUID(fields=(0, 1, 0x8899, 0, 0, 0))
    assert wire.ide_user_data(1, 0) == bytes.fromhex("0000" "01" "00" "00000000" "02000000") + bytes(12)  # fmt: skip


@pytest.mark.parametrize(
    ("srb", "nt"),
    [(1, 0), (5, 0x80000011), (0x20, 0xC00000C0), (0xB, 0xC00000B5), (0xA, 0xC000009D), (0x22, 0xC0000010), (0x12, 0x80000005),
     (2, 0xC0000120), (4, 0xC0000185), (6, 0xC0000185)],
)  # fmt: skip
def test_statuses(srb: int, nt: int) -> None:
    assert wire.nt_status(SrbStatus(srb)) == nt
