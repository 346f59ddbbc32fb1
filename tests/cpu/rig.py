"""A processor with a little RAM and nothing else, started directly in the mode that a test is about.

The source runs at 0x1000 as ring 0 code of that mode with a GDT, an IDT (or IVT), a TSS and, where the mode has them,
page tables. Each of the 256 vectors leads to a stub of its own that reports to :class:`Rig`, which reads the stack frame
as the handler sees it, and then returns with IRET; a fault's saved EIP can be moved on by ``skip``.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from avmm.cpu.engine import Callbacks, CpuState, Exit, Segment
from avmm.cpu.unicorn.processor import UnicornProcessor
from tests.cpu.asm import assemble, labels

CODE, STUBS, GDT, IDT, TSS, TSS64 = 0x1000, 0x600, 0x5000, 0x6000, 0xD000, 0x18000
STACK, STACK0, USER_STACK, IST1 = 0x9000, 0xA000, 0xB000, 0xC000
PML4, PDPT, PD, PT = 0x10000, 0x11000, 0x12000, 0x13000  # PT maps the first 2 MiB, one to one
CODE32, DATA, USER32, USER_DATA, TSS_SEL, CODE16, DATA16, USER16, USER_DATA16 = 0x08, 0x10, 0x1B, 0x23, 0x28, 0x30, 0x38, 0x43, 0x4B
CODE64, USER64, TSS64_SEL, ABSENT, LDT_SEL, CALL_GATE, EXPAND_DOWN = 0x50, 0x5B, 0x60, 0x70, 0x78, 0x80, 0x88
TSS_LIMIT = 0x2068  # a TSS of 0x68 bytes and the whole I/O permission bitmap with its last byte
GATE32, TRAP32, GATE16, TRAP16, TASK_GATE = 0x8E, 0x8F, 0x86, 0x87, 0x85
ERROR_CODES = frozenset((8, 10, 11, 12, 13, 14, 17))
PRESENT, WRITE, USER, NX = 1, 2, 4, 1 << 63

BITS = {"real": 16, "pm16": 16, "pm32": 32, "paging": 32, "pae": 32, "long": 64, "compat": 32}
DEFINES = (
    "".join(
        f"%define {name} {value:#x}\n"
        for name, value in {
            "USER32": USER32, "USER_DATA": USER_DATA, "USER16": USER16, "USER_DATA16": USER_DATA16, "USER64": USER64, "CODE32": CODE32,
            "CODE16": CODE16, "CODE64": CODE64, "DATA": DATA, "DATA16": DATA16, "ABSENT": ABSENT, "TSS_SEL": TSS_SEL, "STACK0": STACK0,
            "USER_STACK": USER_STACK, "GDT": GDT, "IDT": IDT, "TSS": TSS, "PT": PT, "LDT_SEL": LDT_SEL, "CALL_GATE": CALL_GATE,
            "EXPAND_DOWN": EXPAND_DOWN, "TSS64_SEL": TSS64_SEL,
        }.items()
    )
    + """
%macro ring3_32 1
 push dword USER_DATA
 push dword USER_STACK
 push dword 0x2
 push dword USER32
 push dword %1
 iretd
%endmacro
%macro ring3_16 1
 push word USER_DATA16
 push word USER_STACK
 push word 0x3002
 push word USER16
 push word %1
 iretw
%endmacro
%macro ring3_64 1
 push qword USER_DATA
 push qword USER_STACK
 push qword 0x2
 push qword USER64
 push qword %1
 iretq
%endmacro
%if __?BITS?__ == 64
%define XAX rax
%else
%define XAX eax
%endif
%macro STOP 0
 out 0xff, al
 jmp $
%endmacro
"""
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trap:
    """What a handler found on its stack. ``sp`` and ``ss`` where the frame holds them; ``handler_sp`` at the handler's first instruction."""

    vector: int
    error: int | None
    ip: int
    cs: int
    flags: int
    sp: int | None
    ss: int | None
    handler_sp: int
    rest: tuple[int, ...] = ()


