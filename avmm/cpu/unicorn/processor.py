"""A virtual CPU on Unicorn: the guest runs in SVM guest mode from its first instruction on and never leaves it.

One VMRUN (:mod:`avmm.cpu.unicorn.guest_mode`) loads the guest's state; from then on each VM exit arrives in the shim with the
guest's state live.

The invariant: the engine is entered only by :meth:`UnicornProcessor.run`, and every stop falls on a block boundary.
"""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import cast

import unicorn
from unicorn import x86_const as x86

from avmm.cpu.engine import LAST_TIME, Callbacks, CpuState, Exit, ProcessorError, ProcessorState, Segment
from avmm.cpu.unicorn import guest_mode, layout
from avmm.cpu.unicorn._shim import Vcpu
from avmm.cpu.unicorn.debug import UnicornDebugUnit, update_control
from avmm.cpu.unicorn.guest_mode import EFER, EFER_SVME, TSS_BUSY
from avmm.cpu.unicorn.memory import MemoryMap

CPU_MODEL_EPYC = 35  # the default model has no SVM
TSC, TSC_ADJUST = 0x10, 0x3B
EFER_LME, EFER_LMA = 0x100, 0x400
EFER_WRITABLE = 0x4901  # SCE, LME, NXE, FFXSR
CR0_PG = 1 << 31
EXIT_CPUID, EXIT_MSR = 0x72, 0x7C
GP = 13
RFLAGS_IF = 0x200

_GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *tuple(f"r{n}" for n in range(8, 16)))
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")


