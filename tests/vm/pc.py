"""Whole machines for tests: one running PC, and disks with boot sectors assembled from source."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import avmm
from tests.cpu.asm import assemble

SECTOR = 512
LOAD_ADDRESS = 0x7C00

_START = """
    cli
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    sti
    cld
    mov [drive], dl
"""
_LIBRARY = """
stop:                       ; nothing more to do
    sti
    hlt
    jmp stop
puts:                       ; the text at SI by int 10h
    pusha
.next:
    lodsb
    or al, al
    jz .end
    mov ah, 0x0e
    mov bx, 7
    int 0x10
    jmp .next
.end:
    popa
    ret
putx:                       ; AX in four hexadecimal digits and a space
    pusha
    mov cx, 4
.next:
    rol ax, 4
    push ax
    and al, 15
    cmp al, 10
    sbb al, 0x69
    das
    mov ah, 0x0e
    mov bx, 7
    int 0x10
    pop ax
    loop .next
    mov ax, 0x0e20
    int 0x10
    popa
    ret
newline:
    pusha
    mov ax, 0x0e0d
    int 0x10
    mov ax, 0x0e0a
    int 0x10
    popa
    ret
drive: db 0
"""


def boot_sector(source: str) -> bytes:
    """Return a boot sector: segments and stack at 0, the code in ``source``, then ``stop`` and a few routines that print."""
    return assemble(f"{_START}\n{source}\n{_LIBRARY}\ntimes 510-($-$$) db 0\ndw 0xaa55", 16, LOAD_ADDRESS)


def pattern(sectors: int) -> bytearray:
    """Return sectors of which no two are alike."""
    return bytearray(b"".join(b"%08d" % number * 64 for number in range(sectors)))


def write_disk(path: Path, source: str, sectors: int = 2016) -> Path:
    """Make an image that boots the code in ``source`` and holds :func:`pattern` from its second sector on."""
    image = pattern(sectors)
    image[:SECTOR] = boot_sector(source)
    path.write_bytes(image)
    return path


@asynccontextmanager
async def running(**config: Any) -> AsyncIterator[avmm.Vm]:
    """A machine of 16 MiB in virtual time, switched on."""
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(**{"memory": "16M", **config}))
        await vm.start()
        yield vm


@asynccontextmanager
async def booted(tmp_path: Path, source: str, **config: Any) -> AsyncIterator[avmm.Vm]:
    """A machine that boots the code in ``source`` from its only disk."""
    disk = write_disk(tmp_path / "disk.img", source)
    async with running(disks=[avmm.Disk(disk)], **config) as vm:
        yield vm
