"""The local APIC's register values: what the bits of its registers are called (Intel SDM vol. 3A, chapter "APIC")."""

from __future__ import annotations

BASE = 0xFEE00000
VERSION = 0x00050014  # integrated APIC, six LVT entries
FIRST_LEGAL_VECTOR = 16

BASE_BSP = 1 << 8
BASE_ENABLE = 1 << 11
BASE_WRITABLE = 0xFFFFFF000 | BASE_ENABLE | BASE_BSP

SVR_ENABLE = 0x100
LVT_MASKED = 1 << 16
LVT_LEVEL = 1 << 15
LVT_REMOTE_IRR = 1 << 14
LVT_PERIODIC = 1 << 17
LVT_DEADLINE = 1 << 18

# Delivery modes, in LVT and ICR bits 8-10.
FIXED, LOWEST, SMI, NMI, INIT, SIPI, EXTINT = 0, 1, 2, 4, 5, 6, 7

ESR_SEND_ILLEGAL = 1 << 5
ESR_RECEIVE_ILLEGAL = 1 << 6
ESR_REGISTER = 1 << 7

# The local vector table: offsets in the page and the bits a guest can write.
TIMER, THERMAL, PERF, LINT0, LINT1, ERROR = 0x320, 0x330, 0x340, 0x350, 0x360, 0x370
LVT_WRITABLE = {TIMER: 0x700FF, THERMAL: 0x107FF, PERF: 0x107FF, LINT0: 0x1A7FF, LINT1: 0x1A7FF, ERROR: 0x100FF}
LVT_RESET = {TIMER: LVT_MASKED, THERMAL: LVT_MASKED, PERF: LVT_MASKED, LINT0: EXTINT << 8, LINT1: LVT_MASKED, ERROR: LVT_MASKED}
