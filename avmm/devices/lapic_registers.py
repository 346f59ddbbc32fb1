"""The local APIC's register values: what the bits of its registers are called (Intel SDM vol. 3A, chapter "APIC")."""

from __future__ import annotations

from typing import Final

BASE: Final = 0xFEE00000
VERSION: Final = 0x00050014  # integrated APIC, six LVT entries
FIRST_LEGAL_VECTOR: Final = 16

BASE_BSP: Final = 1 << 8
BASE_ENABLE: Final = 1 << 11
BASE_WRITABLE: Final = 0xFFFFFF000 | BASE_ENABLE | BASE_BSP

SVR_ENABLE: Final = 0x100
LVT_MASKED: Final = 1 << 16
LVT_LEVEL: Final = 1 << 15
LVT_REMOTE_IRR: Final = 1 << 14
LVT_PERIODIC: Final = 1 << 17
LVT_DEADLINE: Final = 1 << 18

# Delivery modes, in LVT and ICR bits 8-10.
FIXED: Final = 0
LOWEST: Final = 1
SMI: Final = 2
NMI: Final = 4
INIT: Final = 5
SIPI: Final = 6
EXTINT: Final = 7

ESR_SEND_ILLEGAL: Final = 1 << 5
ESR_RECEIVE_ILLEGAL: Final = 1 << 6
ESR_REGISTER: Final = 1 << 7

# The local vector table: offsets in the page and the bits a guest can write.
TIMER: Final = 0x320
THERMAL: Final = 0x330
PERF: Final = 0x340
LINT0: Final = 0x350
LINT1: Final = 0x360
ERROR: Final = 0x370
LVT_WRITABLE: Final = {TIMER: 0x700FF, THERMAL: 0x107FF, PERF: 0x107FF, LINT0: 0x1A7FF, LINT1: 0x1A7FF, ERROR: 0x100FF}
LVT_RESET: Final = {TIMER: LVT_MASKED, THERMAL: LVT_MASKED, PERF: LVT_MASKED, LINT0: EXTINT << 8, LINT1: LVT_MASKED, ERROR: LVT_MASKED}
