"""CPUID leaves and synthetic MSRs against the TLFS: values, reserved bits, overlay pages, the crash report."""

from __future__ import annotations

import struct

import pytest

from avmm.hypervisor.features import TSC_ADJUST
from avmm.hypervisor.hyperv import registers as reg
from avmm.hypervisor.hyperv.hyperv import leaf
from avmm.hypervisor.hyperv.stimer import DIRECT
from tests.hypervisor.hyperv.rig import Rig

NATIVE = (0xD, 1, 2, 3)


def test_the_leaves_a_guest_detects_hyper_v_by() -> None:
    assert leaf(0x40000000, 0, NATIVE) == (0x40000006, 0x7263694D, 0x666F736F, 0x76482074)
    assert leaf(0x40000001, 0, NATIVE) == (0x31237648, 0, 0, 0)
    eax, ebx, _, edx = leaf(0x40000003, 0, NATIVE)
    # Reference counter, SynIC, timers, APIC, hypercall, VP index, reset, reference TSC, idle, frequencies, invariant TSC
    assert {bit for bit in range(32) if eax >> bit & 1} == {1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 15}
    assert ebx == 0x30  # not bit 12, or Linux takes itself for the root partition
    assert edx == 1 << 8 | 1 << 10
    assert leaf(0x40000005, 0, NATIVE)[:2] == (1, 1)
    assert leaf(0x40000004, 0, NATIVE)[0] >> 9 & 1 == 0  # auto-EOI is welcome
    assert leaf(0x40000007, 0, NATIVE) == leaf(0x40000100, 0, NATIVE) == (0, 0, 0, 0)
    assert leaf(1, 0, (0, 0, 0, 0))[2] >> 31 == 1
    assert leaf(0, 0, NATIVE)[0] == 7
    assert not leaf(7, 0, NATIVE)[1] >> 1 & 1  # TSC_ADJUST: the reference TSC page relies on a counter that nobody changes


def test_each_advertised_register_is_there() -> None:
    rig = Rig()
    for index in (reg.GUEST_OS_ID, reg.HYPERCALL, reg.VP_INDEX, reg.RESET, reg.TIME_REF_COUNT, reg.REFERENCE_TSC, reg.TSC_FREQUENCY,
                  reg.APIC_FREQUENCY, reg.ICR, reg.TPR, reg.VP_ASSIST_PAGE, reg.SCONTROL, reg.SIEFP, reg.SIMP, reg.EOM, reg.GUEST_IDLE,
                  reg.TSC_INVARIANT, *range(reg.SINT0, reg.SINT0 + 16), *range(reg.STIMER0_CONFIG, reg.STIMER0_CONFIG + 8),
                  *range(reg.CRASH_P0, reg.CRASH_CTL)):  # fmt: skip
        assert rig.read(index) is not None, hex(index)
    assert rig.read(reg.SVERSION) == 1
    assert rig.read(reg.VP_INDEX) == 0
    assert rig.read(reg.TSC_FREQUENCY) == rig.read(reg.APIC_FREQUENCY) == 1_000_000_000
    assert rig.read(reg.CRASH_CTL) == 3 << 62
    assert [rig.read(reg.SINT0 + n) for n in range(16)] == [1 << 16] * 16


@pytest.mark.parametrize("index", [TSC_ADJUST, 0x40000004, 0x40000010, 0x40000024, 0x40000074, 0x40000085, 0x400000A0, 0x400000B8, 0x40000106])
def test_registers_that_are_not_there_fault(index: int) -> None:
    rig = Rig()
    assert rig.read(index) is None
    assert not rig.write(index, 0)


