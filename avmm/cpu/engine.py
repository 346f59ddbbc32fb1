"""What a hypervisor needs from a processor, and nothing more.

A processor runs guest code until something must be decided outside it, and calls back for port and memory-mapped
accesses, for interrupt acknowledge and for the few instructions that a hypervisor intercepts. It knows no device.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

LAST_TIME = (1 << 63) - 1

class Exit(enum.IntEnum):
    """Why :meth:`Processor.run` returned."""

    BUDGET = 0  # the budget or the deadline was reached
    HALT = 1  # HLT, waiting for an interrupt
    SHUTDOWN = 2  # triple fault
    STOPPED = 3  # Processor.stop() was called
    ERROR = 4  # the processor itself gave up: Processor.failure says why
    DEBUG = 5  # its debug unit was told to stop it here: DebugUnit.cause says why


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register with its hidden part.

    ``attributes`` as in the VMCB (AMD64 APM vol. 2, 15.5.1): descriptor bits 40-47, then 52-55, so that 0xA9B is 64-bit code.
    """

    selector: int
    base: int = 0
    limit: int = 0xFFFF
    attributes: int = 0x93

    @property
    def bits(self) -> int:
        """How wide code is that runs in it: 16, 32 or 64."""
        return 64 if self.attributes & 0x200 else 32 if self.attributes & 0x400 else 16

    def linear(self, offset: int) -> int:
        """Return the linear address of code at ``offset``."""
        return offset if self.bits == 64 else offset + self.base & 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class CpuState:
    """The architectural state a processor starts from: the RESET# state (AMD64 APM vol. 2, table 14-1) where not given.

    ``gprs`` names general registers that are not zero ("rsi": 0x10000).
    """

    cs: Segment = Segment(0xF000, 0xFFFF0000, 0xFFFF, 0x9B)
    ds: Segment = Segment(0)
    es: Segment = Segment(0)
    ss: Segment = Segment(0)
    fs: Segment = Segment(0)
    gs: Segment = Segment(0)
    gdtr: tuple[int, int] = (0, 0xFFFF)
    idtr: tuple[int, int] = (0, 0xFFFF)
    ldtr: Segment = Segment(0, 0, 0xFFFF, 0x82)
    tr: Segment = Segment(0, 0, 0xFFFF, 0x8B)
    cr0: int = 0x60000010
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    rip: int = 0xFFF0
    rsp: int = 0
    rflags: int = 2
    gprs: dict[str, int] = field(default_factory=dict)


class ProcessorState(Protocol):
    """What :meth:`Processor.save` returns: a frozen dataclass of that kind of processor, all of it values."""

    @property
    def version(self) -> int:
        """The version of its format."""


class Cause(enum.IntEnum):
    """Why a debug unit stopped its processor."""

    STEP = 0
    BREAKPOINT = 1
    WATCHPOINT = 2


@dataclass(frozen=True, slots=True)
class Watch:
    """Guest-physical bytes, and the kinds of access to them that stop the processor behind the instruction that makes one."""

    address: int
    length: int
    read: bool = False
    write: bool = True


class ProcessorError(Exception):
    """The processor cannot go on, or cannot be made; one sentence says why."""


@dataclass(slots=True)
class Callbacks:
    """What the processor asks of its hypervisor.

    A callback may switch greenlets and return later; an exception stops the run and is raised from it. A processor may go on with
    those that it had when it was last reset.
    """

    port_in: Callable[[int, int], int | None]
    """``(port, size) -> value``"""
    port_out: Callable[[int, int, int], None]
    """``(port, size, value)``"""
    memory_read: Callable[[int, int], int | None]
    """``(guest-physical address, size) -> value``, for addresses that are not RAM."""
    memory_write: Callable[[int, int, int], None]
    acknowledge: Callable[[], int | None]
    """INTA: the vector to deliver now, or None if no interrupt is pending any more. Add 0x100 if another one waits behind it."""
    window_done: Callable[[int], None]
    """``(port)``: the data window on that port is used up."""
    cpuid: Callable[[int, int, tuple[int, int, int, int]], tuple[int, int, int, int]]
    """``(leaf, subleaf, native (eax, ebx, ecx, edx)) -> (eax, ebx, ecx, edx)``"""
    rdmsr: Callable[[int], int | None]
    """``(index) -> value``, None for #GP."""
    wrmsr: Callable[[int, int], bool]
    """``(index, value) -> accepted``, False for #GP."""
    hypercall: Callable[[int, int], int | None] | None = None
    """``(control word, input) -> result`` of a VMMCALL in ring 0 of protected mode, None for #UD. Which registers hold them is the
    calling convention of the Hypervisor Top-Level Functional Specification; 16-bit code has that of 32-bit code."""


