"""What gdb is told of the processor: its registers, their order, sizes and types (GDB manual, appendix G, "Target Descriptions").

gdb knows no segments and one register layout a session. So the program counter is given as a linear address (CS base and IP), and
the layout is chosen by the mode the guest is in when gdb connects: i8086, i386 or x86-64.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

from avmm.cpu.engine import Processor
from avmm.debug.debugger import DebugError, Debugger

CORE, SSE, SYSTEM, SEGMENTS = "org.gnu.gdb.i386.core", "org.gnu.gdb.i386.sse", "org.avmm.i386.system", "org.gnu.gdb.i386.segments"
FLAGS = {
    "i386_eflags": ("CF:0", "PF:2", "AF:4", "ZF:6", "SF:7", "TF:8", "IF:9", "DF:10", "OF:11", "NT:14", "RF:16", "VM:17", "AC:18", "ID:21"),
    "i386_cr0": ("PE:0", "MP:1", "EM:2", "TS:3", "ET:4", "NE:5", "WP:16", "AM:18", "NW:29", "CD:30", "PG:31"),
    "i386_cr4": ("VME:0", "PVI:1", "TSD:2", "DE:3", "PSE:4", "PAE:5", "MCE:6", "PGE:7", "PCE:8", "OSFXSR:9", "OSXMMEXCPT:10", "UMIP:11",
                 "FSGSBASE:16", "SMEP:20", "SMAP:21"),
    "i386_efer": ("SCE:0", "LME:8", "LMA:10", "NXE:11", "SVME:12"),
    "i386_mxcsr": ("IE:0", "DE:1", "ZE:2", "OE:3", "UE:4", "PE:5", "DAZ:6", "IM:7", "DM:8", "ZM:9", "OM:10", "UM:11", "PM:12", "FZ:15"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Register:
    """One register of a layout: its name in gdb, and the processor's where that differs."""

    name: str
    bits: int
    type: str
    feature: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """The registers in the order of gdb's numbers."""

    architecture: str
    registers: tuple[Register, ...]

    def description(self) -> str:
        """Return target.xml."""
        lines = ['<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">', "<target>"]
        lines.append(f"<architecture>{self.architecture}</architecture>")
        for feature in dict.fromkeys(register.feature for register in self.registers):
            lines.append(f"<feature name={quoteattr(feature)}>")
            registers = [register for register in self.registers if register.feature == feature]
            for kind in dict.fromkeys(register.type for register in registers):
                lines += _type(kind, next(register.bits for register in registers if register.type == kind))
            for register in registers:
                number = self.registers.index(register)
                lines.append(f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}" regnum="{number}"/>')
            lines.append("</feature>")
        return "\n".join([*lines, "</target>"])

    def read(self, debugger: Debugger, number: int) -> bytes:
        """Return a register as bytes in the target's order."""
        register = self.registers[number]
        value = debugger.pc if register.type == "code_ptr" else debugger.register(register.source or register.name)
        return (value & (1 << register.bits) - 1).to_bytes(register.bits // 8, "little")

    def write(self, debugger: Debugger, number: int, data: bytes) -> None:
        """Set a register. DebugError when it cannot be."""
        register = self.registers[number]
        if len(data) != register.bits // 8:
            raise DebugError(f"{register.name} has {register.bits // 8} bytes")
        if self.read(debugger, number) == data:
            return  # G sets all: what did not change stays, whatever gdb cannot see of it
        value = int.from_bytes(data, "little")
        if register.type == "code_ptr":
            code = debugger.partition.processor.segment("cs")
            if code.bits != 64:
                value = value - code.base & 0xFFFF_FFFF
        debugger.set_register(register.source or register.name, value)


def _type(kind: str, bits: int) -> list[str]:
    if kind == "vec128":
        parts = (("v4f", "ieee_single", 4), ("v2d", "ieee_double", 2), ("v16i8", "int8", 16), ("v8i16", "int16", 8), ("v4i32", "int32", 4),
                 ("v2i64", "int64", 2))  # fmt: skip
        names = {"v4f": "v4_float", "v2d": "v2_double", "v16i8": "v16_int8", "v8i16": "v8_int16", "v4i32": "v4_int32", "v2i64": "v2_int64"}
        vectors = [f'<vector id="{name}" type="{part}" count="{count}"/>' for name, part, count in parts]
        fields = [f'<field name="{names[name]}" type="{name}"/>' for name, _, _ in parts]
        return [*vectors, '<union id="vec128">', *fields, '<field name="uint128" type="uint128"/>', "</union>"]
    if kind not in FLAGS:
        return []
    fields = [f'<field name="{name}" start="{bit}" end="{bit}"/>' for name, bit in (flag.split(":") for flag in FLAGS[kind])]
    return [f'<flags id="{kind}" size="{bits // 8}">', *fields, "</flags>"]


@functools.cache
def layout(architecture: str) -> Layout:
    """Return the layout of i8086, i386 or i386:x86-64."""
    long_mode = architecture == "i386:x86-64"
    width = 64 if long_mode else 32
    if long_mode:
        general = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
    else:
        general = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
    plain = "int64" if long_mode else "int32"
    registers = [Register(name, width, "data_ptr" if name[1:] in ("bp", "sp") else plain, CORE) for name in general]
    registers.append(Register("rip" if long_mode else "eip", width, "code_ptr", CORE, "rip"))
    registers.append(Register("eflags", 32, "i386_eflags", CORE, "rflags"))
    registers += [Register(name, 32, "int32", CORE) for name in ("cs", "ss", "ds", "es", "fs", "gs")]
    registers += [Register(f"st{n}", 80, "i387_ext", CORE) for n in range(8)]
    registers += [Register(name, 32, "int", CORE) for name in ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")]
    registers += [Register(f"xmm{n}", 128, "vec128", SSE) for n in range(16 if long_mode else 8)]
    registers.append(Register("mxcsr", 32, "i386_mxcsr", SSE))
    if long_mode:
        registers += [Register(name, 64, "int64", SEGMENTS) for name in ("fs_base", "gs_base")]
        registers.append(Register("k_gs_base", 64, "int64", SYSTEM))
    registers += [Register(name, width, f"i386_{name}" if name in ("cr0", "cr4") else plain, SYSTEM)
                  for name in ("cr0", "cr2", "cr3", "cr4")]  # fmt: skip
    registers.append(Register("efer", 64, "i386_efer", SYSTEM))
    return Layout(architecture, tuple(registers))


def architecture_now(cpu: Processor) -> str:
    """Return what fits the mode that the processor is in."""
    if cpu.register("efer") & 0x400:
        return "i386:x86-64"
    return "i386" if cpu.register("cr0") & 1 else "i8086"
