"""A file that gives gdb a kernel's symbols: an ELF object without contents, made of what System.map or /proc/kallsyms lists.

Distributions ship kernels without debug information; a kernel still knows its own names. The format is nm's: address, type
letter, name (POSIX nm; proc(5) for kallsyms, whose modules' names stand in brackets behind).

The invariant: what cannot be read as such a list is refused with its line; nothing is guessed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

_EHDR, _SHDR, _SYM = "<16sHHIQQQIHHHHHH", "<IIQQQQIIQQ", "<IBBHQQ"
_EXEC, _X86_64 = 2, 62
_NOBITS, _SYMTAB, _STRTAB = 8, 2, 3
_ALLOC, _WRITE, _EXECUTE = 2, 1, 4
_FUNC, _OBJECT, _GLOBAL, _ABSOLUTE = 2, 1, 1, 0xFFF1


class SymbolsError(ValueError):
    """A list of symbols cannot be read; one sentence says where and why."""


def parse(lines: Iterable[str]) -> Iterator[tuple[int, str, str]]:
    """Yield address, type letter and name of each line."""
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            address, kind, name = int(words[0], 16), words[1], words[2]
        except (ValueError, IndexError):
            raise SymbolsError(f"line {number} is not an address, a letter and a name: {line.strip()[:60]!r}") from None
        if not 0 <= address < 1 << 64:
            raise SymbolsError(f"line {number} has an address that no processor has: {words[0][:60]}")
        yield address, kind, name


def elf(lines: Iterable[str]) -> bytes:
    """Return the ELF file for a list of symbols. SymbolsError when it cannot be read, or holds no addresses (see kptr_restrict)."""
    symbols = sorted(parse(lines))
    if not any(address for address, _, _ in symbols):
        raise SymbolsError("all addresses are 0: read /proc/kallsyms as root, with kernel.kptr_restrict at 0 or 1")
    code = [address for address, kind, _ in symbols if kind in "tTwW"]
    data = [address for address, kind, _ in symbols if kind not in "tTwWaA"]
    names, table = bytearray(b"\0"), bytearray(24)
    for address, kind, name in symbols:
        section = 1 if kind in "tTwW" else _ABSOLUTE if kind in "aA" else 2
        table += struct.pack(_SYM, len(names), _GLOBAL << 4 | (_FUNC if section == 1 else _OBJECT), 0, section, address, 0)
        names += name.encode() + b"\0"
    headings = b"\0.text\0.data\0.symtab\0.strtab\0.shstrtab\0"
    parts = (bytes(table), bytes(names), headings)
    offsets = [64]
    for part in parts:
        offsets.append(offsets[-1] + len(part))

    def header_of(name: bytes, *fields: int) -> bytes:
        """``fields``: type, flags, address, offset, size, link, info, alignment, bytes an entry."""
        return struct.pack(_SHDR, headings.index(name), *fields)

    sections = [
        bytes(64),
        header_of(b".text", _NOBITS, _ALLOC | _EXECUTE, *_extent(code), 0, 0, 16, 0),
        header_of(b".data", _NOBITS, _ALLOC | _WRITE, *_extent(data), 0, 0, 16, 0),
        header_of(b".symtab", _SYMTAB, 0, 0, offsets[0], len(table), 4, 1, 8, 24),
        header_of(b".strtab", _STRTAB, 0, 0, offsets[1], len(names), 0, 0, 1, 0),
        header_of(b".shstrtab", _STRTAB, 0, 0, offsets[2], len(headings), 0, 0, 1, 0),
    ]
    header = struct.pack(_EHDR, b"\x7fELF\2\1\1".ljust(16, b"\0"), _EXEC, _X86_64, 1, 0, 0, offsets[3], 0, 64, 0, 0, 64, len(sections), 5)
    return header + b"".join(parts) + b"".join(sections)


def _extent(addresses: list[int]) -> tuple[int, int, int]:
    """Return address, file offset and size of the section that holds these."""
    return (addresses[0], 64, addresses[-1] - addresses[0] + 4096) if addresses else (0, 64, 0)