@pytest.mark.parametrize(("index", "value"), [
    (reg.VP_INDEX, 0), (reg.TIME_REF_COUNT, 0), (reg.TSC_FREQUENCY, 1), (reg.APIC_FREQUENCY, 1), (reg.SVERSION, 1), (reg.GUEST_IDLE, 0),
    (reg.HYPERCALL, 0x4), (reg.SIMP, 0x1002), (reg.SIEFP, 0x1801), (reg.REFERENCE_TSC, 0x1003), (reg.VP_ASSIST_PAGE, 0x11),
    (reg.RESET, 2), (reg.TSC_INVARIANT, 2),
    (reg.SINT0 + 2, 1 << 19), (reg.SINT0 + 2, 1 << 32), (reg.SINT0 + 2, 15), (reg.SINT0 + 2, 0x2000F),
    (reg.STIMER0_CONFIG, 1 << 20), (reg.STIMER0_CONFIG, 1 << 13), (reg.STIMER0_CONFIG, DIRECT | 15 << 4), (reg.TPR, 0x100),
    (reg.EOI, 1 << 32), (reg.CRASH_CTL, 1), (reg.SIMP, 1 << 40 | 1), (reg.SIEFP, 8 << 20 | 1),
])  # fmt: skip
def test_writes_that_fault_change_nothing(index: int, value: int) -> None:
    rig = Rig()
    before = rig.read(index)
    assert not rig.write(index, value)
    if index != reg.TIME_REF_COUNT:
        assert rig.read(index) == before


def test_eoi_cannot_be_read() -> None:
    assert Rig().read(reg.EOI) is None


def test_the_hypercall_page_is_an_overlay() -> None:
    rig = Rig()
    rig.memory.write(0x5000, b"guest data" * 400)
    assert rig.write(reg.HYPERCALL, 0x5001)
    assert rig.read(reg.HYPERCALL) == 0x5000
    assert rig.memory.read(0x5000, 10) == b"guest data"
    rig.write(reg.GUEST_OS_ID, 0x8100 << 48)
    assert rig.write(reg.HYPERCALL, 0x5001)
    assert rig.read(reg.HYPERCALL) == 0x5001
    assert rig.memory.read(0x5000, 4096) == bytes.fromhex("0f01d9c3") + b"\xcc" * 4092
    assert rig.write(reg.HYPERCALL, 0x7001)  # moved
    assert rig.memory.read(0x5000, 10) == b"guest data"
    assert rig.memory.read(0x7000, 4) == bytes.fromhex("0f01d9c3")
    rig.write(reg.GUEST_OS_ID, 0)
    assert rig.read(reg.HYPERCALL) == 0x7000
    assert rig.memory.read(0x7000, 4) == bytes(4)


def test_a_locked_hypercall_page_stays() -> None:
    rig = Rig()
    rig.write(reg.GUEST_OS_ID, 1)
    assert rig.write(reg.HYPERCALL, 0x5003)
    assert not rig.write(reg.HYPERCALL, 0x6001)
    assert rig.read(reg.HYPERCALL) == 0x5003
    assert not Rig().write(reg.GUEST_OS_ID + 1, 1 << 11)


def test_a_hypercall_page_beyond_memory_faults() -> None:
    rig = Rig(1 << 20)
    rig.write(reg.GUEST_OS_ID, 1)
    assert not rig.write(reg.HYPERCALL, 1 << 20 | 1)
    assert rig.write(reg.HYPERCALL, 0xFF001)


def test_new_synic_pages_read_zero_and_what_was_there_reappears() -> None:
    rig = Rig()
    rig.memory.write(0x5000, b"\xaa" * 8192)
    for index, page in ((reg.SIMP, 0x5000), (reg.SIEFP, 0x6000)):
        rig.write(index, page | 1)
        assert rig.memory.read(page, 4096) == bytes(4096)
        rig.memory.write(page, b"used")
        rig.write(index, page | 1)
        assert rig.memory.read(page, 4) == b"used"
        rig.write(index, page)
        assert rig.memory.read(page, 4096) == b"\xaa" * 4096


