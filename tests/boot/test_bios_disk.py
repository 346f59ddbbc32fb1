"""Int 13h, the drives' geometries, and int 18h/19h."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.boot.bios import bda
from avmm.boot.bios.drives import BiosDrive, Geometry, disk_geometry, floppy_geometry, partition_geometry
from avmm.boot.bios.rom import HALT_STUB, Service
from tests.boot.bios_bench import BiosBench
from tests.devices.bench import MemoryDisk

FLOPPY = 2880
DISK = 20480  # 10 MiB: 20 cylinders of 16 heads and 63 sectors


def numbered(sectors: int) -> MemoryDisk:
    disk = MemoryDisk(sectors)
    for lba in range(sectors):
        struct.pack_into("<I", disk.data, lba * 512, lba)
    return disk


def bootable(sectors: int) -> MemoryDisk:
    disk = numbered(sectors)
    disk.data[510:512] = b"\x55\xaa"
    return disk


def machine() -> tuple[BiosBench, MemoryDisk, MemoryDisk]:
    floppy, disk = bootable(FLOPPY), bootable(DISK)
    bench = BiosBench([BiosDrive(0x00, floppy), BiosDrive(0x80, disk)])
    floppy.log.clear()
    disk.log.clear()
    return bench, floppy, disk


@pytest.mark.parametrize(
    ("drive", "cx", "dh", "lba"),
    [
        (0x00, 0x0001, 0, 0),
        (0x00, 0x0112, 1, 71),
        (0x80, 0x0001, 0, 0),
        (0x80, 0x0301, 5, 3 * 1008 + 5 * 63),
        (0x80, 0x033F, 15, 4 * 1008 - 1),
    ],
)
def test_read_by_chs(drive: int, cx: int, dh: int, lba: int) -> None:
    bench, floppy, disk = machine()
    bench.service(Service.DISK, flags=1, ax=0x0201, es=0x2000, bx=0x10, cx=cx, dh=dh, dl=drive)
    assert (bench["ah"], bench["al"], bench.carry) == (0, 1, False)
    assert bench.memory.unpack("<I", 0x20010)[0] == lba
    assert (disk if drive else floppy).log == [("read", lba, 1)]


def test_cylinders_above_255_use_the_high_bits_of_cl() -> None:
    disk = numbered(400 * 1008)
    bench = BiosBench([BiosDrive(0x80, disk)])
    bench.service(Service.DISK, ax=0x0201, es=0x2000, bx=0, cx=(300 & 0xFF) << 8 | (300 >> 8) << 6 | 1, dx=0x0080)
    assert bench.memory.unpack("<I", 0x20000)[0] == 300 * 1008


def test_one_request_is_one_transfer() -> None:
    bench, _, disk = machine()
    bench.service(Service.DISK, ax=0x027F, es=0x2000, bx=0, cx=1, dx=0x0080)
    assert bench["al"] == 127
    assert disk.log == [("read", 0, 127)]
    assert bench.memory.read(0x20000, 127 * 512) == disk.data[: 127 * 512]


def test_write_and_verify() -> None:
    bench, _, disk = machine()
    bench.memory.write(0x30000, b"AB" * 512)
    bench.service(Service.DISK, ax=0x0302, es=0x3000, bx=0, cx=0x0005, dx=0x0080)
    assert (bench["ah"], bench["al"], bench.carry) == (0, 2, False)
    assert disk.data[4 * 512 : 6 * 512] == b"AB" * 512
    bench.service(Service.DISK, ax=0x0402, cx=0x0005, dx=0x0080)
    assert (bench["ah"], bench.carry) == (0, False)
    assert [entry[0] for entry in disk.log] == ["write", "read"]


def test_format_track_fills_a_diskette_track() -> None:
    bench, floppy, _ = machine()
    bench.service(Service.DISK, ax=0x0512, cx=0x0201, dx=0x0100, es=0x2000, bx=0)
    assert not bench.carry
    assert floppy.data[(2 * 36 + 18) * 512 : (2 * 36 + 36) * 512] == b"\xf6" * 18 * 512


@pytest.mark.parametrize(
    ("registers", "status"),
    [
        ({"ax": 0x0201, "cx": 0x0000, "dx": 0x0080}, 0x04),  # sector 0
        ({"ax": 0x0201, "cx": 0x0001, "dx": 0x1080}, 0x04),  # head 16
        ({"ax": 0x0201, "cx": 0x1E01, "dx": 0x0080}, 0x04),  # beyond the last cylinder
        ({"ax": 0x0200, "cx": 0x0001, "dx": 0x0080}, 0x01),
        ({"ax": 0x02FF, "cx": 0x0001, "dx": 0x0080}, 0x01),
        ({"ax": 0x0201, "cx": 0x0008, "dx": 0x0080}, 0x10),  # bad sector 7
        ({"ax": 0x0201, "cx": 0x0001, "dx": 0x0081}, 0x01),  # no such disk
        ({"ax": 0x0201, "cx": 0x0001, "dx": 0x0001}, 0x80),  # no such diskette drive
        ({"ax": 0x7700, "dx": 0x0080}, 0x01),
    ],
)
def test_errors(registers: dict[str, int], status: int) -> None:
    bench, _, disk = machine()
    disk.bad.add(7)
    bench.service(Service.DISK, es=0x2000, bx=0, **registers)
    assert (bench["ah"], bench.carry) == (status, True)
    where = bda.DISK_STATUS if registers["dx"] & 0x80 else bda.DISKETTE_STATUS
    assert bench.memory.read(where, 1)[0] == status
    if registers["dx"] == 0x80:
        bench.service(Service.DISK, ax=0x0100, dx=0x0080)
        assert (bench["ah"], bench.carry) == (status, True)
        bench.service(Service.DISK, ax=0x0000, dx=0x0080)
        assert (bench["ah"], bench.carry) == (0, False)


def test_write_protected_and_empty() -> None:
    disk, empty = bootable(FLOPPY), MemoryDisk(0)
    disk.read_only = True
    bench = BiosBench([BiosDrive(0, disk), BiosDrive(1, empty)])
    bench.service(Service.DISK, ax=0x0301, cx=1, dx=0, es=0x2000, bx=0)
    assert (bench["ah"], bench["al"], bench.carry) == (0x03, 0, True)
    bench.service(Service.DISK, ax=0x0201, cx=1, dx=1)
    assert (bench["ah"], bench.carry) == (0x80, True)


def test_transfer_through_paging_with_a_hole() -> None:
    bench, _, disk = machine()
    bench.cpu.holes.add(0x21)
    bench.service(Service.DISK, ax=0x0220, es=0x2000, bx=0, cx=1, dx=0x80)
    assert bench.memory.read(0x20000, 4096) == disk.data[:4096]
    assert bench.memory.read(0x21000, 4096) == bytes(4096)
    assert bench.memory.read(0x22000, 4096) == disk.data[8192:12288]


def test_drive_parameters() -> None:
    bench, _, _ = machine()
    bench.service(Service.DISK, flags=1, ax=0x0800, dx=0x0080)
    assert (bench["ch"], bench["cl"], bench["dh"], bench["dl"], bench.carry) == (19, 63, 15, 1, False)
    bench.service(Service.DISK, flags=1, ax=0x0800, dx=0x0000)
    assert (bench["ch"], bench["cl"], bench["dh"], bench["dl"], bench["bl"]) == (79, 18, 1, 1, 4)
    table = bench.memory.read((bench["es"] << 4) + bench["di"], 11)
    assert table[4] == 18
    bench.service(Service.DISK, ax=0x0800, dx=0x0083)
    assert (bench["ah"], bench.carry) == (7, True)


@pytest.mark.parametrize(("drive", "ah", "size"), [(0x00, 2, None), (0x80, 3, 20 * 1008), (0x01, 0, None), (0x81, 0, None)])
def test_drive_kind(drive: int, ah: int, size: int | None) -> None:
    bench, _, _ = machine()
    bench.service(Service.DISK, flags=1, ax=0x1500, dx=drive)
    assert (bench["ah"], bench.carry) == (ah, False)
    if size is not None:
        assert bench["cx"] << 16 | bench["dx"] == size


def test_tables_of_fixed_disks() -> None:
    bench, _, _ = machine()
    offset, segment = bench.memory.unpack("<HH", 4 * 0x41)
    table = bench.memory.read((segment << 4) + offset, 16)
    assert struct.unpack_from("<HB", table) == (20, 16)
    assert table[14] == 63
    assert bench.memory.read(bda.DISK_COUNT, 1) == b"\x01"


# -- EDD


def test_extensions_present() -> None:
    bench, _, _ = machine()
    bench.service(Service.DISK, flags=1, ax=0x4100, bx=0x55AA, dx=0x80)
    assert (bench["ah"], bench["bx"], bench["cx"] & 5, bench.carry) == (0x30, 0xAA55, 5, False)
    bench.service(Service.DISK, ax=0x4100, bx=0x55AA, dx=0x00)
    assert (bench["ah"], bench.carry) == (1, True)


def packet(bench: BiosBench, count: int, lba: int, size: int = 16, address: tuple[int, int] = (0, 0x3000)) -> None:
    bench.memory.pack("<BBHHHQ", 0x5000, size, 0, count, *address, lba)


def test_extended_read_write_verify() -> None:
    bench, _, disk = machine()
    packet(bench, 127, 20000)
    bench.service(Service.DISK, flags=1, ax=0x4200, dx=0x80, ds=0x500, si=0)
    assert (bench["ah"], bench.carry) == (0, False)
    assert bench.memory.read(0x30000, 127 * 512) == disk.data[20000 * 512 : 20127 * 512]
    assert disk.log == [("read", 20000, 127)]
    packet(bench, 2, 5)
    bench.memory.write(0x30000, b"Z" * 1024)
    bench.service(Service.DISK, ax=0x4300, dx=0x80, ds=0x500, si=0)
    assert disk.data[5 * 512 : 7 * 512] == b"Z" * 1024
    bench.service(Service.DISK, ax=0x4400, dx=0x80, ds=0x500, si=0)
    assert disk.log[1:] == [("write", 5, 2), ("read", 5, 2)]
    bench.service(Service.DISK, ax=0x4700, dx=0x80, ds=0x500, si=0)
    assert not bench.carry


def test_extended_read_to_a_64_bit_address() -> None:
    bench, _, disk = machine()
    packet(bench, 1, 9, size=24, address=(0xFFFF, 0xFFFF))
    bench.memory.pack("<Q", 0x5010, 0x180000)
    bench.service(Service.DISK, ax=0x4200, dx=0x80, ds=0x500, si=0)
    assert bench.memory.read(0x180000, 512) == disk.data[9 * 512 : 10 * 512]


@pytest.mark.parametrize(("size", "lba", "status"), [(16, DISK, 4), (16, 1 << 63, 4), (8, 0, 1), (16, 7, 0x10)])
def test_extended_errors_clear_the_count(size: int, lba: int, status: int) -> None:
    bench, _, disk = machine()
    disk.bad.add(7)
    packet(bench, 1, lba, size)
    bench.service(Service.DISK, ax=0x4200, dx=0x80, ds=0x500, si=0)
    assert (bench["ah"], bench.carry) == (status, True)
    assert status == 1 or bench.memory.unpack("<H", 0x5002)[0] == 0


@pytest.mark.parametrize(("room", "size"), [(26, 26), (30, 30), (66, 30)])
def test_extended_parameters(room: int, size: int) -> None:
    bench, _, _ = machine()
    bench.memory.write(0x5000, struct.pack("<H", room) + b"\xcc" * 70)
    bench.service(Service.DISK, ax=0x4800, dx=0x80, ds=0x500, si=0)
    assert bench.memory.unpack("<HHIIIQH", 0x5000) == (size, 2, 20, 16, 63, DISK, 512)
    assert bench.memory.read(0x5000 + size, 1) == b"\xcc"
    bench.memory.pack("<H", 0x5000, 20)
    bench.service(Service.DISK, ax=0x4800, dx=0x80, ds=0x500, si=0)
    assert bench.carry


@settings(derandomize=True, max_examples=80, deadline=None)
@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.sampled_from([0, 1, 0x80, 0x81, 0xE0, 0xFF]))
def test_any_call_is_answered(ax: int, cx: int, dx: int, drive: int) -> None:
    bench = BiosBench([BiosDrive(0, MemoryDisk(FLOPPY)), BiosDrive(0x80, MemoryDisk(64)), BiosDrive(0xE0, MemoryDisk(400))])
    bench.service(Service.DISK, ax=ax, cx=cx, dx=dx & 0xFF00 | drive, es=0xFFFF, bx=0xFFFF, ds=0xFFFF, si=0xFFF0)
    if bench["ah"] in (1, 4, 0x80):
        assert bench.carry or ax >> 8 in (0x15, 0x41)


# -- geometries


@pytest.mark.parametrize(
    ("kib", "geometry", "kind"),
    [
        (160, (40, 1, 8), 1),
        (180, (40, 1, 9), 1),
        (320, (40, 2, 8), 1),
        (360, (40, 2, 9), 1),
        (720, (80, 2, 9), 3),
        (1200, (80, 2, 15), 2),
        (1440, (80, 2, 18), 4),
        (2880, (80, 2, 36), 6),
        (100, (40, 1, 8), 1),
        (1000, (80, 2, 15), 2),
    ],
)
def test_floppy_geometry(kib: int, geometry: tuple[int, int, int], kind: int) -> None:
    assert floppy_geometry(kib * 2) == (Geometry(*geometry), kind)


@pytest.mark.parametrize(
    ("sectors", "heads", "cylinders"),
    [(DISK, 16, 20), (1024 * 1008, 16, 1024), (1024 * 1008 + 1, 32, 512), (1 << 30, 255, 1024), (100, 16, 1)],
)
def test_disk_geometry(sectors: int, heads: int, cylinders: int) -> None:
    assert disk_geometry(sectors) == Geometry(cylinders, heads, 63)


def test_geometry_from_the_partition_table() -> None:
    mbr = bytearray(512)
    mbr[510:] = b"\x55\xaa"
    # one partition to cylinder 9, head 3, sector 17: 10 * 4 * 17 sectors
    mbr[446:462] = struct.pack("<BBBBBBBBII", 0x80, 1, 1, 0, 6, 3, 17, 9, 17, 680 - 17)
    assert partition_geometry(bytes(mbr), 700) == Geometry(10, 4, 17)
    mbr[458:462] = struct.pack("<I", 600)  # the two forms disagree
    assert partition_geometry(bytes(mbr), 700) is None
    assert partition_geometry(bytes(512), 700) is None


def test_post_learns_the_geometry_unless_configured() -> None:
    disk = MemoryDisk(700)
    disk.data[446:462] = struct.pack("<BBBBBBBBII", 0x80, 1, 1, 0, 6, 3, 17, 9, 17, 680 - 17)
    disk.data[510:512] = b"\x55\xaa"
    bench = BiosBench([BiosDrive(0x80, disk), BiosDrive(0x81, disk, Geometry(100, 7, 1))])
    bench.service(Service.DISK, ax=0x0800, dx=0x80)
    assert (bench["cl"], bench["dh"], bench["dl"]) == (17, 3, 2)
    bench.service(Service.DISK, ax=0x0800, dx=0x81)
    assert (bench["cl"], bench["dh"]) == (1, 6)


# -- boot


def test_boot_from_the_first_device() -> None:
    bench, _, disk = machine()
    bench.service(Service.BOOT)
    assert bench["dl"] == 0
    assert bench.frame == (0, 0x7C00)
    bench.service(Service.BOOT_NEXT)
    assert bench["dl"] == 0x80
    assert bench.memory.read(0x7C00, 512) == disk.data[:512]
    assert not bench.bios.boot_failed


def test_nothing_to_boot() -> None:
    disk = numbered(DISK)
    disk.bad.add(0)
    disks = {0x00: numbered(FLOPPY), 0x01: MemoryDisk(0), 0x80: disk, 0xE0: MemoryDisk(400)}
    bench = BiosBench([BiosDrive(number, medium) for number, medium in disks.items()])
    bench.service(Service.BOOT)
    assert bench.bios.boot_failed
    assert bench.frame == (0xF000, HALT_STUB)
    assert "No bootable device" in bench.screen.text
    assert bench.failures == [
        "drive 00h: no boot signature; drive 01h: no medium; drive 80h: the medium failed; drive E0h: no El Torito boot record"
    ]
    assert [event for event in bench.board.events if event[0] == "bios.no-boot"]
    assert BiosBench([]).bios.boot_failed is False


def eltorito(media: int, image: bytes, segment: int = 0, count: int = 4) -> MemoryDisk:
    disk = MemoryDisk(4 * 40 + 2880)
    disk.data[17 * 2048 : 17 * 2048 + 30] = b"\x00CD001\x01EL TORITO SPECIFICATION"
    struct.pack_into("<I", disk.data, 17 * 2048 + 0x47, 19)
    validation = bytearray(32)
    validation[0], validation[0x1E:] = 1, b"\x55\xaa"
    struct.pack_into("<H", validation, 0x1C, -sum(struct.unpack("<16H", validation)) & 0xFFFF)
    entry = struct.pack("<BBHBxHI", 0x88, media, segment, 0, count, 30)
    disk.data[19 * 2048 : 19 * 2048 + 32 + len(entry)] = validation + entry
    disk.data[30 * 2048 : 30 * 2048 + len(image)] = image
    return disk


def test_cd_boot_without_emulation() -> None:
    bench = BiosBench([BiosDrive(0xE0, eltorito(0, bytes(range(256)) * 8))])
    bench.service(Service.BOOT)
    assert (bench["dl"], bench.frame) == (0xE0, (0, 0x7C00))
    assert bench.memory.read(0x7C00, 2048) == bytes(range(256)) * 8
    packet(bench, 1, 30)
    bench.service(Service.DISK, ax=0x4200, dx=0xE0, ds=0x500, si=0)
    assert bench.memory.read(0x30000, 2048) == bytes(range(256)) * 8
    bench.service(Service.DISK, ax=0x4B01, dx=0xE0, ds=0x600, si=0)
    assert (bench.carry, bench.memory.unpack("<BBBBI", 0x6000)) == (False, (0x13, 0, 0xE0, 0, 30))
    bench.memory.pack("<H", 0x5000, 26)
    bench.service(Service.DISK, ax=0x4800, dx=0xE0, ds=0x500, si=0)
    assert bench.memory.unpack("<QH", 0x5010) == (760, 2048)


def test_cd_boot_with_a_diskette_image() -> None:
    disk = eltorito(2, b"boot" * 128, count=1)
    bench = BiosBench([BiosDrive(0xE0, disk)])
    bench.service(Service.BOOT)
    assert (bench["dl"], bench.memory.read(0x7C00, 4)) == (0, b"boot")
    bench.service(Service.EQUIPMENT)
    assert bench["ax"] & 0xC1 == 0x01
    bench.service(Service.DISK, ax=0x0201, cx=1, dx=0, es=0x2000, bx=0)
    assert (bench.carry, bench.memory.read(0x20000, 4)) == (False, b"boot")
    bench.service(Service.DISK, ax=0x0301, cx=1, dx=0, es=0x2000, bx=0)
    assert (bench["ah"], bench.carry) == (3, True)

    other = BiosBench([BiosDrive(0xE0, disk)])
    other.bios.restore(bench.bios.save())
    assert other.bios.save() == bench.bios.save()
    other.service(Service.DISK, ax=0x0201, cx=1, dx=0, es=0x2000, bx=0)
    assert (other.carry, other.memory.read(0x20000, 4)) == (False, b"boot")


def test_damaged_catalog() -> None:
    disk = eltorito(0, b"")
    disk.data[19 * 2048 + 4] ^= 1
    bench = BiosBench([BiosDrive(0xE0, disk)])
    bench.service(Service.BOOT)
    assert bench.failures == ["drive E0h: the boot catalog is damaged"]


def test_state_of_other_drives_is_refused() -> None:
    state = BiosBench([BiosDrive(0, bootable(FLOPPY))]).bios.save()
    with pytest.raises(ValueError, match="other drives"):
        BiosBench([]).bios.restore(state)
    with pytest.raises(ValueError, match="not the state"):
        BiosBench([]).bios.restore(None)
