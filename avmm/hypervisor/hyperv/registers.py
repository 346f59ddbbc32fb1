"""Hyper-V's CPUID leaves, synthetic MSR numbers and their bits.

Names and numbers as in the Hypervisor Top Level Functional Specification, Feature Discovery, and the list of MSRs.
"""

from __future__ import annotations

import struct
from typing import Final

Quad = tuple[int, int, int, int]

GUEST_OS_ID: Final = 0x40000000
HYPERCALL: Final = 0x40000001
VP_INDEX: Final = 0x40000002
RESET: Final = 0x40000003
TIME_REF_COUNT: Final = 0x40000020
REFERENCE_TSC: Final = 0x40000021
TSC_FREQUENCY: Final = 0x40000022
APIC_FREQUENCY: Final = 0x40000023
EOI: Final = 0x40000070
ICR: Final = 0x40000071
TPR: Final = 0x40000072
VP_ASSIST_PAGE: Final = 0x40000073
SCONTROL: Final = 0x40000080
SVERSION: Final = 0x40000081
SIEFP: Final = 0x40000082
SIMP: Final = 0x40000083
EOM: Final = 0x40000084
SINT0: Final = 0x40000090
STIMER0_CONFIG: Final = 0x400000B0
STIMER0_COUNT: Final = 0x400000B1
GUEST_IDLE: Final = 0x400000F0
CRASH_P0: Final = 0x40000100
CRASH_CTL: Final = 0x40000105
TSC_INVARIANT: Final = 0x40000118

SINTS: Final = 16
TIMERS: Final = 4
CRASH_PARAMETERS: Final = 5

PAGE_ENABLE: Final = 1
PAGE_NUMBER: Final = ~0xFFF & (1 << 64) - 1
PAGE_RESERVED: Final = 0xFFE  # of SIMP, SIEFP, REFERENCE_TSC, VP_ASSIST_PAGE
HYPERCALL_LOCKED: Final = 2
HYPERCALL_RESERVED: Final = 0xFFC

CRASH_NOTIFY: Final = 1 << 63
CRASH_MESSAGE: Final = 1 << 62

TSC_HZ: Final = 1_000_000_000
"""The time stamp counter counts ns of machine time."""
APIC_HZ: Final = 1_000_000_000
"""One bus clock of the local APIC's timer is one ns."""
REFERENCE_NS: Final = 100
"""Reference time counts in units of 100 ns."""
HYPERCALL_CODE: Final = bytes.fromhex("0f01d9c3")  # vmmcall; ret

_EAX_3: Final = sum(1 << bit for bit in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 15))
"""Reference counter, SynIC, timers, APIC short-cuts, hypercall, VP index, reset, reference TSC, idle, frequencies, invariant TSC."""
_EBX_3: Final = 1 << 4 | 1 << 5  # post messages, signal events
_EDX_3: Final = 1 << 8 | 1 << 10
"""Frequencies, crash registers. Direct-mode timers (bit 19) work, but are not told of: with them Linux stops its only clock
event when hv_vmbus is unloaded (hv_stimer_cleanup); without, it goes back to the local APIC's timer."""
_RELAXED_TIMING: Final = 1 << 5

LEAVES: dict[int, Quad] = {
    0x40000000: (0x40000006, *struct.unpack("<3I", b"Microsoft Hv")),
    0x40000001: (int.from_bytes(b"Hv#1", "little"), 0, 0, 0),
    0x40000002: (0, 0, 0, 0),
    0x40000003: (_EAX_3, _EBX_3, 0, _EDX_3),
    0x40000004: (_RELAXED_TIMING, 0xFFFFFFFF, 0, 0),  # auto-EOI is not deprecated here: it saves the guest an exit
    0x40000005: (1, 1, 0, 0),
    0x40000006: (0, 0, 0, 0),
}
