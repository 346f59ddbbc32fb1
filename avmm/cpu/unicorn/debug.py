"""The debug unit of a Unicorn processor: breakpoints, watchpoints and steps, carried out by the shim (shim/debug.c), and every register.

What was set survives a reset of the processor, which is a new engine.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import unicorn
from unicorn import x86_const as x86

from avmm.cpu.engine import Cause, Exit, Watch

if TYPE_CHECKING:
    from avmm.cpu.unicorn.processor import UnicornProcessor

WATCHES = 8  # as many as shim/vcpu.h has room for
_READ, _WRITE = 1, 2
_CONTROL = ("cr0", "cr3", "cr4")
_MSRS = {"fs_base": 0xC0000100, "gs_base": 0xC0000101, "k_gs_base": 0xC0000102, "efer": 0xC0000080}
_SELECTORS = {name: getattr(x86, f"UC_X86_REG_{name.upper()}") for name in ("cs", "ss", "ds", "es", "fs", "gs")}
_FLOATING = {  # in Unicorn's own terms
    **{f"st{n}": x86.UC_X86_REG_ST0 + n for n in range(8)},
    **{f"xmm{n}": x86.UC_X86_REG_XMM0 + n for n in range(16)},
    "fctrl": x86.UC_X86_REG_FPCW, "fstat": x86.UC_X86_REG_FPSW, "ftag": x86.UC_X86_REG_FPTAG, "fiseg": x86.UC_X86_REG_FCS,
    "fioff": x86.UC_X86_REG_FIP, "foseg": x86.UC_X86_REG_FDS, "fooff": x86.UC_X86_REG_FDP, "fop": x86.UC_X86_REG_FOP,
    "mxcsr": x86.UC_X86_REG_MXCSR,
}  # fmt: skip


class UnicornDebugUnit:
    """A ``DebugUnit`` (see avmm.cpu.engine)."""

    def __init__(self, processor: UnicornProcessor) -> None:
        self._processor = processor
        self._breakpoints: list[int] = []
        self._watches: list[tuple[int, int, int]] = []

    def renew(self) -> None:
        """The processor has a new engine."""
        vcpu = self._processor.native_vcpu
        if self._breakpoints:
            vcpu.breakpoints(self._breakpoints)
        if self._watches:
            vcpu.watchpoints(self._watches)

    # -- going on and stopping

    def begin(self) -> None:
        """Let the registers hold the guest's first state."""
        self._processor.begin()

    def resume(self) -> Exit:
        """Go on with the rest of the slice."""
        return self._processor.ended(self._processor.native_vcpu.resume())

    def step(self, inside: range = range(0), *, interrupts: bool = False) -> None:
        """Stop behind the next instruction, or behind the first that leaves ``inside``."""
        self._processor.begin()
        self._processor.native_vcpu.step_once(inside.start, inside.stop, interrupts)

    @property
    def in_block(self) -> bool:
        """Whether it was stopped inside a block that is counted already."""
        return self._processor.native_vcpu.in_block

    def forget_step(self) -> None:
        """Do not stop because of a step."""
        self._processor.native_vcpu.forget_step()

    def set_breakpoints(self, addresses: Iterable[int]) -> None:
        """Stop before the instructions at these linear addresses."""
        self._breakpoints = sorted(set(addresses))
        self._processor.native_vcpu.breakpoints(self._breakpoints)

    def set_watchpoints(self, watches: Sequence[Watch]) -> None:
        """Watch these bytes."""
        if len(watches) > WATCHES:
            raise ValueError(f"at most {WATCHES} watchpoints can be set")
        self._watches = [(watch.address, watch.length, _READ * watch.read | _WRITE * watch.write) for watch in watches]
        self._processor.native_vcpu.watchpoints(self._watches)

    def cause(self) -> tuple[Cause, int]:
        """Return why the processor was stopped last."""
        vcpu = self._processor.native_vcpu
        return Cause(vcpu.stop_reason), vcpu.stop_watch

    # -- registers and memory

    def read_register(self, name: str) -> int:
        """Return a register."""
        floating = _FLOATING.get(name)
        if floating is not None:
            value = self._processor.engine.reg_read(floating)
            if isinstance(value, tuple):  # mantissa and exponent
                return int(value[0]) | int(value[1]) << 64
            return int(value)
        index = _MSRS.get(name)
        if index is not None:
            return self._processor.read_msr(index) or 0
        return self._processor.register(name)

    def write_register(self, name: str, value: int) -> None:
        """Set a register, with everything that follows from it."""
        processor = self._processor
        if name in _FLOATING:
            split = (value & (1 << 64) - 1, value >> 64 & 0xFFFF) if name.startswith("st") else value
            processor.engine.reg_write(_FLOATING[name], split)
        elif name in _MSRS:
            if not processor.write_msr(_MSRS[name], value):
                raise ValueError("not a value that it can hold")
        elif name in _CONTROL:
            processor.set_control(int(name[2]), value)
        elif name in _SELECTORS:
            if value & 0xFFFF != processor.register(name):
                try:
                    processor.engine.reg_write(_SELECTORS[name], value & 0xFFFF)
                except unicorn.UcError:
                    raise ValueError("no descriptor that can be loaded") from None
        else:
            processor.set_register(name, value)
            if name == "rip":
                processor.native_vcpu.halted = False

    def ram(self, address: int) -> memoryview | None:
        """Return the RAM from ``address`` on."""
        return self._processor.memory_map.ram_from(address)


def update_control(library: ctypes.CDLL, env: int, number: int, value: int) -> None:
    """Set CR0, CR3 or CR4 by the library's own function, which also brings its hidden flags and its TLB in line."""
    function = getattr(library, f"cpu_x86_update_cr{number}_x86_64")
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_uint64 if number == 3 else ctypes.c_uint32), None
    function(env, value)
