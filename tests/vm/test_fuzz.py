"""Whatever a guest does, the machine goes on: random traffic to every device of a whole PC, and random bytes run as code."""

from __future__ import annotations

import asyncio
import random
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import avmm
from avmm.clock import VirtualClock
from avmm.control.stats import Stats
from avmm.hypervisor.vcpu import ProcessorFailure
from tests import third_party

OPERATION = struct.Struct("<BHBI")  # what, where, how wide, value
LIVELY = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x80000000, 0xFFFFFFFF)
PM1_CONTROL = range(0xB004, 0xB006)
ENDS = (avmm.RunState.RUNNING, avmm.RunState.OFF, avmm.RunState.FAILED)


@dataclass
class Traffic:
    """A guest that makes the accesses which ``script`` encodes, and goes on with the rest after a reset."""

    script: bytes
    done: int = 0
    resets: int = 0
    finished: bool = False
    vm: avmm.Vm | None = None

    def operations(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield the operations that are left."""
        while self.done + OPERATION.size <= len(self.script):
            operation = OPERATION.unpack_from(self.script, self.done)
            self.done += OPERATION.size
            yield operation

    async def guest(self, cpu: avmm.ScriptCpu) -> None:
        """The guest's coroutine."""
        assert self.vm is not None
        partition = self.vm.partition
        ports = sorted(partition.ports.tallies())
        spans = sorted(partition.address_space.tallies())
        cpu.sti()
        for what, where, width, value in self.operations():
            if width & 0x80:
                value = LIVELY[value % len(LIVELY)]
            if what < 190:
                port = ports[where % len(ports)] if what & 3 else where
                await self.access_port(cpu, port, 1 << width % 3, value, writing=bool(what & 4))
            elif what < 245:
                size = 1 << width % 4
                address = spans[where % len(spans)] + (value >> 8 & 0xFFFF) if what & 1 else value
                if what & 2:
                    await cpu.store(address, value * 0x01010101_01010101, size)
                else:
                    seen = await cpu.load(address, size)
                    assert 0 <= seen < 1 << 8 * size
            elif what < 253:
                clock = partition.clock
                assert isinstance(clock, VirtualClock)
                clock.advance_to(clock.now() + value % 50_000_000)
                partition.processor.kick()  # timers fire between two slices
            elif what == 253:
                cpu.cli()
            else:
                cpu.sti()
        self.finished = True

    async def access_port(self, cpu: avmm.ScriptCpu, port: int, size: int, value: int, *, writing: bool) -> None:
        """Make one port access."""
        if writing and port + size > PM1_CONTROL.start and port < PM1_CONTROL.stop:
            value &= 0xFF if size == 1 and port & 1 == 0 else 0  # nobody switches the machine off
        if writing:
            await (cpu.outb, cpu.outw, cpu.outw, cpu.outl)[size - 1](port, value)
            return
        seen = await (cpu.inb, cpu.inw, cpu.inw, cpu.inl)[size - 1](port)
        assert 0 <= seen < 1 << 8 * size


async def play(script: bytes, folder: Path, placement: dict[str, str] | None = None) -> tuple[Traffic, Stats]:
    """Let the traffic of ``script`` at a machine with two disks and a CD-ROM, and require that it lives."""
    traffic = Traffic(script)
    image = folder / "disk.img"
    config = avmm.VmConfig(memory="2M", disks=[avmm.Disk(image, "overlay")] * 2, cdrom=image, placement=placement or {})
    async with avmm.Host() as host:
        traffic.vm = vm = await host.create_vm(config, guest=traffic.guest)
        await vm.start()
        await vm.wait_until(lambda: traffic.finished, 3600, "the traffic was over")
        assert vm.state is avmm.RunState.RUNNING
        assert vm.partition.failure is None
        stats = vm.stats
    return traffic, stats


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fuzz")
    (made / "disk.img").write_bytes(random.Random(1).randbytes(1 << 18))
    return made


@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(script=st.binary(min_size=8, max_size=8 * 150))
def test_any_traffic_is_survived(folder: Path, script: bytes) -> None:
    uvloop.run(play(script, folder))


@pytest.mark.parametrize("seed", range(6))
def test_much_traffic_reaches_every_device(folder: Path, seed: int) -> None:
    traffic, stats = uvloop.run(play(random.Random(seed).randbytes(8 * 2500), folder))
    asked = {port.device for port in (*stats.ports, *stats.memory)}
    assert asked >= {"pic", "pit", "rtc", "keyboard", "video", "com1", "acpi-power", "ata0", "ata1", "pci", "lapic", "ioapic"}
    assert stats.outside > 100
    assert stats.floating > 20
    assert traffic.finished


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 160))
def test_very_much_traffic(folder: Path, seed: int) -> None:
    uvloop.run(play(random.Random(seed).randbytes(8 * 20_000), folder))


@pytest.mark.parametrize("seed", range(2))
def test_traffic_to_devices_in_other_places(folder: Path, seed: int) -> None:
    devices = ("pic", "pit", "rtc", "keyboard", "video", "com1", "acpi-power", "pci", "lapic", "ioapic")
    places = {**dict.fromkeys(devices, "service"), "ata0": "hypervisor", "ata1": "hypervisor", "bmide": "hypervisor"}
    uvloop.run(play(random.Random(seed + 50).randbytes(8 * 1200), folder, places))


