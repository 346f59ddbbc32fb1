"""The guest's file area: a superblock, one directory of fixed size, contiguous files (guests/README.md, "Disk layout").

The kernel's side of the same format is nub/kernel/files.c. Everything is little-endian; an LBA counts 512-byte sectors from the
start of the disk. Invariant: no two files share a sector, and every file lies inside the data area.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

SECTOR = 512
SUPERBLOCK_LBA = 256
DIRECTORY_LBA = 257
ENTRIES = 64
DATA_LBA = 272
MAGIC = b"NUBFILES"
VERSION = 1

SUPERBLOCK = struct.Struct("<8sIIIIII")
ENTRY = struct.Struct("<40sIIII8x")
NAME_SIZE = 40


class FileAreaError(ValueError):
    """The disk holds no file area, or a damaged one, or the files do not fit."""


@dataclass(frozen=True)
class File:
    """One file: its directory entry and its content."""

    name: str
    data: bytes
    first_lba: int = 0
    crc: int = 0
    modified: int = 0

    @property
    def intact(self) -> bool:
        """Whether the content is what the directory says was written."""
        return zlib.crc32(self.data) == self.crc


def good_name(name: str) -> bool:
    """Whether the kernel takes this for a file name: 1 to 39 printable ASCII characters, no space, no slash."""
    return 0 < len(name) < NAME_SIZE and all(" " < c < "\x7f" and c != "/" for c in name)


def _sectors(length: int) -> int:
    return -(-length // SECTOR)


def format_area(disk: bytearray, files: Iterable[tuple[str, bytes]], modified: int = 0) -> None:
    """Write an area with these files into the disk image, up to its end; `modified` is the time they all get, seconds since 1970."""
    total = len(disk) // SECTOR
    if total <= DATA_LBA:
        raise FileAreaError("the disk is too small for a file area")
    head = SUPERBLOCK.pack(MAGIC, VERSION, DIRECTORY_LBA, ENTRIES, DATA_LBA, total - DATA_LBA, 0)[:-4]
    directory = bytearray(ENTRIES * ENTRY.size)
    at = DATA_LBA
    seen: set[str] = set()
    for slot, (name, data) in enumerate(files):
        if not good_name(name) or name in seen:
            raise FileAreaError(f"not a good file name, or there twice: {name!r}")
        if slot >= ENTRIES or at + _sectors(len(data)) > total:
            raise FileAreaError(f"no room for {name}")
        seen.add(name)
        ENTRY.pack_into(directory, slot * ENTRY.size, name.encode("ascii"), at, len(data), zlib.crc32(data), modified)
        disk[at * SECTOR : at * SECTOR + len(data)] = data
        at += _sectors(len(data))
    disk[SUPERBLOCK_LBA * SECTOR : SUPERBLOCK_LBA * SECTOR + SUPERBLOCK.size] = head + struct.pack("<I", zlib.crc32(head))
    disk[DIRECTORY_LBA * SECTOR : DIRECTORY_LBA * SECTOR + len(directory)] = directory


def read_area(disk: bytes | bytearray | memoryview) -> list[File]:
    """Parse the area of a disk image: its files in the order of the directory's slots."""
    raw = bytes(disk[SUPERBLOCK_LBA * SECTOR : (SUPERBLOCK_LBA + 1) * SECTOR])
    if len(raw) < SECTOR:
        raise FileAreaError("the disk is too small for a file area")
    magic, version, directory_lba, entries, data_lba, data_sectors, crc = SUPERBLOCK.unpack_from(raw)
    if magic != MAGIC or crc != zlib.crc32(raw[: SUPERBLOCK.size - 4]):
        raise FileAreaError("there is no file area on this disk")
    if version != VERSION or entries != ENTRIES or (data_lba + data_sectors) * SECTOR > len(disk):
        raise FileAreaError("the file area is of another version or longer than the disk")
    files: list[File] = []
    taken: list[tuple[int, int]] = []
    for slot in range(entries):
        offset = directory_lba * SECTOR + slot * ENTRY.size
        name, first, length, file_crc, modified = ENTRY.unpack(bytes(disk[offset : offset + ENTRY.size]))
        text = name.split(b"\0", 1)[0].decode("ascii", "replace")
        if not text:
            continue
        end = first + _sectors(length)
        if not data_lba <= first <= end <= data_lba + data_sectors or any(first < b and a < end for a, b in taken):
            raise FileAreaError(f"{text} lies outside the data area or over another file")
        taken.append((first, end))
        files.append(File(text, bytes(disk[first * SECTOR : first * SECTOR + length]), first, file_crc, modified))
    return files
