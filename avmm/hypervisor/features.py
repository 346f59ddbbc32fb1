"""What CPUID and the model-specific registers tell a guest: the processor's own answers, less what is not there.

Leaves and bits: AMD64 Architecture Programmer's Manual vol. 3, appendix E; Intel SDM vol. 2, CPUID.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

Quad = tuple[int, int, int, int]

PHYSICAL_BITS = 40
_HIDDEN_1_ECX = sum(1 << bit for bit in (3, 12, 17, 21, 24, 26, 27, 28, 29, 30))
"""MONITOR, FMA, PCID, x2APIC, TSC deadline, XSAVE, OSXSAVE, AVX, F16C, RDRAND (determinism)."""
_HYPERVISOR = 1 << 31
SIGNATURE = b"avmmavmmavmm"
_HIDDEN_1_EDX = sum(1 << bit for bit in (7, 12, 14, 28))  # MCE, MTRR, MCA, HTT
_SHOWN_7_EBX = sum(1 << bit for bit in (0, 3, 7, 8, 9, 20))  # FSGSBASE, BMI1, SMEP, BMI2, ERMS, SMAP
TSC_ADJUST_7_EBX = 1 << 1
"""With it, Linux does not doubt a time stamp counter that counts at a fixed rate: it would measure it against timer ticks, of which a
busy host loses some, give it up and ask the ACPI timer for the time, an exit each."""
_HIDDEN_EXT_ECX = sum(1 << bit for bit in (2, 10, 12, 13, 15, 22, 23, 24, 28))  # SVM, IBS, SKINIT, WDT, LWP, topology, perf counters
_EMPTY: Quad = (0, 0, 0, 0)


def cpuid(leaf: int, subleaf: int, native: Quad) -> Quad:
    """Return what the guest reads: ``native`` is the CPU model's own answer."""
    a, b, c, d = native
    if leaf == 0:
        return min(a, 7), b, c, d
    if leaf == 1:
        return a, b & 0xFFFF | 1 << 16, c & ~_HIDDEN_1_ECX | _HYPERVISOR, d & ~_HIDDEN_1_EDX
    if leaf == 7:
        return (0, b & _SHOWN_7_EBX | TSC_ADJUST_7_EBX, 0, 0) if subleaf == 0 else _EMPTY
    if leaf == 0x40000000:
        return 0x40000000, *struct.unpack("<3I", SIGNATURE)
    if leaf in (2, 4, 5, 6) or 0x40000000 <= leaf < 0x40010000 or 7 < leaf < 0x80000000:
        return _EMPTY
    if leaf == 0x80000000:
        return min(a, 0x80000008), b, c, d
    if leaf == 0x80000001:
        return a, b, c & ~_HIDDEN_EXT_ECX, d
    if leaf == 0x80000007:
        return 0, 0, 0, 1 << 8  # the time stamp counter counts machine time, whatever the processor does
    if leaf == 0x80000008:
        return 48 << 8 | PHYSICAL_BITS, 0, 0, 0
    return native


TSC, APIC_BASE, TSC_ADJUST, PAT, HWCR = 0x10, 0x1B, 0x3B, 0x277, 0xC0010015
_INITIAL = {PAT: 0x0007040600070406, HWCR: 1 << 24}  # the time stamp counter counts at a fixed rate


class Msrs:
    """The model-specific registers that are not the processor's own state.

    Those of the known model ranges read zero until written, and keep what is written, as firmware and kernels expect of
    a real part; anything else is #GP.
    """

    def __init__(self) -> None:
        self._values: dict[int, int] = dict(_INITIAL)
        self.handlers: dict[int, tuple[Callable[[], int | None], Callable[[int], bool]]] = {}
        """Registers that a device owns: index -> (read, write); ``read`` returns None for #GP, ``write`` False."""
        self.on_adjust: Callable[[], None] = _nothing
        """Called when :attr:`tsc_adjust` has changed."""

    @property
    def tsc_adjust(self) -> int:
        """What the guest has added to the time stamp counter (Intel SDM vol. 3, 18.17.3), as a signed number."""
        value = self._values.get(TSC_ADJUST, 0)
        return value - (value >> 63 << 64)

    def read(self, index: int) -> int | None:
        """Answer RDMSR; None is #GP."""
        if index in self.handlers:
            return self.handlers[index][0]()
        return self._values.get(index, 0) if _known(index) else None

    def write(self, index: int, value: int) -> bool:
        """Take WRMSR; False is #GP."""
        if index in self.handlers:
            return self.handlers[index][1](value)
        if not _known(index):
            return False
        self._values[index] = value
        if index == TSC_ADJUST:
            self.on_adjust()
        return True

    def save(self) -> tuple[tuple[int, int], ...]:
        """Return the registers that are kept here, as (index, value)."""
        return tuple(sorted(self._values.items()))

    def restore(self, values: tuple[tuple[int, int], ...]) -> None:
        """Take registers that were saved."""
        self._values = dict(values)
        self.on_adjust()

    def reset(self) -> None:
        """Go to the state after RESET#."""
        self._values = dict(_INITIAL)
        self.on_adjust()


def _known(index: int) -> bool:
    if 0xC0010000 <= index < 0xC0010008 or 0xC0010200 <= index < 0xC001020C:
        return False  # performance counters: RDPMC is not there either
    return index < 0x2000 or 0xC0000000 <= index < 0xC0002000 or 0xC0010000 <= index < 0xC0012000


def _nothing() -> None:
    """Nobody needs to know."""
