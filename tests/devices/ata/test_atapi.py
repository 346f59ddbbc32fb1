from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.devices.ata import AtapiCdrom, Phase
from avmm.devices.ata.cdrom import HANDLERS, msf
from tests.devices.ata.host import BUFFER, SECOND, Host, cd_host
from tests.devices.bench import MemoryDisk


def issue(host: Host, cdb: bytes, limit: int = 0xFFFE, dma: bool = False) -> None:
    host.out(6, 0xA0)
    host.out(1, dma)
    host.out(4, limit & 0xFF)
    host.out(5, limit >> 8)
    edges = host.irq.edges
    host.out(7, 0xA0)
    assert host.inp(7) & 0x88 == 0x08
    assert host.inp(2) & 3 == 1  # CoD: a packet is wanted
    assert host.irq.edges == edges
    host.write_block(cdb.ljust(12, b"\0"))


def collect(host: Host) -> tuple[bytes, list[int], int]:
    """Take data until the command is over: data, byte counts, error register."""
    data = b""
    counts: list[int] = []
    while True:
        host.pass_time(SECOND)
        assert host.irq.level
        status = host.inp(7)
        assert not status & 0x80
        if not status & 0x08:
            assert host.inp(2) & 3 == 3
            return data, counts, host.inp(1) if status & 1 else 0
        assert host.inp(2) & 3 == 2
        count = host.inp(4) | host.inp(5) << 8
        counts.append(count)
        data += host.read_block(count + (count & 1))[:count]


def command(host: Host, cdb: bytes, limit: int = 0xFFFE) -> bytes:
    issue(host, cdb, limit)
    data, _, error = collect(host)
    assert error == 0, hex(error)
    return data


def failed(host: Host, cdb: bytes) -> tuple[int, int, int]:
    """Sense key, ASC and ASCQ that a command ends with."""
    issue(host, cdb)
    data, _, error = collect(host)
    assert data == b""
    sense = command(host, b"\x03\0\0\0\x12")
    assert sense[0] == 0x70
    assert sense[2] == error >> 4
    return sense[2], sense[12], sense[13]


def medium_of(host: Host) -> MemoryDisk:
    drive = host.ata.drives[0]
    assert drive is not None
    assert isinstance(drive.disk, MemoryDisk)
    return drive.disk


@pytest.fixture
def host() -> Host:
    host, _ = cd_host()
    assert failed(host, b"\0") == (6, 0x29, 0)  # power on
    return host


def read10(lba: int, count: int) -> bytes:
    return struct.pack(">BxIxH", 0x28, lba, count)


@pytest.mark.parametrize(
    ("limit", "counts"),
    [(0xFFFE, [10240]), (2048, [2048] * 5), (0, [10240]), (5000, [4096, 4096, 2048]), (2049, [2048] * 5), (4100, [4096, 4096, 2048])],
)
def test_read10(host: Host, limit: int, counts: list[int]) -> None:
    medium = medium_of(host).data
    issue(host, read10(3, 5), limit)
    data, got, error = collect(host)
    assert (got, error) == (counts, 0)
    assert data == medium[3 * 2048 : 8 * 2048]
    assert host.alternate() == 0x50


def test_small_byte_count(host: Host) -> None:
    issue(host, read10(0, 1), 513)
    data, counts, _ = collect(host)
    assert counts == [512] * 4
    assert len(data) == 2048


def test_read_more_than_a_chunk() -> None:
    host, medium = cd_host(200)
    failed(host, b"\0")
    assert command(host, struct.pack(">BxIIxx", 0xA8, 1, 150)) == medium.data[2048 : 151 * 2048]
    assert medium.log == [("read", 4, 256), ("read", 260, 256), ("read", 516, 88)]


