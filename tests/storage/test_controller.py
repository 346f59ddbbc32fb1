from __future__ import annotations

import struct
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.devices.block import SECTOR, BlockFault
from avmm.memory import PAGE
from avmm.storage import wire
from avmm.storage.controller import IdeAccelerator, ScsiController
from avmm.storage.scsi_disk import ScsiDisk
from avmm.storage.wire import Direction, Operation, ScsiRequest, SrbStatus, Version, VstorPacket
from avmm.vmbus.packets import Packet, PacketKind
from avmm.vmbus.ranges import GpaRange, GpaRanges
from avmm.vmbus.server import ChannelServer
from tests.devices.bench import MemoryDisk
from tests.storage.guest import BUFFER, INSTANCE, Answer, FakeChannel, Storvsc, ThinDisk, ranges, read_10, write_10

TUR = bytes(6)
INQUIRY = bytes.fromhex("120000002400")


def guest(sectors: int = 1024, **more: Any) -> tuple[Storvsc, ThinDisk]:
    medium = ThinDisk(sectors)
    medium.data[:] = b"".join(struct.pack("<Q", n) * 64 for n in range(sectors))
    return Storvsc(ScsiDisk(medium), **more), medium


def test_offer() -> None:
    controller: ChannelServer = ScsiController(INSTANCE)
    assert controller.offer.interface == UUID("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")
    assert (controller.offer.instance, controller.offer.flags, controller.offer.sub_channel) == (INSTANCE, 1, 0)


@pytest.mark.parametrize("version", list(Version))
def test_read_and_write(version: Version) -> None:
    driver, medium = guest(version=version)
    assert driver.controller.protocol_version == version
    answer = driver.read_sectors(3, 8, at=0x20123)
    assert answer.good
    assert answer.data == medium.data[3 * SECTOR : 11 * SECTOR]
    data = bytes(range(256)) * 16
    answer = driver.write_sectors(100, data)
    assert (answer.good, answer.moved) == (True, 4096)
    assert medium.data[100 * SECTOR : 108 * SECTOR] == data
    stats = driver.controller.stats
    assert (stats.requests, stats.errors, stats.bytes_read, stats.bytes_written) == (2, 0, 4096, 4096)


def test_the_packet_of_the_document() -> None:
    driver, medium = guest()
    payload = bytes.fromhex(
        "0300000001000000000000003400000000000000" "0a14010000100000" "2800000000010000080000000000000000000000"
        "0000ff204a0100003c00000000000000"
    )  # fmt: skip
    driver.controller.received(Packet(PacketKind.GPA_DIRECT, 1, 1, payload, ranges(0x8000, 4096)))
    assert driver.answers()[1].good
    assert driver.memory.read(0x8000, 4096) == medium.data[SECTOR : 9 * SECTOR]


def test_data_go_through_scattered_pages() -> None:
    driver, medium = guest()
    pfns = (0x30, 0x11, 0x52)
    request = ScsiRequest(cdb_length=10, direction=Direction.IN, transfer_length=8192, cdb=read_10(0, 16))
    payload = VstorPacket(Operation.EXECUTE_SRB, 1, 0, request.pack()).pack(64)
    scattered = GpaRanges([GpaRange(8192, 0x800, pfns)])
    driver.controller.received(Packet(PacketKind.GPA_DIRECT, 1, 5, payload, scattered))
    assert driver.answers()[5].good
    memory = driver.memory
    found = memory.read(0x30800, 0x800) + memory.read(0x11000, 0x1000) + memory.read(0x52000, 0x800)
    assert found == medium.data[:8192]
    assert memory.read(0x52800, 0x800) == bytes(0x800)


