"""Kernels that the Linux boot protocol can only start in real mode, such as iPXE's ipxe.lkrn: they call the BIOS first.

After the kernel's Documentation/arch/x86/boot.rst, "The real-mode kernel header" and "Running the kernel". The built-in BIOS
does its power-on self-test, and instead of a boot sector runs the few bytes that :meth:`RealModeKernel.place` returns.

The invariant: what does not fit is refused before the machine starts; placing never fails.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from avmm.boot.errors import BootError
from avmm.boot.layout import ONE_MIB
from avmm.boot.linux import check_length
from avmm.memory import GuestMemory

SETUP_SEGMENT = 0x1000
HEAP_END = 0xE000  # the heap and the stack end here, the command line follows
SETUP_LIMIT = 0x8000
COMMAND_LINE_ROOM = 0x1000

_CODE32_START, _LOADED_HIGH, _CAN_USE_HEAP = 0x214, 1 << 0, 1 << 7
_PAGE = 0xFFF


def is_real_mode_only(image: bytes) -> bool:
    """Whether this is a kernel with a setup header that names no 32-bit entry point."""
    return len(image) > 0x250 and image[0x202:0x206] == b"HdrS" and not any(image[_CODE32_START : _CODE32_START + 4])


@dataclass(frozen=True, slots=True)
class RealModeKernel:
    """A kernel that has been found to fit."""

    setup: bytes
    rest: bytes
    initrd: bytes
    initrd_at: int
    command_line: bytes

    def place(self, memory: GuestMemory) -> bytes:
        """Put everything in its place and return the code that enters the kernel, to be run anywhere in real mode."""
        base = SETUP_SEGMENT << 4
        setup = bytearray(self.setup)
        setup[0x210] = 0xFF  # a boot loader without a number
        setup[0x211] |= _CAN_USE_HEAP
        struct.pack_into("<II", setup, 0x218, self.initrd_at, len(self.initrd))
        struct.pack_into("<H", setup, 0x224, HEAP_END - 0x200)
        struct.pack_into("<I", setup, 0x228, base + HEAP_END)
        memory.write(base, setup)
        memory.write(base + HEAP_END, self.command_line)
        memory.write(ONE_MIB, self.rest)
        if self.initrd:
            memory.write(self.initrd_at, self.initrd)
        # cli; mov ax, SETUP_SEGMENT; mov ds, es, fs, gs, ss; mov sp, HEAP_END; jmp SETUP_SEGMENT + 20h:0
        segments = bytes.fromhex("8ED8 8EC0 8EE0 8EE8 8ED0")
        return struct.pack("<BBH10sBHBHH", 0xFA, 0xB8, SETUP_SEGMENT, segments, 0xBC, HEAP_END, 0xEA, 0, SETUP_SEGMENT + 0x20)


def prepare(ram_size: int, image: bytes, initrd: bytes | None = None, command_line: str = "") -> RealModeKernel:
    """Take a kernel apart for which :func:`is_real_mode_only` is true. BootError when it does not fit."""
    setup_size = 512 * ((image[0x1F1] or 4) + 1)
    line = command_line.encode() + b"\0"
    if setup_size > SETUP_LIMIT or len(image) <= setup_size or not image[0x211] & _LOADED_HIGH:
        raise BootError("the kernel image is cut off, or loads below 1 MiB, which is not supported")
    check_length(image, setup_size)
    if len(line) > COMMAND_LINE_ROOM:
        raise BootError(f"the command line has {len(line) - 1} bytes, but this kernel takes {COMMAND_LINE_ROOM - 1}")
    end = ONE_MIB + len(image) - setup_size
    initrd_at = (ram_size - len(initrd)) & ~_PAGE if initrd else 0
    if end > ram_size or (initrd and initrd_at < end):
        raise BootError(f"the kernel and its initial RAM disk do not fit into {ram_size >> 20} MiB of RAM")
    return RealModeKernel(image[:setup_size], image[setup_size:], initrd or b"", initrd_at, line)
