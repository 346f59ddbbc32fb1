"""Kernels that follow the Multiboot specification 0.6.96: header, modules and the information structure.

The invariant: nothing is written before every range is known to lie in RAM and apart from the others.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from avmm.boot import elf
from avmm.boot.errors import BootError
from avmm.boot.layout import CODE32, EBDA, ONE_MIB, check_ram, flat_start, gdt, memory_map, overlap, place
from avmm.cpu.engine import CpuState
from avmm.memory import GuestMemory

HEADER_MAGIC = 0x1BADB002
LOADER_MAGIC = 0x2BADB002
LOADER_NAME = b"avmm\0"
SEARCH = 8192

PAGE_ALIGN = 1 << 0
MEMORY_INFO = 1 << 1
VIDEO_MODE = 1 << 2
ADDRESS_FIELDS = 1 << 16
_UNDERSTOOD = PAGE_ALIGN | MEMORY_INFO | VIDEO_MODE
_REQUIREMENTS = 0xFFFF

# Bits of the information structure's flags
_INFO_MEMORY, _INFO_COMMAND_LINE, _INFO_MODULES, _INFO_MAP, _INFO_LOADER, _INFO_FRAMEBUFFER = 1, 1 << 2, 1 << 3, 1 << 6, 1 << 9, 1 << 12
_EGA_TEXT = 2
_LOWEST_INFO = 0x1000  # interrupt vectors and BIOS data are below


@dataclass(frozen=True, slots=True)
class Header:
    """The Multiboot header and where it was found; ``addresses`` are the five address fields, if they are valid."""

    offset: int
    flags: int
    addresses: tuple[int, int, int, int, int] | None


@dataclass(frozen=True, slots=True)
class _Piece:
    address: int
    data: bytes
    zeros: int

    @property
    def range(self) -> tuple[int, int]:
        return self.address, self.address + len(self.data) + self.zeros


def find_header(image: bytes) -> Header:
    """Return the header in the first 8192 bytes; BootError when there is none or it asks for what cannot be had."""
    for offset in range(0, min(len(image), SEARCH) - 11, 4):
        magic, flags, check = struct.unpack_from("<III", image, offset)
        if magic == HEADER_MAGIC and not (magic + flags + check) & 0xFFFFFFFF:
            break
    else:
        raise BootError("this is not a Multiboot kernel: there is no header in its first 8192 bytes")
    if unknown := flags & _REQUIREMENTS & ~_UNDERSTOOD:
        raise BootError(f"the Multiboot kernel requires features that are not offered (flags {unknown:#06x})")
    if not flags & ADDRESS_FIELDS:
        return Header(offset, flags, None)
    if len(image) < offset + 32 or offset + 32 > SEARCH:
        raise BootError("the Multiboot header is cut off")
    return Header(offset, flags, struct.unpack_from("<IIIII", image, offset + 12))


def load(memory: GuestMemory, ram_size: int, kernel: bytes, command_line: str = "", modules: Sequence[tuple[bytes, str]] = ()) -> CpuState:
    """Place a kernel and its modules, each (content, command line), and return the state to start the processor from.

    BootError when the image is not a Multiboot kernel, or something does not fit into RAM.
    """
    check_ram(memory, ram_size)
    header = find_header(kernel)
    pieces, entry = _pieces_by_addresses(kernel, header) if header.addresses else _pieces_of_elf(kernel)
    for piece in pieces:
        if piece.range[1] > ram_size:
            raise BootError(f"the kernel needs {-(-piece.range[1] >> 20)} MiB of RAM to start, but there are {ram_size >> 20} MiB")
        if overlap([(0, _LOWEST_INFO), (EBDA, ONE_MIB)], *piece.range):
            raise BootError(f"the kernel wants to be loaded at {piece.address:#x}, which is not free memory")

    kernel_ranges = [piece.range for piece in pieces]
    placed = _place_modules(modules, max(ONE_MIB, *(end for _, end in kernel_ranges)), ram_size)
    texts = [text for _, text in modules]
    info_at = _find_room(kernel_ranges, _information_size([command_line, *texts], len(modules), ram_size))
    information, tables = _information(info_at, ram_size, command_line, placed, texts, header.flags & VIDEO_MODE != 0)

    for piece in pieces:
        place(piece.address, piece.data, piece.zeros, memory)
    for (start, _), (content, _) in zip(placed, modules, strict=True):
        memory.write(start, content)
    memory.write(info_at, information)
    return _start(entry, info_at, tables)


def _pieces_by_addresses(image: bytes, header: Header) -> tuple[list[_Piece], int]:
    """The "a.out kludge": the header itself says what to load where."""
    assert header.addresses is not None
    header_at, load_at, load_end, bss_end, entry = header.addresses
    first = header.offset - (header_at - load_at)
    length = load_end - load_at if load_end else len(image) - first
    if load_at > header_at or first < 0 or length <= 0 or first + length > len(image):
        raise BootError("the addresses in the Multiboot header do not fit its image")
    end = load_at + length
    if bss_end and bss_end < end:
        raise BootError("the addresses in the Multiboot header are not in order")
    if not load_at <= entry < end:
        raise BootError(f"the Multiboot kernel's entry point {entry:#x} is not in what is loaded")
    return [_Piece(load_at, image[first : first + length], bss_end - end if bss_end else 0)], entry


def _pieces_of_elf(image: bytes) -> tuple[list[_Piece], int]:
    parsed = elf.parse(image)
    if parsed.long_mode:
        raise BootError("this Multiboot kernel is a 64-bit ELF image, but Multiboot starts 32-bit code")
    pieces = [_Piece(segment.physical, segment.data, segment.size - len(segment.data)) for segment in parsed.segments]
    return pieces, parsed.entry


def _place_modules(modules: Sequence[tuple[bytes, str]], above: int, ram_size: int) -> list[tuple[int, int]]:
    """Return (start, end) of each module: on pages after the kernel, whether it asked for pages or not."""
    placed = []
    for content, _ in modules:
        start = above + 0xFFF & ~0xFFF
        above = start + len(content)
        if above > ram_size:
            raise BootError(f"the Multiboot modules do not fit into {ram_size >> 20} MiB of RAM")
        placed.append((start, above))
    return placed


def _encode(text: str) -> bytes:
    return text.encode() + b"\0"


def _information_size(strings: Sequence[str], modules: int, ram_size: int) -> int:
    text = sum(len(_encode(string)) for string in strings) + len(LOADER_NAME)
    return 128 + 16 * modules + 24 * len(memory_map(ram_size)) + len(gdt(False)) + text


def _find_room(taken: Sequence[tuple[int, int]], size: int) -> int:
    """Return where below 640 KiB the information structure fits beside the kernel."""
    candidates = [_LOWEST_INFO, *(end + 0xF & ~0xF for _, end in taken)]
    for start in sorted(candidates):
        if start + size <= EBDA and not overlap(taken, start, start + size):
            return start
    raise BootError("there is no room below 640 KiB for the Multiboot information")


def _information(  # noqa: PLR0917 - one structure, its six ingredients
    at: int, ram_size: int, command_line: str, placed: Sequence[tuple[int, int]], texts: Sequence[str], video: bool
) -> tuple[bytes, int]:
    """Return the information structure with all it points to, and the address of the descriptor table behind it."""
    blob = bytearray(128)

    def append(content: bytes) -> int:
        blob.extend(content)
        return at + len(blob) - len(content)

    tables = append(gdt(False))
    entries = b"".join(struct.pack("<IQQI", 20, *entry) for entry in memory_map(ram_size))
    map_at = append(entries)
    modules_at = at + len(blob)
    blob.extend(bytes(16 * len(placed)))
    for index, ((start, end), text) in enumerate(zip(placed, texts, strict=True)):
        struct.pack_into("<IIII", blob, modules_at - at + 16 * index, start, end, append(_encode(text)), 0)
    line_at = append(_encode(command_line))
    name_at = append(LOADER_NAME)

    flags = _INFO_MEMORY | _INFO_COMMAND_LINE | _INFO_MODULES | _INFO_MAP | _INFO_LOADER | (_INFO_FRAMEBUFFER if video else 0)
    struct.pack_into("<III", blob, 0, flags, EBDA >> 10, (ram_size - ONE_MIB) >> 10)
    struct.pack_into("<III", blob, 16, line_at, len(placed), modules_at)
    struct.pack_into("<II", blob, 44, len(entries), map_at)
    struct.pack_into("<I", blob, 64, name_at)
    if video:
        struct.pack_into("<QIIIBB", blob, 88, 0xB8000, 160, 80, 25, 16, _EGA_TEXT)
    return bytes(blob), tables


def _start(entry: int, info_at: int, tables: int) -> CpuState:
    """The machine state of the specification's section 3.2: 32-bit protected mode, paging and interrupts off."""
    return flat_start(CODE32, tables, cr0=0x11, rip=entry, gprs={"rax": LOADER_MAGIC, "rbx": info_at})