class DebugUnit(Protocol):
    """What a debugger needs of a processor. All of it is called between two runs; none of it can be seen by the guest.

    A run that the unit ends with ``Exit.DEBUG`` may end in the middle of a slice and of a block: go on with :meth:`resume`.
    In virtual time a machine that was stopped and stepped, as often as one likes, stays identical to one that was not.
    """

    def resume(self) -> Exit:
        """Go on with what was left of the slice when ``Exit.DEBUG`` ended it. A breakpoint here does not stop it at once."""

    def step(self, inside: range = range(0), *, interrupts: bool = False) -> None:
        """Stop again behind the next instruction, or behind the first that leaves the linear addresses ``inside``.

        An exception or INT n stops at its handler's first instruction, a REP once an element. The handler of an interrupt that comes
        first runs unseen, or with ``interrupts`` stops at its first instruction too.
        """

    @property
    def in_block(self) -> bool:
        """Whether the processor was stopped inside a block that :attr:`Processor.units` counts already."""

    def forget_step(self) -> None:
        """Do not stop because of the last :meth:`step`."""

    def set_breakpoints(self, addresses: Iterable[int]) -> None:
        """Stop before each instruction at one of these linear addresses, and at no others."""

    def set_watchpoints(self, watches: Sequence[Watch]) -> None:
        """Watch these bytes, and no others. The guest runs an instruction at a time meanwhile. ValueError when they are too many."""

    def begin(self) -> None:
        """Let the registers hold the guest's first state, which after a reset they do not before the first run."""

    def read_register(self, name: str) -> int:
        """Return a register by any name of :meth:`Processor.register`, or fs_base, gs_base, k_gs_base, mxcsr, st0 ... st7 (80 bits),
        xmm0 ... xmm15, fctrl, fstat, ftag, fiseg, fioff, foseg, fooff, fop. KeyError when there is none.
        """

    def write_register(self, name: str, value: int) -> None:
        """Set one of those as the guest could: a selector loads its descriptor, a control register takes effect. ValueError, KeyError."""

    def ram(self, address: int) -> memoryview | None:
        """Return the RAM from a guest-physical address on to the end of its mapping, None when there is no RAM."""

    def cause(self) -> tuple[Cause, int]:
        """Return why the last ``Exit.DEBUG`` was, and for WATCHPOINT which of the watches it was."""


class Processor(Protocol):
    """One virtual CPU. One thread at a time calls it; nothing but :meth:`stop`, :meth:`kick` and :meth:`interrupt` while it runs."""

    callbacks: Callbacks
    failure: str
    """Why the last run ended with ``Exit.ERROR``, one sentence."""

    house: Lock | None
    """Held by whoever runs Python while guests execute in several threads: :meth:`run` lets go of it, and of the GIL, for guest code."""

    @property
    def debug(self) -> DebugUnit | None:
        """What a debugger needs of it; None when this kind of processor has none."""

    executed: Callable[[], int]
    """Returns :attr:`units` the fastest way there is; replaced by each :meth:`reset`."""

    @property
    def units(self) -> int:
        """Code bytes executed since power-on: a deterministic measure of work (one unit is one ns of virtual time)."""

    @property
    def interruptible(self) -> bool:
        """Whether the guest accepts interrupts (RFLAGS.IF)."""

    def run(self, budget: int, deadline: int | None = None) -> Exit:
        """Run guest code.

        With ``deadline`` None exactly until the first block boundary after ``budget`` units; otherwise until host
        monotonic time ``deadline`` (ns), looked at every ``budget`` units.
        """

    def stop(self) -> None:
        """End the current run at the next block boundary with ``Exit.STOPPED``."""

    def set_time_base(self, base: int, end: int = LAST_TIME) -> None:
        """Let the time stamp counter read units (virtual time) or host monotonic ns (real time, at most ``end``), plus ``base``."""

    def kick(self) -> None:
        """End the current run's slice at the next block boundary with ``Exit.BUDGET``: a deadline moved closer."""

    def interrupt(self, pending: bool) -> None:
        """Drive the INTR pin. While high, ``callbacks.acknowledge`` is called as soon as the guest can take an interrupt."""

    def reset(self, state: CpuState) -> None:
        """Start over from ``state`` at the next run. Never while running."""

    def save(self, halted: bool = False) -> ProcessorState:
        """Return everything it is but memory, windows and pins. Never while running. ``halted``: HLT was reported, and no end of it yet."""

    def restore(self, state: ProcessorState) -> None:
        """Become what was saved, with no window open and INTR low; a saved halt is reported by the next run. Never while running.

        ProcessorError, one sentence, when it does not fit.
        """

    def register(self, name: str) -> int:
        """Return a register: rax ... r15, their eax/ax/al/ah forms, rip, rflags, cr0, cr2, cr3, cr4, efer, and cs ... gs (selectors)."""

    def set_register(self, name: str, value: int) -> None:
        """Set a register by any of those names. A segment selector loads as in real mode (base = selector * 16)."""

    def segment(self, name: str) -> Segment:
        """Return cs, ds, es, ss, fs, gs, ldtr or tr with the hidden part."""

    def translate(self, linear: int) -> int | None:
        """Return the guest-physical address that ``linear`` maps to now, None when not mapped."""

    def map_ram(self, address: int, buffer: memoryview) -> None:
        """Let ``buffer`` (page-aligned, writable, any multiple of 4096) answer guest-physical ``address``; replaces what was there."""

    def unmap_ram(self, address: int, size: int) -> None:
        """Send accesses to that range to the memory callbacks again."""

    def invalidate(self, address: int, length: int) -> None:
        """Forget translated code of that guest-physical range: it was written by someone other than the guest."""

    def window(self, port: int, buffer: memoryview | None, *, out: bool = False, start: int = 0) -> None:
        """Serve ``port`` from or into ``buffer`` with no callback per access, until it is used up; None closes it."""

    def window_position(self, port: int) -> int:
        """Return how many bytes of the window on ``port`` have been moved, counted from the buffer's start."""

    def close(self) -> None:
        """Give back all memory. Never while running."""
