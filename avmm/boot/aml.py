"""A small builder for ACPI Machine Language: just the terms that a table of devices is made of.

After the ACPI specification, "ACPI Machine Language (AML) Specification" (encodings) and "Resource Data Types for ACPI"
(descriptors). Every function returns the bytes of one complete term, so terms nest by nesting calls.
"""

from __future__ import annotations

import struct

_ROOT = b"\\"
_SEGMENT = 4


def name_string(path: str) -> bytes:
    """Return the encoding of a path such as ``\\_SB.PCI0``; segments are padded with underscores."""
    prefix = _ROOT if path.startswith("\\") else b""
    segments = [segment.encode("ascii").ljust(_SEGMENT, b"_") for segment in path.removeprefix("\\").split(".")]
    if any(len(segment) != _SEGMENT for segment in segments):
        raise ValueError(f"{path!r} has a segment of more than four characters")
    if len(segments) == 1:
        return prefix + segments[0]
    if len(segments) == 2:
        return prefix + b"\x2e" + b"".join(segments)
    return prefix + bytes([0x2F, len(segments)]) + b"".join(segments)


def package_length(content: bytes) -> bytes:
    """Return ``content`` with the PkgLength before it, which counts itself."""
    length = len(content) + 1
    if length < 1 << 6:
        return bytes([length]) + content
    for extra in (1, 2, 3):
        length = len(content) + 1 + extra
        if length < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | length & 0xF]) + (length >> 4).to_bytes(extra, "little") + content
    raise ValueError(f"{len(content)} bytes are too many for one AML package")


def integer(value: int) -> bytes:
    """Return the shortest encoding of an integer."""
    if value in (0, 1):
        return bytes([value])
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * size:
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} is not a 64-bit integer")


def string(text: str) -> bytes:
    """Return a string object."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """Return a compressed EISA id such as ``PNP0A03`` as an integer object."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | ord(letter) - 0x40
    return b"\x0c" + struct.pack(">HH", letters, int(text[3:], 16))


def buffer(content: bytes) -> bytes:
    """Return a buffer object."""
    return b"\x11" + package_length(integer(len(content)) + content)


def package(*elements: bytes) -> bytes:
    """Return a package object."""
    return b"\x12" + package_length(bytes([len(elements)]) + b"".join(elements))


def name(path: str, value: bytes) -> bytes:
    """Return ``Name (path, value)``."""
    return b"\x08" + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """Return ``Scope (path) { terms }``."""
    return b"\x10" + package_length(name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """Return ``Device (path) { terms }``."""
    return b"\x5b\x82" + package_length(name_string(path) + b"".join(terms))


def resources(*descriptors: bytes) -> bytes:
    """Return a buffer of resource descriptors, ended by an end tag (checksum 0: not checked)."""
    return buffer(b"".join(descriptors) + b"\x79\0")


def io(first: int, length: int, alignment: int = 1) -> bytes:
    """Return a fixed, 16-bit decoded I/O port descriptor."""
    return struct.pack("<BBHHBB", 0x47, 1, first, first, alignment, length)


def irq(number: int) -> bytes:
    """Return an ISA interrupt (edge, active high) descriptor."""
    return struct.pack("<BH", 0x22, 1 << number)


def _address_space(layout: str, kind: int, specific: int, first: int, last: int) -> bytes:
    tag = {"H": 0x88, "I": 0x87}[layout]
    body = struct.pack("<BBB" + layout * 5, kind, 0x0C, specific, 0, first, last, 0, last - first + 1)  # minimum and maximum fixed
    return struct.pack("<BH", tag, len(body)) + body


def bus_range(first: int, last: int) -> bytes:
    """Return the PCI bus numbers a root bridge owns."""
    return _address_space("H", 2, 0, first, last)


def io_range(first: int, last: int) -> bytes:
    """Return the I/O ports a bridge passes on."""
    return _address_space("H", 1, 3, first, last)


def memory_range(first: int, last: int, *, cacheable: bool = False) -> bytes:
    """Return read-write memory below 4 GiB that a device uses or a bridge passes on."""
    return _address_space("I", 0, 3 if cacheable else 1, first, last)
