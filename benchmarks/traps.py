"""What a trap costs: a port read inside the hypervisor, a trip to VM-H and back, an interrupt delivered and returned from."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import uvloop

import avmm
from benchmarks.measure import Result, assemble, median_of, repeat

READS, TRIPS, TICKS = 200_000, 20_000, 20_000
LOOP = """
    mov ecx, {count}
next: in al, {port}
    dec ecx
    jnz next
    mov dx, 0x402
    mov al, '!'
    out dx, al
    hlt
"""
TICKING = """
    xor ax, ax
    mov ds, ax
    mov word [0x20], handler
    mov word [0x22], 0
    mov al, 0x34
    out 0x43, al
    mov al, 24              ; a tick every 20 us of virtual time
    out 0x40, al
    xor al, al
    out 0x40, al
    mov al, {mask}
    out 0x21, al
    xor ebx, ebx
    mov ecx, {count}
    sti
{loop}
    cli
    mov dx, 0x402
    mov al, '!'
    out dx, al
    hlt
handler: inc ebx
    mov al, 0x20
    out 0x20, al
    iret
"""
BUSY = """
next: dec ecx               ; 6 code bytes, so 6 ns of virtual time
    jnz near next
"""
HALTED = """
next: hlt
    cmp ebx, ecx
    jb next
"""
BYTES = 6


def _time(source: str, placement: dict[str, str] | None = None) -> tuple[float, avmm.Vm]:
    """Seconds from the first instruction of a boot sector to its mark on the debug port, and the machine."""

    async def run(image: Path) -> tuple[float, avmm.Vm]:
        async with avmm.Host() as host:
            config = avmm.VmConfig(memory="2M", disks=[avmm.Disk(image)], clock="virtual", placement=placement or {})
            vm = await host.create_vm(config)
            begin = time.perf_counter()
            await vm.start()
            while "!" not in vm.machine.debug.text():
                await vm.sleep(0.001)
            return time.perf_counter() - begin, vm

    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "disk.img"
        image.write_bytes(assemble(source, pad=64 * 512))
        return uvloop.run(run(image))


def _per(source: str, count: int, placement: dict[str, str] | None = None) -> float:
    """Microseconds for one of ``count`` repetitions, start-up taken off."""
    empty, _ = _time(source.format(count=1, port=0x80), placement)
    full, _ = _time(source.format(count=count, port=0x80), placement)
    return max(0.0, full - empty) / count * 1e6


def run(runs: int) -> list[Result]:
    """Measure the three."""
    inside = repeat(runs, lambda: _per(LOOP, READS))
    outside = repeat(runs, lambda: _per(LOOP, TRIPS, {"post": "service"}))
    loops = TICKS * 20_000 // BYTES

    def interrupt() -> float:
        quiet, _ = _time(TICKING.format(mask=0xFF, count=loops, loop=BUSY))
        ticking, vm = _time(TICKING.format(mask=0xFE, count=loops, loop=BUSY))
        return (ticking - quiet) / vm.partition.vcpu.injected * 1e6

    interrupts = repeat(runs, interrupt)
    wakes = repeat(runs, lambda: _per(TICKING.replace("{mask}", "0xFE").replace("{loop}", HALTED), TICKS))
    return [
        median_of("port read inside the hypervisor", "us", inside, limit=0.5),
        median_of("port read by VM-H, there and back", "us", outside, limit=12),
        median_of("PIT interrupt, delivered and returned", "us", interrupts, limit=5),
        median_of("the same, out of HLT and back to it", "us", wakes),
    ]
