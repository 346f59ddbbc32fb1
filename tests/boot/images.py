"""Tiny kernel images for the loaders' tests, built field by field."""

from __future__ import annotations

import struct

MIB = 1 << 20


def bzimage(
    payload: bytes = b"",
    *,
    version: int = 0x020F,
    loadflags: int = 1,
    xloadflags: int = 1,
    relocatable: int = 1,
    preferred: int = MIB,
    init_size: int = 0x20000,
    code32_start: int = MIB,
    initrd_max: int = 0x7FFFFFFF,
    command_line_size: int = 2047,
    syssize: int = 0,
) -> bytes:
    """A bzImage with four setup sectors; ``payload`` is the protected-mode part."""
    image = bytearray(5 * 512)
    image[0x1F1] = 4
    struct.pack_into("<I", image, 0x1F4, syssize)
    struct.pack_into("<H", image, 0x1FE, 0xAA55)
    image[0x200:0x206] = b"\xeb\x6aHdrS"
    struct.pack_into("<H", image, 0x206, version)
    image[0x211] = loadflags
    struct.pack_into("<I", image, 0x214, code32_start)
    struct.pack_into("<II", image, 0x22C, initrd_max, 0x200000)
    image[0x234] = relocatable
    struct.pack_into("<H", image, 0x236, xloadflags)
    struct.pack_into("<I", image, 0x238, command_line_size)
    struct.pack_into("<QI", image, 0x258, preferred, init_size)
    return bytes(image) + (payload or bytes(range(256)) * 4)


def elf(segments: list[tuple[int, int, bytes, int]], entry: int, *, bits: int = 32, before: bytes = b"") -> bytes:
    """An executable; segments are (physical, virtual, content, size in memory), ``before`` goes right after the headers."""
    header_size, entry_size = (64, 56) if bits == 64 else (52, 32)
    at = header_size + entry_size * len(segments) + len(before)
    table, contents = b"", b""
    for physical, virtual, content, size in segments:
        offset = at + len(contents)
        if bits == 64:
            table += struct.pack("<IIQQQQQQ", 1, 7, offset, virtual, physical, len(content), size, 1)
        else:
            table += struct.pack("<IIIIIIII", 1, offset, virtual, physical, len(content), size, 7, 1)
        contents += content
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    layout = "<HHIQQQIHHHHHH" if bits == 64 else "<HHIIIIIHHHHHH"
    machine = 62 if bits == 64 else 3
    header = ident + struct.pack(layout, 2, machine, 1, entry, header_size, 0, 0, header_size, entry_size, len(segments), 0, 0, 0)
    return header + table + before + contents


def multiboot_header(flags: int, *addresses: int) -> bytes:
    """A Multiboot header with a right checksum."""
    return struct.pack(f"<{3 + len(addresses)}I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF, *addresses)
