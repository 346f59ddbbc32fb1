from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.devices.block import SECTOR, BlockFault
from avmm.storage import sense
from avmm.storage.scsi_disk import Command, Result, ScsiDisk, Work
from avmm.storage.sense import Sense, SenseKey
from tests.devices.bench import MemoryDisk
from tests.storage.guest import ThinDisk, read_10, write_10

SECTORS = 256


def run(disk: ScsiDisk, cdb: bytes, data: bytes = b"", room: int = 0) -> Result:
    """Execute a command whose medium does not really wait."""
    begun = disk.execute(Command(cdb, data, room))
    if isinstance(begun, Result):
        return begun
    with pytest.raises(StopIteration) as stopped:
        begun.coroutine.send(None)
    result = stopped.value.value
    assert isinstance(result, Result)
    return result


def inp(disk: ScsiDisk, cdb: str | bytes, room: int = 4096) -> bytes:
    """Execute a command that must succeed and return its data."""
    result = run(disk, bytes.fromhex(cdb) if isinstance(cdb, str) else cdb, room=room)
    assert result.sense is None
    return bytes(result.data)


def patterned(sectors: int = SECTORS) -> ThinDisk:
    medium = ThinDisk(sectors)
    medium.data[:] = b"".join(struct.pack("<II", 0xA5A5, n) * 64 for n in range(sectors))
    return medium


def disk(sectors: int = SECTORS) -> tuple[ScsiDisk, ThinDisk]:
    medium = patterned(sectors)
    return ScsiDisk(medium, "AVMM00042"), medium


# -- who are you


def test_inquiry() -> None:
    data = inp(disk()[0], "120000006000")
    assert len(data) == 96
    assert data[:8] == bytes.fromhex("000005025b000002")
    assert data[8:36] == b"AVMM    Virtual Disk    1.0 "
    assert inp(disk()[0], "120000002400") == data[:36]  # allocation length
    assert inp(disk()[0], "120000006000", room=5) == data[:5]  # less room than allocated


def test_vital_product_data() -> None:
    it = disk()[0]
    assert inp(it, "12010000ff00") == bytes.fromhex("00000006" "008083b0b1b2")  # fmt: skip
    assert inp(it, "12018000ff00") == bytes.fromhex("00800009") + b"AVMM00042"
    page = inp(it, "12018300ff00")
    assert page[:2] == b"\x00\x83"
    assert struct.unpack(">H", page[2:4])[0] == len(page) - 4
    assert page[4:8] == bytes.fromhex("01030008")
    assert page[8] >> 4 == 3
    assert page[16:20] == bytes([2, 1, 0, 17])
    assert page[20:] == b"AVMM    AVMM00042"
    assert page == inp(ScsiDisk(MemoryDisk(1), "AVMM00042"), "12018300ff00"), "the name must be the serial number's"
    assert page != inp(ScsiDisk(MemoryDisk(1), "AVMM00043"), "12018300ff00")
    limits = inp(it, "1201b000ff00")
    assert limits[:4] == bytes.fromhex("00b0003c")
    assert struct.unpack(">I", limits[8:12])[0] == 2048  # longest transfer, in sectors
    assert struct.unpack(">II", limits[20:28]) == (0xFFFFFFFF, 256)
    assert inp(it, "1201b100ff00") == bytes.fromhex("00b1003c0001").ljust(64, b"\0")
    assert inp(it, "1201b200ff00") == bytes.fromhex("00b20004" "00e00200")  # fmt: skip
    assert inp(ScsiDisk(MemoryDisk(8)), "1201b200ff00")[4:] == bytes(4), "no UNMAP where the medium does not listen"


