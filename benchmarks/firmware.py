"""SeaBIOS on both sides: when its boot sector runs, and 1 MiB read by int 13h through its IDE driver. Times come from the guest's mark."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from pathlib import Path

import uvloop

import avmm
from benchmarks.measure import Result, assemble, median_of, qemu
from tests import third_party

SECTOR = """
    mov al, 'B'
    out 0xE9, al
    xor ax, ax
    mov ds, ax
    mov cx, 16              ; 16 requests of 64 KiB less one sector fit a segment: 127 sectors each, and a rest
again: push cx
    mov si, packet
    mov ah, 0x42
    mov dl, 0x80
    int 0x13
    jc failed
    add dword [packet + 8], 127
    pop cx
    loop again
    mov word [packet + 2], 16
    mov si, packet
    mov ah, 0x42
    mov dl, 0x80
    int 0x13
    jc failed
    mov al, 'E'
    out 0xE9, al
    cli
    hlt
failed: mov al, 'F'
    out 0xE9, al
    hlt
packet: db 16, 0
    dw 127, 0, 0x2000
    dq 1
"""


async def _ours(image: Path) -> tuple[float, float]:
    begin = time.perf_counter()
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="64M", disks=[avmm.Disk(image, "overlay")], bios="seabios", clock="real"))
        port = vm.partition.devices["debug-e9"]
        marks: dict[str, float] = {}
        port.on_output = lambda value: marks.setdefault(chr(value), time.perf_counter())  # type: ignore[attr-defined]
        await vm.start()
        while "E" not in marks:
            if "F" in marks or vm.now > 60:
                raise SystemExit(f"the boot sector failed:\n{vm.screen.text()}")
            await asyncio.sleep(0.002)
        return marks["B"] - begin, marks["E"] - marks["B"]


def _theirs(emulator: str, image: Path) -> tuple[float, float]:
    begin = time.perf_counter()
    command = [emulator, "-accel", "tcg", "-m", "64", "-display", "none", "-net", "none", "-debugcon", "stdio", "-snapshot",
               "-drive", f"file={image},format=raw,if=ide", "-monitor", "none", "-serial", "none"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    marks: dict[bytes, float] = {}
    while b"E" not in marks:
        byte = os.read(process.stdout.fileno(), 1)
        if byte in (b"", b"F"):
            raise SystemExit("QEMU's boot sector failed")
        marks.setdefault(byte, time.perf_counter())
    process.kill()
    process.wait()
    process.stdout.close()
    return marks[b"B"] - begin, marks[b"E"] - marks[b"B"]


def run(runs: int) -> list[Result]:
    """Take turns, so that both see the same machine. Our time starts in this process, QEMU's with its own start."""
    os.environ.setdefault("AVMM_FIRMWARE", str(third_party.file("usr/share/seabios/bios.bin").parent))
    emulator = qemu()
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "disk.img"
        image.write_bytes(assemble(SECTOR, pad=4 << 20))
        for _ in range(runs):
            ours.append(uvloop.run(_ours(image)))
            if emulator is not None:
                theirs.append(_theirs(emulator, image))

    def column(rows: list[tuple[float, float]], index: int) -> list[float]:
        return [row[index] * 1e3 for row in rows]

    return [
        median_of("SeaBIOS to the boot sector", "ms", column(ours, 0), reference=column(theirs, 0), ratio=1.0),
        median_of("1 MiB by SeaBIOS's int 13h", "ms", column(ours, 1), reference=column(theirs, 1), ratio=1.0),
    ]