def test_read_by_dma(host: Host) -> None:
    medium = medium_of(host).data
    host.prd((BUFFER, 4096))
    issue(host, read10(10, 2), dma=True)
    host.start_dma(to_memory=True)
    host.pass_time(SECOND)
    assert host.dma_status() == 4
    assert host.inp(7) == 0x50
    assert host.inp(2) & 3 == 3
    assert host.memory.read(BUFFER, 4096) == medium[10 * 2048 : 12 * 2048]


def test_read_nothing(host: Host) -> None:
    assert command(host, read10(0, 0)) == b""


def test_capacity_inquiry_and_toc(host: Host) -> None:
    assert struct.unpack(">II", command(host, b"\x25")) == (63, 2048)
    inquiry = command(host, b"\x12\0\0\0\x24")
    assert (inquiry[0], inquiry[1], inquiry[4]) == (5, 0x80, 31)
    assert inquiry[8:32] == b"AVMM    CD-ROM          "
    toc = command(host, struct.pack(">BB4xBHx", 0x43, 0, 0, 0x100))
    assert toc == struct.pack(">HBB BBBBI BBBBI", 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0x14, 0xAA, 0, 64)
    toc = command(host, struct.pack(">BB4xBHx", 0x43, 2, 0xAA, 0x100))
    assert toc[-4:] == bytes((0, *msf(64)))
    assert msf(64) == (0, 2, 64)
    session = command(host, struct.pack(">BBB3xBHx", 0x43, 0, 1, 0, 12))
    assert session == struct.pack(">HBB BBBBI", 10, 1, 1, 0, 0x14, 1, 0, 0)


LIMITED = [b"\x43", b"\x46", b"\x4a\x01\0\0\x10", b"\x5a\0\x3f", b"\x51", b"\x42", b"\x43\0\x02"]


@given(length=st.integers(0, 60), cdb=st.sampled_from(LIMITED))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_allocation_length(length: int, cdb: bytes) -> None:
    host, _ = cd_host()
    failed(host, b"\0")
    full = command(host, cdb.ljust(7, b"\0") + b"\x01\x00")
    assert command(host, cdb.ljust(7, b"\0") + struct.pack(">H", length)) == full[:length]
    assert len(full) > 2 or cdb == b"\x42"


@pytest.mark.parametrize(
    ("cdb", "sense"),
    [
        (b"\xff", (5, 0x20, 0)),
        (b"\x2a", (5, 0x20, 0)),  # WRITE(10)
        (read10(64, 1), (5, 0x21, 0)),
        (read10(60, 5), (5, 0x21, 0)),
        (b"\x5a\0\x07\0\0\0\0\x01\0", (5, 0x24, 0)),
        (b"\x12\x01", (5, 0x24, 0)),
    ],
)
def test_check_condition(host: Host, cdb: bytes, sense: tuple[int, int, int]) -> None:
    assert failed(host, cdb) == sense
    assert command(host, b"\x03\0\0\0\x12")[2] == 0  # reported once


def test_unreadable_sector(host: Host) -> None:
    medium = medium_of(host)
    medium.bad = {4 * 5 + 2}
    issue(host, read10(3, 4))
    data, _, error = collect(host)
    assert data == medium.data[3 * 2048 : 5 * 2048]  # the whole sectors before it
    assert error >> 4 == 3
    assert command(host, b"\x03\0\0\0\x12")[12] == 0x11


def test_medium_can_be_removed_and_changed(host: Host) -> None:
    drive = host.ata.drives[0]
    assert isinstance(drive, AtapiCdrom)
    assert command(host, b"\x1e\0\0\0\x01") == b""
    assert failed(host, b"\x1b\0\0\0\x02") == (5, 0x53, 2)
    drive.eject()
    assert command(host, b"\x4a\x01\0\0\x10\0\0\0\x08")[4:6] == b"\x01\x02"  # eject request, medium present
    command(host, b"\x1e\0\0\0\x00")
    command(host, b"\x1b\0\0\0\x02")
    assert failed(host, b"\0") == (2, 0x3A, 0)
    assert failed(host, read10(0, 1)) == (2, 0x3A, 0)
    assert command(host, b"\x4a\x01\0\0\x10\0\0\0\x08")[4:6] == b"\x03\x01"
    medium = MemoryDisk(8)
    medium.data[:] = b"n" * 4096
    drive.insert(medium)
    assert command(host, b"\x4a\x01\0\0\x10\0\0\0\x08")[4:6] == b"\x02\x02"
    assert failed(host, b"\0") == (6, 0x28, 0)
    assert command(host, read10(1, 1)) == b"n" * 2048


