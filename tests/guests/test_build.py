"""The built-in guest builds from its sources into a bootable image with a sound file area (guests/build.py, guests/filearea.py)."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import guests
from guests import build, filearea
from guests.filearea import DATA_LBA, SECTOR, FileAreaError, format_area, read_area
from tests import third_party


@pytest.fixture(scope="module")
def tools() -> Iterator[None]:
    """nasm is the system's or the one from the packages, gcc the system's. Skips, or fails under CI, without them."""
    third_party.tool("nasm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", third_party.tool_environment()["PATH"])
        if missing := build.missing_tools():
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"not installed: {', '.join(missing)}")
        yield


@pytest.fixture(scope="module")
def built(tools: None, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build.build(tmp_path_factory.mktemp("guest") / "guest.img").read_bytes()


def check_boot_sector(disk: bytes) -> int:
    """The MBR's own facts; returns how many sectors of kernel it loads."""
    assert disk[510:512] == b"\x55\xaa"
    status, kind, first, sectors = disk[446], disk[450], *struct.unpack_from("<II", disk, 454)
    assert (status, kind, first, sectors) == (0x80, 0xDA, 1, len(disk) // SECTOR - 1)
    assert not any(disk[462:510]), "one partition only"
    boot = disk[:440]
    assert b"Loading\0" in boot
    assert b"\xb4\x41" in boot, "mov ah, 41h: asks for the int 13h extensions"
    assert b"\xb8\x01\x02" in boot, "mov ax, 0201h: the way without them"
    kernel = disk[SECTOR : build.DUMP_LBA * SECTOR].rstrip(b"\0")
    return -(-len(kernel) // SECTOR)


def test_layout(built: bytes) -> None:
    assert len(built) == build.IMAGE_SIZE
    sectors = check_boot_sector(built)
    assert struct.pack("<H", sectors) in built[:440], "the boot sector loads all of the kernel"
    setup = built[SECTOR : 5 * SECTOR]
    assert b"PAMS" in setup, "setup asks for the E820 map ('SMAP', as the dword 534D4150h)"
    kernel = built[5 * SECTOR : (1 + sectors) * SECTOR]
    for text in (b"avmm guest 1.0\n", b"ok> \0", b"what? (try help)\n", b"System halted.\n"):
        assert text in kernel
    assert not any(built[(1 + sectors) * SECTOR : filearea.SUPERBLOCK_LBA * SECTOR]), "nothing between kernel and file area"


def test_shell_program_header(built: bytes) -> None:
    """The ring-3 program starts with its header (nub/abi.h): page-aligned parts in order, the entry inside the read-only one."""
    at = built.index(struct.pack("<I", 0x5052474E) + b"", 5 * SECTOR)
    while struct.unpack_from("<I", built, at + 4)[0] >> 16 != 0x4000:  # the kernel compares with the same constant
        at = built.index(struct.pack("<I", 0x5052474E), at + 1)
    entry, text_end, data_end, bss_end = struct.unpack_from("<IIII", built, at + 4)
    assert 0x40000000 < entry < text_end <= data_end <= bss_end < 0x40080000 - 0x8000
    assert text_end % 4096 == bss_end % 4096 == 0


def test_files(built: bytes) -> None:
    found = read_area(built)
    assert all(file.intact for file in found)
    assert [(file.name, file.data) for file in found] == build.files()
    assert {"motd.txt", "readme.txt", "pattern.txt", "bytes.bin"} <= {file.name for file in found}
    assert found[0].first_lba == DATA_LBA


def test_two_builds_are_the_same(built: bytes, tmp_path: Path) -> None:
    assert build.build(tmp_path / "again.img").read_bytes() == built


def test_committed_image() -> None:
    """Other compilers give other bytes, but the image in the repository has the same structure and the same files."""
    disk = guests.image().read_bytes()
    assert len(disk) == build.IMAGE_SIZE
    assert check_boot_sector(disk) > 4
    found = read_area(disk)
    assert all(file.intact for file in found)
    assert [(file.name, file.data) for file in found] == build.files()


def test_image_is_compressible() -> None:
    assert len(zlib.compress(guests.image().read_bytes())) < 64 * 1024


def test_pattern_lines_tell_their_offset() -> None:
    text = build.pattern_text(4096)
    assert len(text) == 4096
    assert all(int(text[at : at + 8], 16) == at and text[at + 63 : at + 64] == b"\n" for at in range(0, 4096, 64))


NAMES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="/"), min_size=1, max_size=39)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=2000), max_size=20))
def test_area_round_trip(files: dict[str, bytes]) -> None:
    disk = bytearray(400 * SECTOR)
    format_area(disk, files.items(), modified=7)
    found = read_area(disk)
    assert {file.name: file.data for file in found} == files
    assert all(file.intact and file.modified == 7 for file in found)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 40, "ü", "tab\t"])
def test_bad_names(name: str) -> None:
    with pytest.raises(FileAreaError, match="name"):
        format_area(bytearray(300 * SECTOR), [(name, b"")])


def test_area_that_does_not_fit() -> None:
    with pytest.raises(FileAreaError, match="no room for big"):
        format_area(bytearray(300 * SECTOR), [("big", bytes(29 * SECTOR))])
    with pytest.raises(FileAreaError, match="no room for f64"):
        format_area(bytearray(400 * SECTOR), [(f"f{i}", b"x") for i in range(65)])
    with pytest.raises(FileAreaError, match="too small"):
        format_area(bytearray(DATA_LBA * SECTOR), [])


def area() -> bytearray:
    disk = bytearray(300 * SECTOR)
    format_area(disk, [("one", b"1" * 600), ("two", b"2")])
    return disk


def test_damage_is_seen() -> None:
    disk = area()
    disk[DATA_LBA * SECTOR] ^= 1
    assert [file.intact for file in read_area(disk)] == [False, True]

    disk = area()
    disk[filearea.SUPERBLOCK_LBA * SECTOR + 12] ^= 1
    with pytest.raises(FileAreaError, match="no file area"):
        read_area(disk)

    disk = area()
    second = filearea.DIRECTORY_LBA * SECTOR + filearea.ENTRY.size
    struct.pack_into("<I", disk, second + 40, DATA_LBA + 1)  # where the second half of "one" is
    with pytest.raises(FileAreaError, match="two lies"):
        read_area(disk)

    with pytest.raises(FileAreaError, match="longer than the disk"):
        read_area(area()[: 290 * SECTOR])
    with pytest.raises(FileAreaError, match="no file area"):
        read_area(bytes(300 * SECTOR))


def test_superblock_on_the_disk() -> None:
    """Byte for byte what nub/kernel/files.c reads."""
    head = b"NUBFILES" + struct.pack("<IIIII", 1, 257, 64, 272, 300 - 272)
    at = 256 * SECTOR
    assert area()[at : at + 32] == head + struct.pack("<I", zlib.crc32(head))
    entry = area()[257 * SECTOR : 257 * SECTOR + 64]
    assert entry == b"one".ljust(40, b"\0") + struct.pack("<IIII", 272, 600, zlib.crc32(b"1" * 600), 0) + bytes(8)