def test_mode_sense() -> None:
    it, medium = disk()
    caching = bytes.fromhex("0812" "04").ljust(20, b"\0")  # fmt: skip
    control = bytes.fromhex("0a0a0010").ljust(12, b"\0")
    descriptor = struct.pack(">II", SECTORS, SECTOR)
    assert inp(it, "1a080800ff00") == bytes.fromhex("17001000") + caching
    assert inp(it, "1a000800ff00") == bytes.fromhex("1f001008") + descriptor + caching
    assert inp(it, "1a083f00ff00") == bytes.fromhex("23001000") + caching + control
    assert inp(it, "5a083f0000000000ff00") == bytes.fromhex("0026001000000000") + caching + control
    assert inp(it, "5a00080000000000ff00") == bytes.fromhex("0022001000000008") + descriptor + caching
    assert inp(it, "1a083f000400") == bytes.fromhex("23001000")
    assert inp(it, "1a084800ff00")[4:] == bytes.fromhex("0812").ljust(20, b"\0"), "nothing can be changed"
    medium.read_only = True
    assert inp(it, "1a083f00ff00")[2] == 0x90


def test_capacities() -> None:
    it = disk()[0]
    assert inp(it, "25000000000000000000") == struct.pack(">II", 255, 512)
    assert inp(it, "9e1000000000000000000000002000" + "00") == struct.pack(">QI", 255, 512) + bytes.fromhex("00008000") + bytes(16)
    plain = ScsiDisk(MemoryDisk(8))
    assert inp(plain, "9e1000000000000000000000002000" + "00")[14] == 0

    class Huge(MemoryDisk):
        sectors = 1 << 33

    assert inp(ScsiDisk(Huge()), "25000000000000000000") == struct.pack(">II", 0xFFFFFFFF, 512)
    assert inp(ScsiDisk(Huge()), "9e1000000000000000000000002000" + "00")[:8] == struct.pack(">Q", (1 << 33) - 1)


@pytest.mark.parametrize("cdb", ["000000000000", "1b0000000000", "1b0000000100", "1e0000000100"])
def test_commands_that_just_succeed(cdb: str) -> None:
    assert inp(disk()[0], cdb) == b""


def test_request_sense_and_unit_attention() -> None:
    it = disk()[0]
    none = bytes.fromhex("70000000000000000a") + bytes(9)
    assert inp(it, "030000001200") == none[:7] + b"\x0a" + bytes(10)
    it.notify(sense.CAPACITY_CHANGED)
    it.notify(sense.CAPACITY_CHANGED)
    it.notify(sense.WAS_RESET)
    assert inp(it, "120000002400")[:1] == b"\0", "INQUIRY is not held up"
    assert run(it, bytes(6)).sense == Sense(SenseKey.UNIT_ATTENTION, 0x2A, 9)
    assert inp(it, "030000001200")[2:14] == bytes.fromhex("06" "00000000" "0a" "00000000" "29" "00")  # fmt: skip
    assert run(it, bytes(6)).sense is None


# -- sectors

READS: list[tuple[str, Callable[[int, int], bytes]]] = [
    ("READ(6)", lambda lba, count: struct.pack(">IBB", 0x08000000 | lba, count & 0xFF, 0)),
    ("READ(10)", read_10),
    ("READ(12)", lambda lba, count: struct.pack(">BBIIBB", 0xA8, 0, lba, count, 0, 0)),
    ("READ(16)", lambda lba, count: struct.pack(">BBQIBB", 0x88, 0, lba, count, 0, 0)),
]
WRITES: list[tuple[str, Callable[[int, int], bytes]]] = [
    ("WRITE(6)", lambda lba, count: struct.pack(">IBB", 0x0A000000 | lba, count & 0xFF, 0)),
    ("WRITE(10)", write_10),
    ("WRITE(12)", lambda lba, count: struct.pack(">BBIIBB", 0xAA, 0, lba, count, 0, 0)),
    ("WRITE(16)", lambda lba, count: struct.pack(">BBQIBB", 0x8A, 0, lba, count, 0, 0)),
]


@pytest.mark.parametrize(("name", "cdb"), READS)
def test_reads(name: str, cdb: Callable[[int, int], bytes]) -> None:
    it, medium = disk()
    for lba, count in ((0, 1), (3, 5), (250, 6)):
        result = run(it, cdb(lba, count), room=count * SECTOR)
        assert result.data == medium.data[lba * SECTOR : (lba + count) * SECTOR]
        assert (result.status, result.moved) == (0, count * SECTOR)
    assert run(it, cdb(251, 6), room=4096).sense == sense.OUT_OF_RANGE
    assert run(it, cdb(0, 2), room=1023).sense == sense.INVALID_FIELD, "more sectors than the buffer takes"
    assert len(medium.log) == 3


