"""Linux, by the x86 boot protocol: bzImage or vmlinux, an initial RAM disk and a command line straight into memory.

After the kernel's Documentation/arch/x86/boot.rst (setup header, 32-bit and 64-bit boot protocol) and zero-page.rst
(boot_params). Anything else that speaks the protocol, such as memtest86+, starts in the same way.

The invariant: nothing is written before every range is known to lie in RAM and apart from the others.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from avmm.boot import elf
from avmm.boot.errors import BootError
from avmm.boot.layout import CODE32, CODE64, ONE_MIB, TASK, check_ram, flat_start, gdt, memory_map, place
from avmm.cpu.engine import CpuState, Segment
from avmm.memory import GuestMemory

BOOT_PARAMS = 0x10000
GDT = 0x11000
STACK = 0x9000  # grows down; nothing of ours is below it
TASK_STATE = 0x9000
COMMAND_LINE = 0x20000
PAGE_TABLES = 0x30000  # PML4, PDPT and four page directories: 4 GiB in 2 MiB pages
COMMAND_LINE_ROOM = 0x10000

_HEADER = 0x1F1  # the setup header begins here, in the image as in boot_params
_HEADER_ROOM = 0x290  # and ends before the edd_mbr_sig_buffer there
_PAGE = 0xFFF
_LOADED_HIGH = 1 << 0
_CAN_USE_HEAP = 1 << 7
_KERNEL_64 = 1 << 0
_INITRD_LIMIT = 0x37FFFFFF


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the loader needs to know of a kernel image, whatever its format."""

    header: bytes
    """The setup header, from offset 1F1h on."""
    pieces: tuple[tuple[int, bytes, int], ...]
    """(address, bytes, zeros after them)"""
    entry: int
    long_mode: bool
    end: int
    """The first address after what the kernel uses before it knows the memory map."""
    command_line_size: int
    initrd_limit: int
    """The highest address an initial RAM disk's last byte may have."""


def load(  # noqa: PLR0917 - in the order a boot loader's user thinks of them
    memory: GuestMemory, ram_size: int, kernel: bytes, initrd: bytes | None = None, command_line: str = "", rsdp: int | None = None
) -> CpuState:
    """Place a kernel and what it needs in memory and return the state to start the processor from.

    ``rsdp`` is the guest-physical address of the ACPI root pointer, which must lie in a range that :func:`memory_map`
    does not call usable (E0000h-FFFFFh). BootError when the image is not a kernel, or does not fit.
    """
    check_ram(memory, ram_size)
    found = _parse_vmlinux(kernel) if kernel[:4] == elf.MAGIC else _parse_bzimage(kernel)
    line = command_line.encode() + b"\0"
    if len(line) - 1 > min(found.command_line_size, COMMAND_LINE_ROOM - 1):
        raise BootError(f"the command line has {len(line) - 1} bytes, but this kernel takes {found.command_line_size}")
    if any(address < ONE_MIB for address, _, _ in found.pieces):
        raise BootError("the kernel wants to be loaded below 1 MiB, where the boot parameters are")
    if found.end > ram_size:
        raise BootError(f"the kernel needs {-(-found.end >> 20)} MiB of RAM to start, but there are {ram_size >> 20} MiB")
    initrd_at = _initrd_address(found, ram_size, len(initrd)) if initrd else 0

    for address, data, zeros in found.pieces:
        place(address, data, zeros, memory)
    if initrd:
        memory.write(initrd_at, initrd)
    memory.write(COMMAND_LINE, line)
    memory.write(BOOT_PARAMS, _boot_params(found, ram_size, initrd_at, len(initrd or b""), rsdp))
    memory.write(GDT, gdt(found.long_mode))
    if found.long_mode:
        memory.write(PAGE_TABLES, _identity_map())
    return _start(found)


def check_length(image: bytes, setup_size: int) -> None:
    """BootError when there is less behind the setup code than syssize says; what makes up its last paragraph may be left out."""
    version: int = struct.unpack_from("<H", image, 0x206)[0]
    paragraphs: int = struct.unpack_from("<I" if version >= 0x0204 else "<H", image, 0x1F4)[0]
    if len(image) - setup_size <= 16 * (paragraphs - 1):
        raise BootError(f"the kernel image is cut off: {len(image)} bytes, and its header says {setup_size + 16 * paragraphs}")


