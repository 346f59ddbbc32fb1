"""The report of a machine that failed: registers, the code it was executing, the last exits."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from avmm.cpu.engine import Processor
from avmm.memory import GuestMemory

if TYPE_CHECKING:
    from avmm.hypervisor.partition import Partition

TRAIL_SHOWN = 16
INSTRUCTIONS_SHOWN = 8
LONGEST = 15  # bytes of an instruction


class GuestFailure(Exception):
    """A machine could not go on. The text is the report."""


def registers(cpu: Processor) -> str:
    """Return the registers as people read them, in the width of the current mode."""
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp")
    more = tuple(f"r{n}" for n in range(8, 16))
    long_mode = cpu.segment("cs").bits == 64
    width = 16 if long_mode else 8
    lines = []
    for row in (names[:4], names[4:], *((more[:4], more[4:]) if long_mode else ())):
        lines.append("  ".join(f"{name:>3} {cpu.register(name) & (1 << 4 * width) - 1:0{width}x}" for name in row))
    lines.append(f"rip {cpu.register('rip'):0{width}x}  rflags {cpu.register('rflags'):08x}")
    lines.append("  ".join(f"{name} {cpu.register(name):04x}" for name in ("cs", "ds", "es", "ss", "fs", "gs")))
    lines.append("  ".join(f"{name} {cpu.register(name):x}" for name in ("cr0", "cr2", "cr3", "cr4")))
    return "\n".join(lines)


def disassembly(cpu: Processor, memory: GuestMemory, count: int = INSTRUCTIONS_SHOWN, linear: int | None = None) -> list[str]:
    """Return the next instructions, one a line, from ``linear`` or from where the processor stands."""
    if linear is None:
        linear = cpu.segment("cs").linear(cpu.register("rip"))
    text = bytearray()
    for address in range(linear, linear + LONGEST * count):
        physical = cpu.translate(address)
        if physical is None or physical >= memory.size:
            break
        text += memory.read(physical, 1)
    return [line for _, line in decoded(cpu, bytes(text), linear, count)] or [f"{linear:#010x}  (not mapped, or not an instruction)"]


def decoded(cpu: Processor, text: bytes, linear: int, count: int) -> list[tuple[int, str]]:
    """Return the instructions in ``text``, which lies at ``linear``, in the processor's mode: the address of each, and its line."""
    import capstone  # not at the top: few machines need it

    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    decoder = capstone.Cs(capstone.CS_ARCH_X86, modes[cpu.segment("cs").bits])
    found = decoder.disasm(text, linear, count)
    return [(i.address, f"{i.address:#010x}  {i.bytes.hex():<20}  {i.mnemonic} {i.op_str}".rstrip()) for i in found]


def trail(cpu: Processor, count: int = TRAIL_SHOWN) -> list[str]:
    """Return the last exits, oldest first, one a line."""
    from avmm.cpu.unicorn.processor import TRAIL_KINDS

    steps: list[tuple[int, int, int, int, int, int]] = getattr(cpu, "trail", list)()
    return [
        f"rip {rip:#x}: {TRAIL_KINDS[kind]:<9} {address:#06x}" + (f" size {size} value {value & (1 << 8 * size) - 1:#x}" if size else "")
        for kind, address, size, value, rip, _ in steps[-count:]
    ]


def failure_report(partition: Partition, error: Exception) -> str:
    """Return the whole report of a machine that failed because of ``error``."""
    cpu = partition.processor
    parts = [f"{partition.name} failed: {error or type(error).__name__}", registers(cpu)]
    parts.append("next instructions:\n" + "\n".join(disassembly(cpu, partition.memory)))
    parts.append("last exits:\n" + "\n".join(trail(cpu)))
    if error.__traceback__ is not None and type(error).__module__ != "avmm.hypervisor.vcpu":
        parts.append("in the VMM:\n" + "".join(traceback.format_exception(error)).rstrip())
    return "\n\n".join(parts)