@pytest.mark.parametrize(("name", "cdb"), WRITES)
def test_writes(name: str, cdb: Callable[[int, int], bytes]) -> None:
    it, medium = disk()
    expected = bytearray(medium.data)
    for lba, count in ((0, 1), (3, 5), (250, 6)):
        data = bytes([lba ^ 0x5A]) * (count * SECTOR)
        expected[lba * SECTOR : (lba + count) * SECTOR] = data
        assert run(it, cdb(lba, count), data + b"more").moved == count * SECTOR
    assert medium.data == expected
    assert run(it, cdb(251, 6), bytes(4096)).sense == sense.OUT_OF_RANGE
    assert run(it, cdb(0, 2), bytes(1023)).sense == sense.INVALID_FIELD
    medium.read_only = True
    assert run(it, cdb(0, 1), bytes(512)).sense == sense.WRITE_PROTECTED
    assert medium.data == expected


def test_a_count_of_zero_is_256_in_a_short_cdb_and_nothing_in_the_others() -> None:
    it, medium = disk()
    assert len(run(it, READS[0][1](0, 0), room=1 << 20).data) == 256 * SECTOR
    medium.log.clear()
    for _, cdb in READS[1:]:
        assert run(it, cdb(0, 0)).status == 0
        assert run(it, cdb(256, 0)).status == 0
        assert run(it, cdb(257, 0)).sense == sense.OUT_OF_RANGE
    assert not medium.log


def test_force_unit_access_is_a_flush() -> None:
    it, medium = disk()
    run(it, write_10(0, 1, 0x08), bytes(512))
    assert medium.log == [("write", 0, 1), ("flush", 0, 0)]
    medium.log.clear()
    run(it, write_10(0, 1, 0x10), bytes(512))
    assert medium.log == [("write", 0, 1)]


def test_synchronize_cache() -> None:
    it, medium = disk()
    for cdb in (struct.pack(">BBIBHB", 0x35, 0, 0, 0, 0, 0), struct.pack(">BBQIBB", 0x91, 0, 5, 9, 0, 0)):
        assert run(it, cdb).status == 0
    assert medium.log == [("flush", 0, 0)] * 2
    assert run(it, struct.pack(">BBIBHB", 0x35, 0, 257, 0, 0, 0)).sense == sense.OUT_OF_RANGE


@pytest.mark.parametrize("code", [0x2F, 0xAF, 0x8F])
def test_verify(code: int) -> None:
    it, medium = disk()
    layout = {0x2F: ">BBIxHx", 0xAF: ">BBIIxx", 0x8F: ">BBQIxx"}[code]
    assert run(it, struct.pack(layout, code, 0, 4, 8)).status == 0
    same = bytes(medium.data[4 * SECTOR : 12 * SECTOR])
    assert run(it, struct.pack(layout, code, 2, 4, 8), same).moved == len(same)
    assert run(it, struct.pack(layout, code, 2, 4, 8), same[:-1] + b"?").sense == sense.MISCOMPARE
    assert run(it, struct.pack(layout, code, 2, 4, 8), same[:-1]).sense == sense.INVALID_FIELD
    assert run(it, struct.pack(layout, code, 4, 4, 8), same).sense == sense.INVALID_FIELD
    medium.bad = {9}
    assert run(it, struct.pack(layout, code, 0, 4, 8)).sense == Sense(SenseKey.MEDIUM_ERROR, 0x11, 0, 9)