def _names() -> dict[str, tuple[int, int, int]]:
    """Register name -> (64-bit index in env, shift, mask) for everything that is a plain field of env."""
    names = {name: (i, 0, 0xFFFF_FFFF_FFFF_FFFF) for i, name in enumerate(_GPRS)}
    for i, name in enumerate(_GPRS[:8]):
        names["e" + name[1:]] = (i, 0, 0xFFFF_FFFF)
        names[name[1:]] = (i, 0, 0xFFFF)
    for i, letter in enumerate("acdb"):
        names[letter + "l"] = (i, 0, 0xFF)
        names[letter + "h"] = (i, 8, 0xFF)
    names["rip"] = (layout.ENV_RIP // 8, 0, 0xFFFF_FFFF_FFFF_FFFF)
    for n in (0, 2, 3, 4):
        names[f"cr{n}"] = (layout.ENV_CR // 8 + n, 0, 0xFFFF_FFFF_FFFF_FFFF)
    return names


_FIELDS = _names()


@dataclass(frozen=True, slots=True)
class UnicornState:
    """A saved processor: Unicorn's own fields (``env``, its layout is that of ``model``) and what the shim keeps beside them."""

    env: bytes
    units: int
    halted: bool
    counters: tuple[tuple[str, int], ...]
    block: tuple[int, int, int] | None = None
    """Where the block begins, goes on and ends in whose middle a debugger stopped it; its units are counted."""
    model: str = f"unicorn {layout.NEEDED}"
    version: int = 1


class UnicornProcessor:
    """A ``Processor`` (see avmm.cpu.engine) on Unicorn 2.1.4. Raises ProcessorError when this machine cannot run it."""

    def __init__(self, callbacks: Callbacks, *, virtual_time: bool = False, code_cache: int = 16 << 20) -> None:
        self._native = layout.native()
        self.callbacks = callbacks
        self.failure = ""
        self._virtual_time = virtual_time
        self._tsc_base, self._tsc_end = 0, LAST_TIME
        self._house: Lock | None = None
        self._code_cache = code_cache
        self.memory_map = MemoryMap()
        self._windows: dict[int, tuple[memoryview, bool]] = {}
        self._past: dict[str, int] = {}
        self._cpuid_cache: dict[tuple[int, int], tuple[int, int, int, int]] = {}
        self._engine: unicorn.Uc | None = None
        self._vcpu: Vcpu | None = None
        self._entered = False
        self.debug: UnicornDebugUnit = UnicornDebugUnit(self)
        self._units = 0
        self._rflags = 2
        self.reset(CpuState())

    # -- running

    @property
    def units(self) -> int:
        """Code bytes executed since power-on."""
        return self._vcpu.units if self._vcpu is not None else self._units

    @property
    def interruptible(self) -> bool:
        """Whether the guest accepts interrupts (RFLAGS.IF, which Unicorn does not compute lazily)."""
        return bool(self.inside.q[layout.ENV_RFLAGS // 8] & RFLAGS_IF)

    def run(self, budget: int, deadline: int | None = None) -> Exit:
        """Run guest code; see ``Processor.run``."""
        vcpu = self._vcpu or self.native_vcpu
        if not self._entered:
            self._enter(vcpu)
        why = vcpu.run(budget, deadline)
        return _EXITS[why] if why != _ERROR else self.ended(why)

    def begin(self) -> None:
        """Let the registers hold the guest's first state, which they do not after a reset before the first run."""
        if not self._entered:
            self._enter(self.native_vcpu)

    def ended(self, why: int) -> Exit:
        """Return what the shim's reason to end a run means, after noting why the engine gave up if it did."""
        if why == _ERROR:
            self.failure = f"the processor gave up at rip {self.register('rip'):#x}: {_reason(self.native_vcpu.error)}"
        return _EXITS[why]

    def stop(self) -> None:
        """End the current run with ``Exit.STOPPED``."""
        if self._vcpu is not None:
            self._vcpu.stop()

    def kick(self) -> None:
        """End the current slice with ``Exit.BUDGET``."""
        if self._vcpu is not None:
            self._vcpu.kick()

    @property
    def house(self) -> Lock | None:
        """The lock that is let go while guest code executes; see ``Processor.house``."""
        return self._house

    @house.setter
    def house(self, lock: Lock | None) -> None:
        self._house = lock
        if self._vcpu is not None:
            self._vcpu.house = lock

    def set_time_base(self, base: int, end: int = LAST_TIME) -> None:
        """Let the time stamp counter read units (virtual time) or host monotonic ns (real time, at most ``end``) plus ``base``."""
        self._tsc_base = (base + (1 << 63)) % (1 << 64) - (1 << 63)  # the shim's is of 64 bits, and a guest may add to it what it likes
        self._tsc_end = end
        if self._vcpu is not None:
            self._vcpu.tsc_base, self._vcpu.tsc_end = self._tsc_base, end

    # -- making and ending

    def reset(self, state: CpuState) -> None:
        """Start over from ``state``: a new engine over the same memory; counts go on, windows stay open where they are."""
        windows = [(port, buffer, out, self.window_position(port)) for port, (buffer, out) in self._windows.items()]
        units = self.units
        self._shut()
        self._units = units
        engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        engine.ctl_set_cpu_model(CPU_MODEL_EPYC)
        engine.ctl_set_tcg_buffer_size(self._code_cache)
        engine.ctl_exits_enabled(True)
        self._reserved = guest_mode.reserve(engine)
        self._engine = engine
        self.inside = inside = layout.Inside(engine)
        flag = ctypes.c_uint8.from_address(inside.uc + layout.UC_NO_EXIT_REQUEST)
        if flag.value or inside.d[172 // 4] != 1:
            raise ProcessorError("unicorn's engine is not in the state avmm expects")
        flag.value = 1  # before anything is translated: stops must fall on block boundaries
        cb = self.callbacks
        tlb = inside.env + self._native.tlb if self._native.tlb is not None else 0
        vcpu = Vcpu(inside.uc, inside.cpu, inside.env, tlb, units, (
            cb.port_in, cb.port_out, cb.memory_read, cb.memory_write, cb.acknowledge, cb.window_done, self._vm_exit, cb.hypercall,
        ))  # fmt: skip
        vcpu.tsc_base, vcpu.tsc_end = self._tsc_base, self._tsc_end
        vcpu.virtual_time = self._virtual_time
        vcpu.house = self._house
        self._vcpu = vcpu
        self.executed: Callable[[], int] = vcpu.count
        self.interrupt: Callable[[bool], None] = vcpu.interrupt
        """Drives the INTR pin."""
        self._windows = {}
        self.memory_map.renew(vcpu)
        for port, window, out, position in windows:
            if position < len(window):
                self.window(port, window, out=out, start=position)
        self._prepare(engine, state)
        self._cpuid_cache.clear()
        self._entered = False
        self.debug.renew()

    def save(self, halted: bool = False) -> UnicornState:
        """Return the state. It is complete where a run ends, at a block boundary: nothing is half-way there but what a debugger stopped."""
        self.begin()
        vcpu = self.native_vcpu
        counters = tuple((name, count) for name, count in self._counted().items() if name not in _HOST_COUNTERS)
        return UnicornState(self.inside.save(), vcpu.units, halted or vcpu.halted, counters, vcpu.block())

    def restore(self, state: ProcessorState) -> None:
        """Become what was saved: a new engine over the same memory, which enters guest mode and is then given the saved fields."""
        if not isinstance(state, UnicornState) or state.version != 1 or len(state.env) != layout.ENV_SIZE:
            raise ProcessorError("this is not the state of a Unicorn processor, version 1")
        if state.model != (own := f"unicorn {layout.NEEDED}"):
            raise ProcessorError(f"the state was saved by {state.model}, and this is {own}: their processors differ inside")
        for port in list(self._windows):
            self.window(port, None)
        self.reset(CpuState())
        self.begin()
        vcpu = self.native_vcpu
        self.inside.restore(state.env)
        self._forget_translations()
        vcpu.units, vcpu.halted = state.units, state.halted
        if state.block is not None:
            vcpu.enter_block(*state.block)
        for name, count in state.counters:
            if name in _COUNTERS:
                self._past[name] = count - getattr(vcpu, name)  # the stub is not the guest's code

    def close(self) -> None:
        """Give back all memory; the processor cannot be used again."""
        self._shut()
        self.memory_map.clear()
        self._windows = {}

    def _shut(self) -> None:
        if self._vcpu is not None and self._engine is not None:
            for name in _COUNTERS:
                self._past[name] = self._past.get(name, 0) + getattr(self._vcpu, name)
            self._units, self._rflags = self._vcpu.units, self.register("rflags")
            self._vcpu.detach()
            self._vcpu = None
            self.interrupt = _unheard
            self.inside = self.inside.copy()  # the last registers stay readable when the engine is gone
            self._engine = None

    def _prepare(self, engine: unicorn.Uc, state: CpuState) -> None:
        """Let the stub be what is executed next."""
        guest_mode.prepare(engine, self._reserved, state)
        inside = self.inside
        for name, value in state.gprs.items():
            inside.q[_FIELDS[name][0]] = value
        inside.q[0] = guest_mode.VMCB
        inside.q[layout.ENV_RIP // 8] = guest_mode.STUB

    def _enter(self, vcpu: Vcpu) -> None:
        """Fill what is not RAM with memory-mapped I/O, then execute the stub: stops exactly at the first guest instruction."""
        self.memory_map.cover(vcpu)
        self._entered = True
        units = vcpu.units
        vcpu.house = None  # so short a run lets nobody in, and whoever restores a state does not have the lock
        vcpu.run(1, None)
        vcpu.house = self._house
        vcpu.units = units  # the stub is not the guest's code

    # -- memory

    def map_ram(self, address: int, buffer: memoryview) -> None:
        """Let ``buffer`` answer guest-physical ``address``; replaces what was there."""
        self.memory_map.remove(self.native_vcpu, address, len(buffer))
        self.memory_map.add_ram(self.native_vcpu, address, buffer)
        self._forget_translations()

    def unmap_ram(self, address: int, size: int) -> None:
        """Send accesses to that range to the memory callbacks again."""
        self.memory_map.remove(self.native_vcpu, address, size)
        if self._entered:
            self.memory_map.cover(self.native_vcpu)
        self._forget_translations()

    def _forget_translations(self) -> None:
        """Empty the TLB. Unicorn drops the entries of what is unmapped by guest-physical address, and a guest that pages has others."""
        if self._engine is not None and self._entered:
            self._native.library.tlb_flush_x86_64(ctypes.c_void_p(self.inside.cpu))

    def invalidate(self, address: int, length: int) -> None:
        """Forget translated code of that guest-physical range."""
        if self._vcpu is not None:
            self._vcpu.invalidate(address, length)

    def translate(self, linear: int) -> int | None:
        """Return the guest-physical address of ``linear``, None when not mapped."""
        return self._vcpu.translate(linear) if self._vcpu is not None else None

    # -- port windows

    def window(self, port: int, buffer: memoryview | None, *, out: bool = False, start: int = 0) -> None:
        """Serve ``port`` from or into ``buffer`` until it is used up; None closes it."""
        if self._vcpu is not None:
            self._vcpu.window(port, buffer, start, out)
            if buffer is None:
                self._windows.pop(port, None)
            else:
                self._windows[port] = (buffer, out)

    def window_position(self, port: int) -> int:
        """Return how many bytes of the window on ``port`` have been moved."""
        return self._vcpu.window_position(port) if self._vcpu is not None else 0

    # -- registers

    def register(self, name: str) -> int:
        """Return a register by name; see ``Processor.register``."""
        field = _FIELDS.get(name)
        if field is not None:
            index, shift, mask = field
            return self.inside.q[index] >> shift & mask
        if name in _SEGMENTS:
            return self.segment(name).selector
        if name == "rflags":
            return cast(int, self._engine.reg_read(x86.UC_X86_REG_RFLAGS)) | 2 if self._engine is not None else self._rflags
        if name == "efer":
            return self.inside.q[layout.ENV_EFER // 8] & ~EFER_SVME
        raise KeyError(name)

    def set_register(self, name: str, value: int) -> None:
        """Set a register by name; a segment selector loads as in real mode."""
        field = _FIELDS.get(name)
        if field is not None:
            index, shift, mask = field
            if mask >= 0xFFFF_FFFF:
                self.inside.q[index] = value & mask  # a 32-bit write clears the upper half
            else:
                old = self.inside.q[index]
                self.inside.q[index] = old & ~(mask << shift) | (value & mask) << shift
        elif name in _SEGMENTS[:6]:
            at = layout.ENV_SEGMENTS + 24 * _SEGMENTS.index(name)
            self.inside.d[at // 4] = value & 0xFFFF
            self.inside.q[at // 8 + 1] = (value & 0xFFFF) << 4
        elif name == "rflags":
            self.engine.reg_write(x86.UC_X86_REG_RFLAGS, value)
        else:
            raise KeyError(name)

    def segment(self, name: str) -> Segment:
        """Return a segment register with its hidden part."""
        at = layout.ENV_SEGMENTS + 24 * _SEGMENTS.index(name)
        selector, _, base, limit, flags = struct.unpack_from("<IIQII", self.inside.bytes, at)
        attributes = flags >> 8 & 0xFF | flags >> 12 & 0xF00
        return Segment(selector & 0xFFFF, base, limit, attributes | TSS_BUSY if name == "tr" else attributes)

    def set_control(self, number: int, value: int) -> None:
        """Set CR0, CR3 or CR4 with everything that follows from it."""
        update_control(self._native.library, self.inside.env, number, value)

    @property
    def native_vcpu(self) -> Vcpu:
        """The shim's half."""
        if self._vcpu is None:
            raise ProcessorError("this processor is closed")
        return self._vcpu

    @property
    def engine(self) -> unicorn.Uc:
        """The engine."""
        if self._engine is None:
            raise ProcessorError("this processor is closed")
        return self._engine

    # -- what the guest executes that a hypervisor answers

    def _vm_exit(self, code: int, info: int) -> int:
        """Answer CPUID, RDMSR and WRMSR. Returns 0, or the vector of the exception to raise."""
        q = self.inside.q
        if code == EXIT_CPUID:
            leaf, subleaf = q[0] & 0xFFFFFFFF, q[1] & 0xFFFFFFFF
            a, b, c, d = self.callbacks.cpuid(leaf, subleaf, self._native.cpuid(self.inside.env, leaf, subleaf))
            q[0], q[3], q[1], q[2] = a, b, c, d
            return 0
        index = q[1] & 0xFFFFFFFF
        if info & 1:
            return 0 if self.write_msr(index, (q[2] & 0xFFFFFFFF) << 32 | q[0] & 0xFFFFFFFF) else GP
        value = self.read_msr(index)
        if value is None:
            return GP
        q[0], q[2] = value & 0xFFFFFFFF, value >> 32
        return 0

    def read_msr(self, index: int) -> int | None:
        """Return an MSR; None for #GP."""
        field = _MSRS.get(index)
        if field is not None:
            kind, at = field
            return self.inside.q[at] if kind == "q" else self.inside.d[at]
        if index == EFER:
            return self.register("efer")
        if index == TSC:
            return self._time_stamp()
        return self.callbacks.rdmsr(index)

    def write_msr(self, index: int, value: int) -> bool:
        """Set an MSR; False for #GP."""
        if index == EFER:
            return self._write_efer(value)
        if index == TSC:  # as if the difference were added to TSC_ADJUST, which whoever keeps time may refuse
            adjust = self.callbacks.rdmsr(TSC_ADJUST)
            if adjust is not None:
                self.callbacks.wrmsr(TSC_ADJUST, adjust + value - self._time_stamp() & (1 << 64) - 1)
            return True
        field = _MSRS.get(index)
        if field is None:
            return self.callbacks.wrmsr(index, value)
        kind, at = field
        if kind == "q":
            if index in _CANONICAL and (value >> 47) not in (0, 0x1FFFF):
                return False
            self.inside.q[at] = value
        else:
            self.inside.d[at] = value & 0xFFFFFFFF
        return True

    def _time_stamp(self) -> int:
        return (self.units if self._virtual_time else min(time.monotonic_ns(), self._tsc_end)) + self._tsc_base & (1 << 64) - 1

    def _write_efer(self, value: int) -> bool:
        """WRMSR to EFER. SVME, which the engine lives on, is neither seen nor changed; LMA is read-only."""
        old = self.inside.q[layout.ENV_EFER // 8]
        if value & ~(EFER_WRITABLE | EFER_LMA) or ((value ^ old) & EFER_LME and self.register("cr0") & CR0_PG):
            return False
        self.inside.q[layout.ENV_EFER // 8] = old & ~EFER_WRITABLE | value & EFER_WRITABLE
        return True

    # -- what happened

    def trail(self) -> list[tuple[int, int, int, int, int, int]]:
        """Return the last exits, oldest first: (kind, address, size, value, rip, units); kinds as in :data:`TRAIL_KINDS`."""
        return self._vcpu.trail() if self._vcpu is not None else []

    def counters(self) -> dict[str, int]:
        """Return what was counted since power-on: blocks, exceptions, accesses through ports, windows and memory, interrupts."""
        return {name.removeprefix("n_"): count for name, count in self._counted().items()}

    def _counted(self) -> dict[str, int]:
        vcpu = self._vcpu
        return {name: self._past.get(name, 0) + (getattr(vcpu, name) if vcpu else 0) for name in _COUNTERS}


TRAIL_KINDS = ("in", "out", "load", "store", "exit", "interrupt")
_EXITS = tuple(Exit)
_ERROR = int(Exit.ERROR)
_COUNTERS = ("blocks", "n_exceptions", "n_syscalls", "n_in", "n_out", "n_window", "n_interrupts", "n_exits", "n_loads", "n_stores",
             "run_ns", "run_cycles", "handler_cycles")
_HOST_COUNTERS = frozenset({"run_ns", "run_cycles", "handler_cycles"})  # of the host's time: no part of the guest's history
_MSRS = {  # MSRs that are fields of the processor's own state
    0x174: ("d", layout.ENV_SYSENTER // 4),
    0x175: ("q", layout.ENV_SYSENTER // 8 + 1),
    0x176: ("q", layout.ENV_SYSENTER // 8 + 2),
    0xC0000081: ("q", layout.ENV_STAR // 8),
    0xC0000082: ("q", layout.ENV_STAR // 8 + 2),
    0xC0000083: ("q", layout.ENV_STAR // 8 + 3),
    0xC0000084: ("q", layout.ENV_STAR // 8 + 4),
    0xC0000100: ("q", (layout.ENV_SEGMENTS + 24 * 4) // 8 + 1),  # FS base
    0xC0000101: ("q", (layout.ENV_SEGMENTS + 24 * 5) // 8 + 1),  # GS base
    0xC0000102: ("q", layout.ENV_STAR // 8 + 5),  # kernel GS base
    0xC0000103: ("d", layout.ENV_TSC_AUX // 4),
}
_CANONICAL = frozenset({0x175, 0x176, 0xC0000082, 0xC0000083, 0xC0000100, 0xC0000101, 0xC0000102})


def _unheard(pending: bool) -> None:
    """Be the INTR pin of a processor that is closed."""


def _reason(error: int) -> str:
    return str(unicorn.UcError(error))
