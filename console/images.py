"""What an image is, told by its content: a CD-ROM, a floppy, a kernel or a hard disk.

ISO 9660 (volume descriptor at sector 16), the sizes of IBM-compatible diskettes, the Linux boot protocol ("HdrS"), ELF and
Multiboot 0.6.96 headers. The invariant: only regular files and block devices are read, and nothing is ever written.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Literal

Kind = Literal["cdrom", "floppy", "kernel", "disk"]

FLOPPY_SIZES = frozenset(kib * 1024 for kib in (160, 180, 320, 360, 720, 1200, 1440, 2880))
ISO_MAGIC, ISO_AT = b"CD001", 32769
LINUX_MAGIC, LINUX_AT = b"HdrS", 0x202
SIGNATURE, SIGNATURE_AT = b"\x55\xaa", 510
MULTIBOOT_MAGIC, MULTIBOOT_SEARCH = 0x1BADB002, 8192


def recognise(path: str | Path) -> Kind:
    """Return what the image at ``path`` is. What cannot be read counts as a hard disk: opening it as one says what is wrong."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not hold us up
    except (OSError, ValueError):
        return "disk"
    try:
        kind = os.fstat(fd).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
            return "disk"
        return kind_of(os.lseek(fd, 0, os.SEEK_END), os.pread(fd, MULTIBOOT_SEARCH, 0), os.pread(fd, len(ISO_MAGIC), ISO_AT))
    except OSError:
        return "disk"
    finally:
        os.close(fd)


def kind_of(size: int, head: bytes, volume: bytes) -> Kind:
    """Return what an image is from its size, its first 8 KiB, and the five bytes at 32769."""
    if volume == ISO_MAGIC:
        return "cdrom"
    if size in FLOPPY_SIZES:
        return "floppy"
    if head[LINUX_AT : LINUX_AT + 4] == LINUX_MAGIC:
        return "kernel"
    if head[SIGNATURE_AT : SIGNATURE_AT + 2] == SIGNATURE:
        return "disk"
    return "kernel" if head[:4] == b"\x7fELF" or _has_multiboot_header(head) else "disk"


def _has_multiboot_header(head: bytes) -> bool:
    for at in range(0, len(head) - 11, 4):
        magic, flags, check = struct.unpack_from("<III", head, at)
        if magic == MULTIBOOT_MAGIC and not (magic + flags + check) & 0xFFFFFFFF:
            return True
    return False