def test_device_reset_even_while_busy(host: Host) -> None:
    issue(host, read10(0, 1))
    assert host.alternate() == 0x80
    host.out(7, 0x08)
    assert (host.inp(7), host.registers()) == (0x00, (1, 1, 0x14, 0xEB, 0xA0))
    host.pass_time(SECOND)
    assert host.ata.phase is Phase.IDLE
    assert host.inp(7) == 0x00


def test_read_cd_and_disk_commands(host: Host) -> None:
    medium = medium_of(host).data
    assert command(host, b"\xbe\0\0\0\0\x02\0\0\x01\x10") == medium[2 * 2048 : 3 * 2048]
    assert failed(host, b"\xbe\0\0\0\0\x02\0\0\x01\xf8") == (5, 0x24, 0)
    for code in (0x20, 0x30, 0xC8, 0xE3 ^ 0x80, 0xC6):
        host.out(7, code)
        assert host.inp(7) & 1
        assert host.inp(1) == 0x04


@pytest.mark.parametrize("moved", [0, 6, 12, 12 + 100, 12 + 2048 + 2])
def test_restore(host: Host, moved: int) -> None:
    medium = medium_of(host)
    cdb = read10(20, 3).ljust(12, b"\0")
    host.out(4, 0)
    host.out(5, 8)
    host.out(1, 0)
    host.out(7, 0xA0)
    host.write_block(cdb[:moved])
    host.pass_time(SECOND if moved > 12 else 0)
    got = b""
    while 12 + len(got) < moved:
        got += host.read_block(2)
    other = Host([AtapiCdrom(medium)])
    other.time = host.time
    other.ata.restore(host.ata.save())
    assert other.ata.save() == host.ata.save()
    other.write_block(cdb[moved:])
    other.pass_time(SECOND)
    got += other.read_block(3 * 2048 - len(got))
    assert got == medium.data[20 * 2048 : 23 * 2048]
    assert other.alternate() == 0x50


PACKET = st.tuples(st.integers(0, 30), st.binary(min_size=12, max_size=12), st.integers(0, 0xFFFF))


@given(st.lists(PACKET, max_size=12))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_any_packet(packets: list[tuple[int, bytes, int]]) -> None:
    host, _ = cd_host(8)
    codes = sorted(HANDLERS)
    for number, cdb, limit in packets:
        issue(host, bytes((codes[number % len(codes)],)) + cdb[1:], limit)
        _, counts, _ = collect(host)
        assert all(count <= (limit & ~1 or 0xFFFE) or limit < 2 for count in counts)


def test_reset_unlocks_and_is_told(host: Host) -> None:
    command(host, b"\x1e\0\0\0\x01")
    host.write(host.ata, host.control, 0x04)
    host.write(host.ata, host.control, 0x00)
    assert failed(host, b"\0") == (6, 0x29, 0)
    assert command(host, b"\x1b\0\0\0\x02") == b""  # ejects: it is not locked any more


def test_overlapped_packets_are_not_supported(host: Host) -> None:
    host.out(1, 2)
    host.out(7, 0xA0)
    assert host.inp(7) & 0x89 == 0x01
    assert host.inp(1) == 0x04


def test_odd_length_is_padded_to_a_word(host: Host) -> None:
    issue(host, b"\x12\0\0\0\x05")
    data, counts, _ = collect(host)
    assert (data, counts) == (b"\x05\x80\x00\x21\x1f", [5])