def test_no_more_is_read_than_the_request_moves() -> None:
    driver, medium = guest()
    driver.memory.write(0x30800, b"first" * 410)
    driver.memory.write(0x11000, b"second" * 700)
    driver.memory.copied = 0
    request = ScsiRequest(cdb_length=10, direction=Direction.OUT, transfer_length=4096, cdb=write_10(0, 8))
    payload = VstorPacket(Operation.EXECUTE_SRB, 1, 0, request.pack()).pack(64)
    huge = GpaRanges([GpaRange(1 << 29, 0x800, (0x30, 0x11, *([0x52] * (1 << 17))))])
    driver.controller.received(Packet(PacketKind.GPA_DIRECT, 1, 5, payload, huge))
    assert driver.answers()[5].good
    assert driver.memory.copied == 4096
    assert medium.data[:4096] == (driver.memory.read(0x30800, 0x800) + driver.memory.read(0x11000, 0x800))


def test_write_data_are_taken_when_the_request_is() -> None:
    driver, medium = guest()
    driver.memory.write(BUFFER, b"A" * 512)
    driver.post(write_10(0, 1), Direction.OUT, 512)
    driver.memory.write(BUFFER, b"B" * 512)
    assert all(answer.good for answer in driver.answers().values())
    assert medium.data[:512] == b"A" * 512


def test_a_controller_that_goes_answers_what_is_in_flight() -> None:
    driver, _ = guest()
    posted = [driver.post(read_10(0, 512), Direction.IN, 512 * SECTOR, at=0x100000), driver.post(write_10(9, 1), Direction.OUT, SECTOR)]
    driver.controller.retire()
    assert driver.controller.in_flight == 0
    assert [(number, answer.srb & 0x3F) for number, answer in driver.answers().items()] == [(n, SrbStatus.INVALID_LUN) for n in posted]


def test_completions_come_as_they_are_done() -> None:
    driver, medium = guest()
    large = driver.post(read_10(0, 512), Direction.IN, 512 * SECTOR, at=0x100000)
    small = driver.post(read_10(9, 1), Direction.IN, SECTOR)
    middle = driver.post(read_10(20, 64), Direction.IN, 64 * SECTOR, at=0x80000)
    now = driver.post(TUR)
    assert driver.controller.in_flight == 3
    answers = driver.answers()
    assert [*answers] == [now, small, middle, large]
    assert all(answer.good for answer in answers.values())
    assert driver.memory.read(0x100000, 512 * SECTOR) == medium.data[: 512 * SECTOR]
    assert driver.memory.read(0x80000, 64 * SECTOR) == medium.data[20 * SECTOR : 84 * SECTOR]
    assert driver.controller.in_flight == 0
    assert driver.controller.stats.most_in_flight == 3


def test_a_full_ring_holds_completions_back_and_loses_none() -> None:
    driver, _ = guest(room=4)
    assert driver.channel.limits == (256, 64)
    tids = [driver.post(read_10(n, 1), Direction.IN, SECTOR, at=BUFFER + n * SECTOR) for n in range(20)]
    seen: list[int] = []
    driver.pass_time(10**9)
    while driver.channel.sent:
        assert len(driver.channel.sent) <= 4
        seen += [tid for _, _, tid in driver.channel.drain()]
    assert seen == tids


def test_a_completion_that_waits_is_not_overtaken() -> None:
    driver, _ = guest(room=1)
    _, second = driver.post(TUR), driver.post(TUR)
    driver.channel.sent.clear()  # the guest has taken the first, and not said so yet
    third = driver.post(TUR)
    assert not driver.channel.drain()
    assert [[tid for _, _, tid in driver.channel.drain()] for _ in range(2)] == [[second], [third]]


def test_closing_forgets_what_is_in_flight() -> None:
    driver, medium = guest()
    driver.memory.write(BUFFER, b"keep" * 128)
    driver.post(read_10(1, 1), Direction.IN, SECTOR)
    driver.post(write_10(2, 1), Direction.OUT, SECTOR)
    driver.controller.closed()
    driver.pass_time(10**9)
    assert driver.memory.read(BUFFER, 512) == b"keep" * 128
    assert not driver.channel.drain()
    assert medium.data[2 * SECTOR : 3 * SECTOR] == b"keep" * 128, "a write taken is a write done"
    driver.controller.opened(driver.channel)
    assert not driver.controller.ready, "a channel opened again is initialized again"
    driver.initialize()
    assert driver.read_sectors(5, 1).good


