"""ELF executables as loaders see them: the segments to load, by physical address, and the entry point.

After the System V gABI, "Object Files" and "Program Loading", for little-endian i386 and x86-64 images. The invariant: a
segment that :func:`parse` returns lies wholly inside the file, and its memory image is at least as long.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from avmm.boot.errors import BootError

MAGIC = b"\x7fELF"
_PT_LOAD = 1
_EM_386, _EM_X86_64 = 3, 62
_ET_EXEC, _ET_DYN = 2, 3
_ENTRIES_AT_MOST = 512


@dataclass(frozen=True, slots=True)
class ElfSegment:
    """One PT_LOAD segment: ``size`` bytes at ``physical``, the first of them from ``data``, the others zero."""

    physical: int
    virtual: int
    data: bytes
    size: int

    @property
    def end(self) -> int:
        """The physical address after the segment."""
        return self.physical + self.size


@dataclass(frozen=True, slots=True)
class Elf:
    """A parsed executable; ``entry`` is a physical address."""

    long_mode: bool
    entry: int
    segments: tuple[ElfSegment, ...]


def parse(image: bytes) -> Elf:
    """Return the segments and entry of an executable; BootError when it is none, or not one for x86."""
    if len(image) < 52 or image[:4] != MAGIC:
        raise BootError("this is not an ELF image")
    long_mode = image[4] == 2
    if image[4] not in (1, 2) or image[5] != 1 or (long_mode and len(image) < 64):
        raise BootError("this ELF image is neither 32-bit nor 64-bit little-endian")
    kind, machine = struct.unpack_from("<HH", image, 16)
    if machine != (_EM_X86_64 if long_mode else _EM_386) or kind not in (_ET_EXEC, _ET_DYN):
        raise BootError("this ELF image is not an x86 executable")
    if long_mode:
        entry, table = struct.unpack_from("<QQ", image, 24)
        entry_size, count = struct.unpack_from("<HH", image, 54)
    else:
        entry, table = struct.unpack_from("<II", image, 24)
        entry_size, count = struct.unpack_from("<HH", image, 42)
    if count > _ENTRIES_AT_MOST or entry_size < (56 if long_mode else 32) or table + entry_size * count > len(image):
        raise BootError("the ELF image's program headers do not lie inside it")
    found = (_segment(image, table + entry_size * index, long_mode) for index in range(count))
    segments = tuple(segment for segment in found if segment is not None)
    if not segments:
        raise BootError("the ELF image has nothing to load")
    return Elf(long_mode, _physical_entry(entry, segments), segments)


def _segment(image: bytes, at: int, long_mode: bool) -> ElfSegment | None:
    if long_mode:
        kind, _, offset, virtual, physical, in_file, in_memory = struct.unpack_from("<IIQQQQQ", image, at)
    else:
        kind, offset, virtual, physical, in_file, in_memory = struct.unpack_from("<IIIIII", image, at)
    if kind != _PT_LOAD or not in_memory:
        return None
    if offset + in_file > len(image) or in_file > in_memory:
        raise BootError("a segment of the ELF image does not lie inside it")
    return ElfSegment(physical, virtual, image[offset : offset + in_file], in_memory)


def _physical_entry(entry: int, segments: tuple[ElfSegment, ...]) -> int:
    """Some kernels give a physical entry, others a virtual one."""
    for segment in segments:
        if segment.physical <= entry < segment.end:
            return entry
    for segment in segments:
        if segment.virtual <= entry < segment.virtual + segment.size:
            return entry - segment.virtual + segment.physical
    raise BootError(f"the ELF image's entry point {entry:#x} is in none of its segments")