def test_unmap() -> None:
    it, medium = disk()
    extents = struct.pack(">QI4x", 8, 16) + struct.pack(">QI4x", 100, 0) + struct.pack(">QI4x", 64, 1)
    data = struct.pack(">HH4x", 6 + len(extents), len(extents)) + extents
    cdb = struct.pack(">BB5xHB", 0x42, 0, len(data), 0)
    assert run(it, cdb, data).moved == len(data)
    assert medium.log == [("discard", 8, 16), ("discard", 64, 1)]
    assert run(it, struct.pack(">BB5xHB", 0x42, 1, len(data), 0), data).sense == sense.INVALID_FIELD  # ANCHOR
    assert run(it, cdb, data[:-1]).sense == sense.INVALID_FIELD
    assert run(it, struct.pack(">BB5xHB", 0x42, 0, 7, 0), data).sense == sense.PARAMETER_LENGTH
    assert run(it, struct.pack(">BB5xHB", 0x42, 0, 0, 0)).status == 0
    beyond = struct.pack(">HH4xQI4x", 22, 16, 255, 2)
    assert run(it, struct.pack(">BB5xHB", 0x42, 0, 24, 0), beyond).sense == sense.OUT_OF_RANGE
    many = struct.pack(">HH4x", 6 + 16 * 257, 16 * 257) + bytes(16 * 257)
    assert run(it, struct.pack(">BB5xHB", 0x42, 0, len(many), 0), many).sense == sense.INVALID_PARAMETER
    assert len(medium.log) == 2
    assert run(ScsiDisk(MemoryDisk(64)), cdb, data).sense == sense.INVALID_OPCODE


def test_write_same() -> None:
    it, medium = disk()
    sector = bytes(range(256)) * 2
    assert run(it, struct.pack(">BBIxHx", 0x41, 0, 2, 3), sector).moved == SECTOR
    assert medium.data[2 * SECTOR : 5 * SECTOR] == sector * 3
    assert run(it, struct.pack(">BBQIxx", 0x93, 1, 3, 1)).status == 0  # no data out: zeros
    assert medium.data[2 * SECTOR : 5 * SECTOR] == sector + bytes(SECTOR) + sector
    medium.log.clear()
    assert run(it, struct.pack(">BBQIxx", 0x93, 8, 10, 20), sector).status == 0
    assert medium.log == [("discard", 10, 20)]
    for code, flags, count in ((0x93, 0, 0), (0x93, 0x10, 1), (0x93, 0, 257)):
        assert run(it, struct.pack(">BBQIxx", code, flags, 0, count), sector).sense in (sense.INVALID_FIELD, sense.OUT_OF_RANGE)
    assert run(it, struct.pack(">BBQIxx", 0x93, 0, 0, 1), sector[:-1]).sense == sense.INVALID_FIELD


# -- what goes wrong


@pytest.mark.parametrize(
    ("cdb", "expected"),
    [
        ("", sense.INVALID_OPCODE), ("a3" + "00" * 11, sense.INVALID_OPCODE), ("ff" + "00" * 15, sense.INVALID_OPCODE),
        ("15" + "00" * 5, sense.INVALID_OPCODE), ("2800", sense.INVALID_FIELD), ("88" + "00" * 9, sense.INVALID_FIELD),
        ("12008000ff00", sense.INVALID_FIELD), ("1201c000ff00", sense.INVALID_FIELD), ("1a083e00ff00", sense.INVALID_FIELD),
        ("1a080801ff00", sense.INVALID_FIELD), ("9e00" + "00" * 14, sense.INVALID_FIELD), ("030100001200", sense.INVALID_FIELD),
        ("25000000000000000100", sense.INVALID_FIELD), ("25000000000100000000", sense.INVALID_FIELD),
        ("2820000000000000" + "0100", sense.INVALID_FIELD),
    ],
)  # fmt: skip
def test_what_is_not_understood(cdb: str, expected: Sense) -> None:
    result = run(disk()[0], bytes.fromhex(cdb), room=4096)
    assert result.sense == expected
    assert (result.status, result.moved) == (2, 0)