@pytest.mark.parametrize("operation", [Operation.RESET_BUS, Operation.RESET_ADAPTER, Operation.RESET_LUN])
def test_reset_aborts(operation: Operation) -> None:
    driver, _ = guest()
    other = MemoryDisk(16)
    driver.controller.add_lun(ScsiDisk(other))
    driver.channel.drain()
    first = driver.post(read_10(1, 1), Direction.IN, SECTOR)
    second = driver.post(read_10(1, 1), Direction.IN, SECTOR, lun=1, at=0x20000)
    payload = VstorPacket(operation, 1, 0, ScsiRequest(lun=1).pack()).pack(64)
    driver.controller.received(Packet(PacketKind.IN_BAND, 1, 99, payload))
    sent = [tid for _, _, tid in driver.channel.sent]
    answers = driver.answers()
    aborted = [second] if operation is Operation.RESET_LUN else [first, second]
    assert sent == [*aborted, 99]
    for tid in aborted:
        assert (answers[tid].srb, answers[tid].scsi, answers[tid].why) == (0x82, 2, (0xB, 0, 0))
    assert len(answers) == 3
    assert answers[99].nt_status == 0
    if operation is not Operation.RESET_LUN:
        assert driver.memory.read(BUFFER, 512) == bytes(512), "what was aborted must not move data any more"
    assert driver.read_sectors(1, 1).good


# -- LUNs


def test_report_luns_and_what_is_absent() -> None:
    driver, _ = guest()
    controller = driver.controller
    controller.add_lun(ScsiDisk(MemoryDisk(16)), 5)
    controller.add_lun(ScsiDisk(MemoryDisk(16)), 1, path=2, target=1)
    driver.channel.drain()
    report = struct.pack(">B5xI2x", 0xA0, 64)
    for lun in (0, 5, 9):
        assert driver.inp(report, 64, lun=lun).data == struct.pack(">I4xH6xH6x", 16, 0, 5)
    assert driver.inp(report, 64, path=2, target=1).data == struct.pack(">I4xH6x", 8, 1)
    assert driver.inp(report, 64, target=1).data == bytes(8)
    assert driver.inp(report, 8).moved == 8
    absent = driver.inp(INQUIRY, 36, lun=1)
    assert (absent.good, absent.data[0], absent.moved) == (True, 0x7F, 36)
    page = driver.inp(bytes.fromhex("120183002400"), 36, lun=1)
    gone = driver.run(TUR, lun=1)
    assert (gone.srb, gone.scsi, gone.why, gone.nt_status) == (0xA0, 2, (5, 0x25, 0), 0xC00000C0)
    assert page.srb == 0xA0
    # On another path Linux would take INVALID_LUN for the disk of path 0.
    elsewhere = driver.run(TUR, path=3)
    assert (elsewhere.srb, elsewhere.scsi, elsewhere.why) == (0x84, 2, (5, 0x25, 0))


def test_luns_come_and_go() -> None:
    driver, _ = guest()
    controller = driver.controller
    medium = MemoryDisk(16)
    assert controller.add_lun(ScsiDisk(medium)) == 1
    [(kind, payload, tid)] = driver.channel.drain()
    assert (kind, tid, payload) == (PacketKind.IN_BAND, 0, struct.pack("<III", 11, 0, 0) + bytes(52))
    assert driver.write_sectors(0, b"x" * 512, lun=1).good
    slow = driver.post(read_10(0, 8), Direction.IN, 4096, lun=1)
    controller.remove_lun(1)
    answers = driver.answers()
    assert answers[slow].good, "what was in flight is completed"
    assert driver.read_sectors(0, 1, lun=1).srb == 0xA0
    with pytest.raises(ValueError, match="already"):
        controller.add_lun(ScsiDisk(medium), 0)
    with pytest.raises(ValueError, match="no place"):
        controller.add_lun(ScsiDisk(medium), 64)
    with pytest.raises(KeyError):
        controller.remove_lun(1)