def descriptor(base: int, limit: int, access: int, flags: int) -> int:
    return limit & 0xFFFF | (base & 0xFFFFFF) << 16 | access << 40 | (limit >> 16 & 15) << 48 | flags << 52 | (base >> 24) << 56


class Rig:
    """One guest. ``log`` holds port accesses (port, size, value) and, for IN, ("in", port, size); ``traps`` what the stubs saw."""

    def __init__(
        self,
        source: str,
        mode: str = "real",
        *,
        ram: int = 2 << 20,
        code_cache: int = 1 << 20,
        skip: int | dict[int, int] | None = None,
        stop_on_trap: bool = False,
        efer: int = 0,
        cr4: int = 0,
        flags: int = 2,
        virtual_time: bool = True,
    ) -> None:
        self.mode = mode
        self.source = DEFINES + source
        self.log: list[tuple[int, int, int]] = []
        self.reads: list[tuple[int, int]] = []
        self.mmio: list[tuple[str, int, int, int]] = []
        self.traps: list[Trap] = []
        self.done: list[int] = []
        self.vectors: list[int] = []
        self.skip = skip
        self.stop_on_trap = stop_on_trap
        self.on_in: Callable[[int, int], int | None] = lambda port, size: 0xA5A5A5A5
        self.on_out: Callable[[int, int, int], object] = lambda port, size, value: None
        self.on_load: Callable[[int, int], int | None] = lambda address, size: None
        self.msrs: dict[int, int] = {}
        self.cpu = UnicornProcessor(
            Callbacks(self._in, self._out, self._load, self._store, self._acknowledge, self._window_done, lambda a, b, n: n,
                      self.msrs.get, self._wrmsr),
            virtual_time=virtual_time, code_cache=code_cache,
        )  # fmt: skip
        self._pages = mmap.mmap(-1, ram)
        self.ram = memoryview(self._pages)
        self.cpu.map_ram(0, self.ram)
        self._stub_size = 8
        code = assemble(self.source, BITS[mode])
        assert len(code) <= GDT - CODE
        self.ram[CODE : CODE + len(code)] = code
        self._tables()
        state = self._state()
        self.state = replace(state, efer=state.efer | efer, cr4=state.cr4 | cr4, rflags=flags)
        self.cpu.reset(self.state)

    # -- memory

    def poke(self, address: int, form: str, *values: int) -> None:
        struct.pack_into("<" + form, self.ram, address, *values)

    def peek(self, address: int, form: str = "I") -> int:
        value: int = struct.unpack_from("<" + form, self.ram, address)[0]
        return value

    def label(self, name: str) -> int:
        return labels(self.source, BITS[self.mode])[name]

    # -- tables

    def _tables(self) -> None:
        wide = self.mode in ("long", "compat")
        bits = {"real": 16, "pm16": 16}.get(self.mode, 64 if wide else 32)
        for vector in range(256):
            has_error = vector in ERROR_CODES and self.mode != "real"
            pop = {16: b"\x83\xc4\x02", 32: b"\x83\xc4\x04", 64: b"\x48\x83\xc4\x08"}[bits] if has_error else b""
            stub = bytes((0xE6, vector)) + pop + (b"\x48\xcf" if bits == 64 else b"\xcf")
            at = STUBS + vector * self._stub_size
            self.ram[at : at + len(stub)] = stub
            if bits == 16 and self.mode == "real":
                self.poke(4 * vector, "HH", at, 0)
            else:
                self.gate(vector)
        if self.mode == "real":
            return
        entries = {
            CODE32: descriptor(0, 0xFFFFF, 0x9B, 0xC), DATA: descriptor(0, 0xFFFFF, 0x93, 0xC), USER32: descriptor(0, 0xFFFFF, 0xFB, 0xC),
            USER_DATA: descriptor(0, 0xFFFFF, 0xF3, 0xC), TSS_SEL: descriptor(TSS, TSS_LIMIT, 0x89, 0),
            CODE16: descriptor(0, 0xFFFF, 0x9B, 0), DATA16: descriptor(0, 0xFFFF, 0x93, 0), USER16: descriptor(0, 0xFFFF, 0xFB, 0),
            USER_DATA16: descriptor(0, 0xFFFF, 0xF3, 0), CODE64: descriptor(0, 0xFFFFF, 0x9B, 0xA), USER64: descriptor(0, 0xFFFFF, 0xFB, 0xA),
            TSS64_SEL: descriptor(TSS64, TSS_LIMIT, 0x89, 0), ABSENT: descriptor(0, 0xFFFFF, 0x13, 0xC), LDT_SEL: descriptor(0x8000, 0xFF, 0x82, 0),
            EXPAND_DOWN: descriptor(0, 0xFFF, 0x97, 0x4),
        }  # fmt: skip
        for selector, entry in entries.items():
            self.poke(GDT + (selector & ~7), "Q", entry)
        self.poke(TSS + 4, "II", STACK0, DATA)
        if self.mode == "pm16":
            self.poke(GDT + TSS_SEL, "Q", descriptor(TSS, 0x2B, 0x81, 0))
            self.poke(TSS, "HHH", 0, STACK0, DATA16)
        else:
            self.poke(TSS + 0x66, "H", 0x68)
        self.poke(TSS64 + 0x66, "H", 0x68)
        self.poke(TSS64 + 4, "Q", STACK0)
        self.poke(TSS64 + 0x24, "Q", IST1)
        rights = PRESENT | WRITE | USER
        if self.mode == "paging":
            self.poke(PML4, "I", PT | rights)
            for page in range(512):
                self.poke(PT + 4 * page, "I", page << 12 | rights)
        elif self.mode in ("pae", "long", "compat"):
            self.poke(PML4, "Q", PDPT | rights)
            self.poke(PDPT, "Q", PD | (PRESENT if self.mode == "pae" else rights))
            self.poke(PD, "Q", PT | rights)
            for page in range(512):
                self.poke(PT + 8 * page, "Q", page << 12 | rights)

    def page(self, address: int, entry: int) -> None:
        """Set the page table entry of one of the first 512 pages."""
        self.poke(PT + (address >> 12) * (4 if self.mode == "paging" else 8), "I" if self.mode == "paging" else "Q", entry)

    def gate(self, vector: int, kind: int | None = None, *, dpl: int = 0, selector: int | None = None, offset: int | None = None,
             present: bool = True, ist: int = 0) -> None:  # fmt: skip
        """Set an IDT entry; without arguments the default interrupt gate of the mode."""
        offset = STUBS + vector * self._stub_size if offset is None else offset
        wide = self.mode in ("long", "compat")
        if kind is None:
            kind = GATE16 if self.mode == "pm16" else GATE32
        if selector is None:
            selector = CODE64 if wide else CODE16 if self.mode == "pm16" else CODE32
        access = (kind | dpl << 5) & (0xFF if present else 0x7F)
        entry = offset & 0xFFFF | selector << 16 | ist << 32 | access << 40 | (offset >> 16) << 48
        if wide:
            self.poke(IDT + 16 * vector, "QQ", entry, 0)
        else:
            self.poke(IDT + 8 * vector, "Q", entry)

    def _state(self) -> CpuState:
        real = CpuState(
            cs=Segment(0, 0, 0xFFFF, 0x9B), rip=CODE, rsp=STACK, cr0=0x10,
            idtr=(0, 0x3FF), gdtr=(GDT, 0xFF),
        )  # fmt: skip
        if self.mode == "real":
            return real
        data = Segment(DATA, 0, 0xFFFFFFFF, 0xC93)
        if self.mode == "pm16":
            data = Segment(DATA16, 0, 0xFFFF, 0x93)
            return replace(real, cs=Segment(CODE16, 0, 0xFFFF, 0x9B), ds=data, es=data, ss=data, cr0=0x11, idtr=(IDT, 0x7FF),
                           tr=Segment(TSS_SEL, TSS, 0x2B, 0x83))  # fmt: skip
        state = replace(real, cs=Segment(CODE32, 0, 0xFFFFFFFF, 0xC9B), ds=data, es=data, ss=data, fs=data, gs=data, cr0=0x11,
                        idtr=(IDT, 0x7FF), tr=Segment(TSS_SEL, TSS, TSS_LIMIT, 0x8B), cr4=0x600)  # fmt: skip
        if self.mode == "paging":
            return replace(state, cr0=0x80010011, cr3=PML4)
        if self.mode == "pae":
            return replace(state, cr0=0x80010011, cr3=PDPT, cr4=0x620)
        if self.mode in ("long", "compat"):
            state = replace(state, cr0=0x80010011, cr3=PML4, cr4=0x620, efer=0x500, idtr=(IDT, 0xFFF), tr=Segment(TSS64_SEL, TSS64, TSS_LIMIT, 0x8B))
            if self.mode == "long":
                state = replace(state, cs=Segment(CODE64, 0, 0xFFFFFFFF, 0xA9B))
        return state

    # -- callbacks

    def _in(self, port: int, size: int) -> int | None:
        self.reads.append((port, size))
        return self.on_in(port, size)

    def _out(self, port: int, size: int, value: int) -> None:
        linear = self.cpu.register("rip") + self.cpu.segment("cs").base
        if port < 0x100 and linear == STUBS + port * self._stub_size:
            self._trap(port)
        elif port == 0xFF:
            self.cpu.stop()
        else:
            self.log.append((port, size, value))
            self.on_out(port, size, value)

    def _trap(self, vector: int) -> None:
        gate = self.peek(IDT + (16 if self.mode in ("long", "compat") else 8) * vector + 5, "B") & 15
        if self.mode == "real":
            form, width = "H", 2
        elif self.mode in ("long", "compat"):
            form, width = "Q", 8
        else:
            form, width = ("H", 2) if gate in (6, 7) else ("I", 4)
        top = self.cpu.register("rsp") & (0xFFFF if form == "H" else 0xFFFFFFFFFFFFFFFF)
        physical = top + self.cpu.segment("ss").base
        words = list(struct.unpack_from(f"<10{form}", self.ram, physical)) if physical + 10 * width <= len(self.ram) else [0] * 10
        has_error = vector in ERROR_CODES and self.mode != "real" and vector not in self._pushed_by_software
        error = words.pop(0) if has_error else None
        at = physical + width * has_error
        ip, cs, flags = words[:3]
        outer = form == "Q" or cs & 3 > self.cpu.segment("cs").selector & 3 or (self.mode != "real" and flags & 0x20000)
        sp, ss = words[3:5] if outer else (None, None)
        self.traps.append(Trap(vector, error, ip, cs & 0xFFFF, flags, sp, None if ss is None else ss & 0xFFFF, top, tuple(words[5:9])))
        skip = self.skip.get(vector) if isinstance(self.skip, dict) else self.skip
        if skip:
            struct.pack_into("<" + form, self.ram, at, ip + skip)
        if self.stop_on_trap:
            self.cpu.stop()

    _pushed_by_software: frozenset[int] = frozenset()

    def _load(self, address: int, size: int) -> int | None:
        self.mmio.append(("load", address, size, 0))
        return self.on_load(address, size)

    def _store(self, address: int, size: int, value: int) -> None:
        self.mmio.append(("store", address, size, value))

    def _acknowledge(self) -> int | None:
        return None if not self.vectors else self.vectors.pop(0) | (0x100 if self.vectors else 0)

    def _window_done(self, port: int) -> None:
        self.done.append(port)

    def _wrmsr(self, index: int, value: int) -> bool:
        self.msrs[index] = value
        return index != 0xBAD

    # -- running

    def raise_interrupt(self, *vectors: int) -> None:
        self.vectors += vectors
        self.cpu.interrupt(True)

    def run(self, budget: int = 1 << 20) -> Exit:
        return self.cpu.run(budget)

    def reg(self, name: str) -> int:
        return self.cpu.register(name)


def trap(source: str, mode: str = "real", **options: object) -> Trap:
    """Run until the first trap and return it."""
    rig = Rig(source, mode, stop_on_trap=True, **options)  # type: ignore[arg-type]
    why = rig.run()
    assert rig.traps, (why, hex(rig.reg("rip")), rig.log, rig.cpu.failure)
    return rig.traps[0]