def test_reference_time_by_register_and_by_page() -> None:
    rig = Rig()
    rig.write(reg.REFERENCE_TSC, 0x5001)
    sequence, _, scale, offset = struct.unpack("<IIQq", rig.memory.read(0x5000, 24))
    assert sequence == 1
    assert offset == 0
    for ns in (0, 99, 100, 1, 12345678, 86_400_000_000_000 * 365):
        rig.bench.pass_time(ns)
        tsc = rig.bench.clock.now()
        assert rig.read(reg.TIME_REF_COUNT) == tsc // 100 == (tsc * scale >> 64) + offset


def test_apic_short_cuts() -> None:
    rig = Rig()
    assert rig.write(reg.TPR, 0x50)
    assert rig.read(reg.TPR) == 0x50 == rig.apic.read_memory(0xFEE00080, 4)
    assert rig.write(reg.ICR, 0x0100000000000000 | 1 << 18 | 0x61)
    assert rig.read(reg.ICR) == 0x0100000000000000 | 1 << 18 | 0x61
    assert rig.apic.acknowledge() == 0x61
    rig.apic.inject(0x61)
    assert not rig.apic.intr
    assert rig.write(reg.EOI, 0)
    assert rig.apic.intr


def test_reset_and_idle() -> None:
    rig = Rig()
    idles: list[int] = []
    rig.hyperv.on_idle = lambda: idles.append(1)
    assert rig.read(reg.GUEST_IDLE) == 0
    assert idles == [1]
    assert rig.write(reg.RESET, 0)
    assert not rig.bench.requests
    assert rig.write(reg.RESET, 1)
    assert rig.bench.requests[0].startswith("reset")


def test_the_crash_message_is_traced() -> None:
    rig = Rig()
    rig.memory.write(0x9000, b"Kernel panic - not syncing\n\0\0")
    for number, value in enumerate((1, 2, 3, 0x9000, 29)):
        assert rig.write(reg.CRASH_P0 + number, value)
        assert rig.read(reg.CRASH_P0 + number) == value
    assert rig.write(reg.CRASH_CTL, 3 << 62)
    assert rig.bench.events == [("guest crash", {"parameters": "0x1 0x2 0x3 0x9000 0x1d", "message": "Kernel panic - not syncing\n"})]
    rig.write(reg.CRASH_P0 + 3, 1 << 63)
    rig.write(reg.CRASH_P0 + 4, 1 << 63)
    assert rig.write(reg.CRASH_CTL, 3 << 62)
    assert rig.bench.events[-1][1]["message"] == ""
    assert rig.write(reg.CRASH_CTL, 1 << 63)


def test_saved_state_goes_on_and_reset_forgets() -> None:
    rig = Rig()
    for index, value in ((reg.GUEST_OS_ID, 5), (reg.HYPERCALL, 0x5001), (reg.SIMP, 0x6001), (reg.SIEFP, 0x7001), (reg.SCONTROL, 1),
                         (reg.SINT0 + 2, 0x200F3), (reg.STIMER0_CONFIG, DIRECT | 8 | 0x60 << 4), (reg.STIMER0_COUNT, 1000)):  # fmt: skip
        assert rig.write(index, value)
    state = rig.hyperv.save()
    other = Rig()
    other.memory.write(0, rig.memory.read(0, 0x10000))
    other.hyperv.restore(state)
    assert other.hyperv.save() == state
    assert other.apic.auto_eoi == 1 << 0xF3
    other.bench.pass_time(100_000)
    assert other.apic.acknowledge() == 0x60
    other.write(reg.HYPERCALL, 0)
    assert other.memory.read(0x5000, 4) == bytes(4)
    with pytest.raises(ValueError, match="version 1"):
        other.hyperv.restore("nonsense")  # type: ignore[arg-type]
    rig.hyperv.reset()
    fresh = Rig().hyperv.save()
    assert rig.hyperv.save() == fresh
    assert rig.apic.auto_eoi == 0
    rig.bench.pass_time(100_000)
    assert not rig.apic.intr