def test_a_rescan_waits_for_room_and_for_the_driver() -> None:
    driver, _ = guest(room=1)
    driver.post(TUR)
    driver.controller.add_lun(ScsiDisk(MemoryDisk(16)))
    assert [kind for kind, _, _ in driver.channel.drain()] == [PacketKind.COMPLETION]
    assert [kind for kind, _, _ in driver.channel.drain()] == [PacketKind.IN_BAND]
    assert not driver.channel.drain()
    early = Storvsc(init=False)
    early.controller.add_lun(ScsiDisk(MemoryDisk(16)))
    assert not early.channel.sent
    early.initialize()
    early.post(TUR)
    assert early.controller.ready
    assert early.inp(INQUIRY, 36).data[0] == 0


def test_ide_accelerator() -> None:
    medium = MemoryDisk(64)
    medium.data[:4] = b"here"
    accelerator = IdeAccelerator(ScsiDisk(medium), 1, 0)
    assert accelerator.offer.interface == wire.IDE_INTERFACE
    assert accelerator.offer.instance == wire.ide_instance(1, 0)
    assert accelerator.offer.user_data == wire.ide_user_data(1, 0)
    driver = Storvsc()
    driver.controller = accelerator
    accelerator.opened(driver.channel)
    driver.initialize()
    for path, target in ((0, 0), (1, 0), (0, 1), (7, 9)):
        assert driver.read_sectors(0, 1, path=path, target=target).data[:4] == b"here"
        assert driver.inp(INQUIRY, 36, path=path, target=target, lun=1).data[0] == 0x7F
    with pytest.raises(ValueError, match="takes no other"):
        accelerator.add_lun(ScsiDisk(medium))


# -- errors


def test_errors_are_sense_data() -> None:
    driver, medium = guest()
    medium.bad = {9}
    failed = driver.read_sectors(8, 4)
    assert (failed.srb, failed.scsi, failed.moved, failed.why) == (0x84, 2, 0, (3, 0x11, 0))
    assert failed.nt_status == 0xC0000185
    assert failed.sense[3:7] == struct.pack(">I", 9)
    beyond = driver.read_sectors(1024, 1)
    assert (beyond.srb, beyond.why) == (0x86, (5, 0x21, 0))
    medium.read_only = True
    assert driver.write_sectors(0, bytes(512)).why == (7, 0x27, 0)
    driver.controller.luns[0, 0, 0].inject = lambda op, lba, count: BlockFault.MEDIUM if lba == 77 else None
    assert driver.read_sectors(77, 1).why == (3, 0x11, 0)
    assert driver.read_sectors(78, 1).good
    assert driver.controller.stats.errors == 4


@pytest.mark.parametrize(
    ("direction", "length", "given_bytes", "cdb_length"),
    [
        (Direction.IN, 8192, 4096, 10),  # more than the ranges hold
        (Direction.OUT, 8192, 4096, 10),
        (Direction.IN, 0xFFFFFFFF, 4096, 10),
        (Direction.IN, 4096, 0, 10),  # no ranges at all
        (Direction.OUT, 2 << 20, 2 << 20, 10),  # more than the longest transfer
        (3, 4096, 4096, 10),  # no such direction
        (255, 0, 0, 10),
        (Direction.IN, 4096, 4096, 17),  # a CDB longer than its field
        (Direction.IN, 4096, 4096, 255),
    ],
)
def test_requests_that_contradict_themselves(direction: int, length: int, given_bytes: int, cdb_length: int) -> None:
    driver, medium = guest()
    tid = driver.post(read_10(0, 8), direction, length, given=given_bytes, cdb_length=cdb_length)
    answer = driver.answers()[tid]
    assert (answer.srb, answer.scsi, answer.moved) == (6, 0, 0)
    assert not medium.log
    assert driver.read_sectors(0, 8).good, "the channel goes on"


