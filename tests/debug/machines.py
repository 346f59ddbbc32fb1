"""A machine with a boot sector of the test's own, standing still before its first instruction."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import avmm
from tests.cpu.asm import assemble, labels

LOAD = 0x7C00
COUNT = 0x7E00  # a word that SOURCE counts in
SOURCE = """
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7c00
    jmp 0x07c0:(next - 0x7c00)
next:
    mov cx, 3
again:
    mov ax, 0x0e41
print:
    int 0x10
    inc word [0x7e00]
counted:
    loop again
    jmp next
"""
END = "\n times 510-($-$$) db 0\n dw 0xaa55\n"


def label(name: str, source: str = SOURCE) -> int:
    return labels(source + END, 16, LOAD)[name]


@asynccontextmanager
async def machine(tmp_path: Path, source: str = SOURCE, threads: int = 1, **config: Any) -> AsyncIterator[avmm.Vm]:
    """Paused by ``gdb_wait`` unless ``config`` says otherwise."""
    image = tmp_path / "boot.img"
    image.write_bytes(assemble(source + END, 16, LOAD).ljust(1440 * 1024, b"\0"))
    settings: dict[str, Any] = {"memory": "2M", "gdb": "127.0.0.1:0", "gdb_wait": True, **config}
    async with avmm.Host(threads=threads) as host:
        vm = await host.create_vm(avmm.VmConfig(floppies=[avmm.Disk(image, "overlay")], **settings))
        await vm.start()
        yield vm