def test_faults_of_the_medium_name_the_sector() -> None:
    it, medium = disk()
    medium.bad = {7}
    failed = run(it, read_10(4, 8), room=4096)
    assert failed.sense == Sense(SenseKey.MEDIUM_ERROR, 0x11, 0, 7)
    assert failed.sense.pack() == bytes.fromhex("f00003" "00000007" "0a" "00000000" "1100" "00" "000000")  # fmt: skip
    assert run(it, write_10(4, 8), bytes(4096)).sense == Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0, 7)


@pytest.mark.parametrize(
    ("op", "cdb", "expected"),
    [
        ("read", read_10(9, 1), Sense(SenseKey.MEDIUM_ERROR, 0x11, 0, 9)),
        ("write", write_10(9, 1), Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0, 9)),
        ("flush", struct.pack(">BBIxHx", 0x35, 0, 0, 0), Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0, 0)),
        ("discard", struct.pack(">BBQIxx", 0x93, 9, 9, 2), Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0, 9)),
    ],
)
def test_injected_faults(op: str, cdb: bytes, expected: Sense) -> None:
    it, medium = disk()
    it.inject = lambda what, lba, count: BlockFault.MEDIUM if what == op else None
    assert run(it, cdb, bytes(512), 512).sense == expected
    assert not medium.log
    it.inject = lambda what, lba, count: None
    assert run(it, cdb, bytes(512), 512).status == 0


def test_no_medium() -> None:
    it = ScsiDisk(MemoryDisk(0))
    for cdb in (bytes(6), read_10(0, 1), write_10(0, 1), bytes.fromhex("25") + bytes(9), struct.pack(">BBIxHx", 0x35, 0, 0, 0)):
        assert run(it, cdb, bytes(512), 512).sense == sense.NO_MEDIUM
    assert inp(it, "120000002400")[:1] == b"\0"


def test_a_large_address_does_not_fit_fixed_sense() -> None:
    assert Sense(SenseKey.MEDIUM_ERROR, 0x11, 0, 1 << 32).pack()[:7] == bytes.fromhex("70000300000000")


@settings(derandomize=True, max_examples=400, deadline=None)
@given(st.binary(max_size=16), st.binary(max_size=600), st.integers(0, 1 << 20), st.booleans())
def test_no_cdb_raises_and_no_answer_is_too_long(cdb: bytes, data: bytes, room: int, read_only: bool) -> None:
    medium = patterned(64)
    medium.read_only = read_only
    before = bytes(medium.data)
    result = run(ScsiDisk(medium), cdb, data, room)
    assert len(result.data) <= room
    assert result.taken <= max(len(data), 0)
    if read_only:
        assert medium.data == before


OPS = st.tuples(st.sampled_from(["read", "write", "same", "verify"]), st.integers(0, 3), st.integers(0, 70), st.integers(1, 16))


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(OPS, max_size=25), st.randoms(use_true_random=False))
def test_random_traffic_against_a_bytearray(operations: list[tuple[str, int, int, int]], random: object) -> None:
    it = ScsiDisk(medium := patterned(64))
    model = bytearray(medium.data)
    for serial, (op, form, lba, count) in enumerate(operations):
        inside = lba + count <= 64
        part = slice(lba * SECTOR, (lba + count) * SECTOR)
        if op == "read":
            result = run(it, READS[form][1](lba, count), room=count * SECTOR)
            assert not inside or result.data == model[part]
        elif op == "verify":
            result = run(it, struct.pack(">BBQIxx", 0x8F, 2, lba, count), bytes(model[part]).ljust(count * SECTOR))
        else:
            data = bytes([serial + 1, form, lba, count]) * (count * SECTOR // 4)
            if op == "write":
                result = run(it, WRITES[form][1](lba, count), data)
            else:
                result = run(it, struct.pack(">BBQIxx", 0x93, 0, lba, count), data[:SECTOR])
            if inside:
                model[part] = data
        assert result.sense == (None if inside else sense.OUT_OF_RANGE)
    assert medium.data == model


def test_commands_that_need_the_medium_come_back_as_work() -> None:
    it, _ = disk()
    work = it.execute(Command(read_10(0, 8), room=4096))
    assert isinstance(work, Work)
    assert work.sectors == 8
    work.coroutine.close()