def test_short_and_long_buffers() -> None:
    driver, medium = guest()
    assert driver.inp(read_10(0, 8), 4095).why == (5, 0x24, 0)
    under = driver.inp(read_10(0, 8), 8192)
    assert (under.good, under.moved) == (True, 4096)
    wrong_way = driver.run(read_10(0, 8), Direction.OUT, 4096)
    assert wrong_way.why == (5, 0x24, 0)
    assert driver.run(write_10(0, 8), Direction.IN, 4096).why == (5, 0x24, 0)
    assert [op for op, _, _ in medium.log] == ["read"]


@pytest.mark.parametrize(
    ("kind", "flags", "payload"),
    [
        (PacketKind.COMPLETION, 1, bytes(64)),
        (PacketKind.TRANSFER_PAGES, 1, bytes(64)),
        (PacketKind.IN_BAND, 0, VstorPacket(Operation.RESET_BUS).pack(64)),
        (PacketKind.IN_BAND, 1, bytes(8)),
        (PacketKind.IN_BAND, 1, VstorPacket(200).pack(64)),
        (PacketKind.GPA_DIRECT, 1, VstorPacket(Operation.EXECUTE_SRB).pack(40)),
    ],
)
def test_a_broken_protocol_ends_the_channel(kind: PacketKind, flags: int, payload: bytes) -> None:
    driver, _ = guest()
    driver.controller.received(Packet(kind, flags, 1, payload, ranges(BUFFER, 512)))
    assert driver.channel.failure.startswith("scsi: ")
    assert not driver.channel.sent


def test_ranges_beyond_memory_do_no_harm() -> None:
    driver, _ = guest()
    assert driver.read_sectors(0, 8, at=(64 << 20)).good
    assert driver.run(write_10(0, 8), Direction.OUT, 4096, at=(4 << 20) - PAGE // 2).good


SRBS = st.builds(
    ScsiRequest,
    path=st.integers(0, 9), target=st.integers(0, 3), lun=st.integers(0, 3), cdb_length=st.integers(0, 255),
    sense_length=st.integers(0, 255), direction=st.integers(0, 255) | st.integers(0, 2),
    transfer_length=st.integers(0, 0xFFFFFFFF) | st.integers(0, 1 << 14), cdb=st.binary(max_size=20) | st.binary(min_size=16, max_size=20),
    srb_status=st.integers(0, 255), scsi_status=st.integers(0, 255), port=st.integers(0, 255), length=st.integers(0, 0xFFFF),
    reserved=st.integers(0, 255), tail=st.binary(max_size=16),
)  # fmt: skip


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.lists(st.tuples(SRBS, st.integers(0, 1 << 15), st.integers(0, 1 << 23)), min_size=1, max_size=6))
def test_hostile_requests_are_each_answered_once(requests: list[tuple[ScsiRequest, int, int]]) -> None:
    driver, _ = guest(64)
    for tid, (request, length, at) in enumerate(requests, 1000):
        payload = VstorPacket(Operation.EXECUTE_SRB, 1, 0, request.pack()).pack(64)
        driver.controller.received(Packet(PacketKind.GPA_DIRECT, 1, tid, payload, ranges(at, length)))
    driver.pass_time(10**9)
    tids = [tid for _, _, tid in driver.channel.drain()]
    assert sorted(tids) == list(range(1000, 1000 + len(requests)))
    assert not driver.channel.failure


def test_two_channels_do_not_share_anything() -> None:
    driver, _ = guest()
    other = FakeChannel(driver)
    tid = driver.post(read_10(0, 1), Direction.IN, SECTOR)
    driver.controller.opened(other)
    driver.pass_time(10**9)
    assert not other.sent
    assert tid not in {seen for _, _, seen in driver.channel.sent}


def test_zero_length_answers_have_the_size_of_their_request() -> None:
    driver, _ = guest()
    for size in (48, 56, 64, 72):
        request = VstorPacket(Operation.EXECUTE_SRB, 1, 0, ScsiRequest(cdb_length=6, cdb=TUR).pack()).pack(size)
        driver.controller.received(Packet(PacketKind.IN_BAND, 1, 1, request))
        [(_, payload, _)] = driver.channel.drain()
        assert len(payload) == min(size, 64)
        assert Answer(payload).good