def _parse_bzimage(image: bytes) -> Kernel:
    if len(image) < 0x250 or image[0x1FE:0x200] != b"\x55\xaa" or image[0x202:0x206] != b"HdrS":
        raise BootError("this is not a Linux kernel: it has no setup header")
    version: int = struct.unpack_from("<H", image, 0x206)[0]
    if version < 0x0205 or not image[0x211] & _LOADED_HIGH:
        raise BootError(f"this kernel speaks boot protocol {version >> 8}.{version & 0xFF:02}, but 2.05 and a bzImage are needed")
    setup_size = 512 * ((image[0x1F1] or 4) + 1)
    if len(image) <= max(setup_size, 0x268):
        raise BootError("the kernel image is cut off: its setup code says there is more")
    check_length(image, setup_size)
    load_at: int = struct.unpack_from("<I", image, 0x214)[0]
    memory_needed = len(image) - setup_size
    if version >= 0x020A:
        preferred, init_size = struct.unpack_from("<QI", image, 0x258)
        memory_needed = max(memory_needed, init_size)
        if image[0x234]:
            load_at = preferred
    xloadflags: int = struct.unpack_from("<H", image, 0x236)[0] if version >= 0x020C else 0
    long_mode = xloadflags & _KERNEL_64 != 0
    initrd_limit: int = struct.unpack_from("<I", image, 0x22C)[0]
    return Kernel(
        header=image[_HEADER : min(0x202 + image[0x201], _HEADER_ROOM)],
        pieces=((load_at, image[setup_size:], 0),),
        entry=load_at + (0x200 if long_mode else 0),
        long_mode=long_mode,
        end=load_at + memory_needed,
        command_line_size=struct.unpack_from("<I", image, 0x238)[0] if version >= 0x0206 else 255,
        initrd_limit=initrd_limit or _INITRD_LIMIT,
    )


def _parse_vmlinux(image: bytes) -> Kernel:
    """A kernel out of its wrapping; the setup header a bzImage would have brought is made up."""
    parsed = elf.parse(image)
    header = bytearray(0x268 - _HEADER)
    header[0x1FE - _HEADER : 0x206 - _HEADER] = b"\x55\xaa\xeb\x66HdrS"
    struct.pack_into("<H", header, 0x206 - _HEADER, 0x020C)
    header[0x211 - _HEADER] = _LOADED_HIGH
    struct.pack_into("<I", header, 0x22C - _HEADER, 0x7FFFFFFF)
    struct.pack_into("<I", header, 0x230 - _HEADER, 0x1000000)
    struct.pack_into("<I", header, 0x238 - _HEADER, 2047)
    return Kernel(
        header=bytes(header),
        pieces=tuple((segment.physical, segment.data, segment.size - len(segment.data)) for segment in parsed.segments),
        entry=parsed.entry,
        long_mode=parsed.long_mode,
        end=max(segment.end for segment in parsed.segments),
        command_line_size=2047,
        initrd_limit=0x7FFFFFFF,
    )


def _initrd_address(kernel: Kernel, ram_size: int, size: int) -> int:
    """As high as it may be, on a page, above the kernel."""
    address = (min(ram_size, kernel.initrd_limit + 1) - size) & ~_PAGE
    if address < kernel.end:
        raise BootError(f"the initial RAM disk of {size >> 10} KiB does not fit into RAM beside the kernel")
    return address


def _boot_params(kernel: Kernel, ram_size: int, initrd_at: int, initrd_size: int, rsdp: int | None) -> bytes:
    page = bytearray(4096)
    page[_HEADER : _HEADER + len(kernel.header)] = kernel.header
    extended = min((ram_size - ONE_MIB) >> 10, 0xFFFFFFFF)

    # screen_info: a cleared 80x25 colour text screen, as BIOS mode 3 leaves it
    struct.pack_into("<BBHHBB", page, 0, 0, 0, min(extended, 0xFC00), 0, 3, 80)
    struct.pack_into("<BBH", page, 0x0E, 25, 1, 16)
    struct.pack_into("<Q", page, 0x70, rsdp or 0)
    struct.pack_into("<I", page, 0x1E0, extended)

    page[0x210] = 0xFF  # a boot loader without a number
    page[0x211] |= _CAN_USE_HEAP
    struct.pack_into("<II", page, 0x218, initrd_at, initrd_size)
    struct.pack_into("<H", page, 0x224, 0xFE00)
    struct.pack_into("<I", page, 0x228, COMMAND_LINE)
    struct.pack_into("<I", page, 0x0C0, initrd_at >> 32)
    struct.pack_into("<I", page, 0x0C4, initrd_size >> 32)

    entries = memory_map(ram_size)
    page[0x1E8] = len(entries)
    for index, entry in enumerate(entries):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * index, *entry)
    return bytes(page)


def _identity_map() -> bytes:
    present_writable = 3
    tables = [struct.pack("<Q", PAGE_TABLES + 0x1000 | present_writable).ljust(4096, b"\0")]
    directories = [PAGE_TABLES + 0x2000 + 0x1000 * index | present_writable for index in range(4)]
    tables.append(struct.pack("<4Q", *directories).ljust(4096, b"\0"))
    tables.append(struct.pack("<2048Q", *(page << 21 | 0x80 | present_writable for page in range(2048))))
    return b"".join(tables)


def _start(kernel: Kernel) -> CpuState:
    """Interrupts off, flat segments, rsi at boot_params; with paging and long mode if the kernel starts there."""
    return flat_start(
        CODE64 if kernel.long_mode else CODE32,
        GDT,
        tr=Segment(TASK, TASK_STATE, 0x67, 0x8B),
        cr0=0x80000011 if kernel.long_mode else 0x11,
        cr3=PAGE_TABLES if kernel.long_mode else 0,
        cr4=0x20 if kernel.long_mode else 0,
        efer=0x500 if kernel.long_mode else 0,
        rip=kernel.entry,
        rsp=STACK,
        gprs={"rsi": BOOT_PARAMS},
    )