def test_traffic_is_the_same_in_every_run(folder: Path) -> None:
    script = random.Random(77).randbytes(8 * 1000)
    first, second = (uvloop.run(play(script, folder))[1] for _ in range(2))
    assert (first.ports, first.memory, first.injected, first.outside) == (second.ports, second.memory, second.injected, second.outside)


# -- hostile code

PROTECTED = """
bits 16
org 0x7c00
cli
xor ax, ax
mov ds, ax
mov es, ax
mov ss, ax
mov sp, 0x7000
mov ax, 0x0210
mov cx, 2
mov dh, 0
mov bx, 0x8000
int 0x13
lgdt [gdtr]
lidt [idtr]
mov eax, cr0
or al, 1
mov cr0, eax
jmp 8:start
bits 32
start:
mov ax, 16
mov ds, ax
mov es, ax
mov ss, ax
mov fs, ax
mov gs, ax
mov esp, 0x90000
%if LONG
mov edi, 0x1000
mov cr3, edi
xor eax, eax
mov ecx, 0xC00
rep stosd
mov dword [0x1000], 0x2003
mov dword [0x2000], 0x83
mov eax, cr4
or eax, 0x20
mov cr4, eax
mov ecx, 0xC0000080
rdmsr
or eax, 0x100
wrmsr
mov eax, cr0
or eax, 0x80000000
mov cr0, eax
jmp 24:0x8000
%else
jmp 8:0x8000
%endif
align 8
gdt: dq 0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF, 0x00AF9A000000FFFF, 0x00CFFA000000FFFF
gdtr: dw $ - gdt - 1
dd gdt
idtr: dw 0x7FF
dd 0x9000
times 510 - ($ - $$) db 0
dw 0xAA55
"""


@pytest.fixture(scope="module")
def loaders(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Boot sectors that load 16 sectors to 8000h and jump there in protected mode, and in long mode."""
    where = tmp_path_factory.mktemp("loaders")
    (where / "boot.asm").write_text(PROTECTED)
    made = []
    for long_mode in (0, 1):
        out = where / f"{long_mode}.bin"
        subprocess.run(
            [third_party.tool("nasm"), f"-DLONG={long_mode}", "-f", "bin", "-o", str(out), str(where / "boot.asm")],
            check=True, env=third_party.tool_environment(),
        )  # fmt: skip
        made.append(out.read_bytes())
    return made


async def execute(image: Path, seconds: float, *, stop: bool) -> avmm.RunState:
    """Boot an image beside a machine that counts, and return how the first one is afterwards; the second must not have noticed."""
    counted = 0

    async def healthy(cpu: avmm.ScriptCpu) -> None:
        nonlocal counted
        while True:
            await cpu.outb(0x80, counted & 0xFF)
            counted += 1

    config = avmm.VmConfig(memory="8M", disks=[avmm.Disk(image, "overlay")], on_triple_fault="stop" if stop else "reset", slice_us=100)
    async with avmm.Host() as host:
        other = await host.create_vm(avmm.VmConfig(name="other", memory="1M", slice_us=100), guest=healthy)
        vm = await host.create_vm(config)
        await other.start()
        await vm.start()
        before = counted
        while vm.state is avmm.RunState.RUNNING and vm.now < seconds:
            await asyncio.sleep(0)
        failure = vm.partition.failure  # it may run into what the processor cannot execute, such as video memory; nothing else may fail
        assert failure is None or isinstance(failure.__cause__, ProcessorFailure), failure
        assert str(vm.stats)
        assert vm.report("looked at")
        assert counted > before
        assert other.state is avmm.RunState.RUNNING
        return vm.state


def hostile(seed: int, loaders: list[bytes]) -> bytes:
    """A disk image of random bytes: a boot sector, or code and interrupt tables behind one that changes the mode."""
    chance = random.Random(seed)
    if seed % 3 == 0:
        return chance.randbytes(510) + b"\x55\xaa" + chance.randbytes(512 * 63)
    return loaders[seed % 3 - 1] + chance.randbytes(512 * 63)


@pytest.mark.guests
@pytest.mark.parametrize("seed", range(30))
def test_random_code_is_survived(seed: int, loaders: list[bytes], tmp_path: Path) -> None:
    image = tmp_path / "hostile.img"
    image.write_bytes(hostile(seed, loaders))
    assert uvloop.run(execute(image, 0.002, stop=bool(seed & 1))) in ENDS


@pytest.mark.long
@pytest.mark.guests
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_much_random_code_is_survived(seed: int, loaders: list[bytes], tmp_path: Path) -> None:
    image = tmp_path / "hostile.img"
    image.write_bytes(hostile(seed, loaders))
    assert uvloop.run(execute(image, 0.05, stop=bool(seed & 1))) in ENDS


def test_a_machine_that_stops_at_a_triple_fault(loaders: list[bytes], tmp_path: Path) -> None:
    image = tmp_path / "fault.img"
    image.write_bytes(loaders[0] + b"\x0f\x0b" * 0x1000)  # UD2, and no interrupt table
    assert uvloop.run(execute(image, 0.01, stop=True)) is avmm.RunState.OFF
    assert uvloop.run(execute(image, 0.01, stop=False)) is avmm.RunState.RUNNING


