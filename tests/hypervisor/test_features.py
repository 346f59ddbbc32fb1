"""CPUID and the model-specific registers."""

from __future__ import annotations

import pytest

from avmm.hypervisor.features import APIC_BASE, PAT, TSC_ADJUST, Msrs, cpuid

ALL = (0xFFFFFFFF,) * 4


def bit(value: int, number: int) -> bool:
    return bool(value >> number & 1)


def test_what_is_not_there_is_not_shown() -> None:
    _, ebx, ecx, edx = cpuid(1, 0, ALL)
    for number in (3, 12, 17, 21, 24, 26, 27, 28, 30):
        assert not bit(ecx, number), number
    for number in (7, 12, 14, 28):
        assert not bit(edx, number), number
    for number in (0, 4, 5, 6, 8, 9, 15, 24, 25, 26):  # FPU, TSC, MSR, PAE, CX8, APIC, CMOV, FXSR, SSE, SSE2
        assert bit(edx, number), number
    assert ebx >> 16 == 1  # one logical processor, APIC id 0
    assert not bit(cpuid(0x80000001, 0, ALL)[2], 2)  # SVM
    assert bit(cpuid(0x80000001, 0, ALL)[3], 29)  # long mode


@pytest.mark.parametrize("leaf", [2, 4, 5, 6, 8, 0xB, 0xD, 0x40000001, 0x4000FFFF, 0x7FFFFFFF])
def test_leaves_that_are_empty(leaf: int) -> None:
    assert cpuid(leaf, 0, ALL) == (0, 0, 0, 0)


def test_the_hypervisor_says_that_it_is_there() -> None:
    assert bit(cpuid(1, 0, (0, 0, 0, 0))[2], 31)
    a, b, c, d = cpuid(0x40000000, 0, ALL)
    assert a == 0x40000000
    assert b"".join(part.to_bytes(4, "little") for part in (b, c, d)) == b"avmmavmmavmm"


def test_limits() -> None:
    assert cpuid(0, 0, (0xD, 1, 2, 3)) == (7, 1, 2, 3)
    assert cpuid(0x80000000, 0, (0x8000001E, 1, 2, 3)) == (0x80000008, 1, 2, 3)
    assert cpuid(0x80000008, 0, ALL)[0] == 48 << 8 | 40
    assert cpuid(0x80000007, 0, ALL)[3] == 1 << 8
    assert cpuid(7, 1, ALL) == (0, 0, 0, 0)
    assert not bit(cpuid(7, 0, ALL)[1], 5)  # AVX2
    assert cpuid(0x80000002, 0, (1, 2, 3, 4)) == (1, 2, 3, 4)


def test_msrs_keep_what_is_written() -> None:
    msrs = Msrs()
    assert msrs.read(PAT) == 0x0007040600070406
    assert msrs.read(0x1A0) == 0
    assert msrs.write(0x1A0, 5)
    assert msrs.read(0x1A0) == 5
    msrs.write(PAT, 0)
    msrs.reset()
    assert (msrs.read(0x1A0), msrs.read(PAT)) == (0, 0x0007040600070406)


@pytest.mark.parametrize("index", [0x2000, 0x40000000, 0xBFFFFFFF, 0xC0002000, 0xC0012000, 0xFFFFFFFF])
def test_unknown_msrs_are_refused(index: int) -> None:
    msrs = Msrs()
    assert msrs.read(index) is None
    assert not msrs.write(index, 0)


def test_a_device_owns_its_msr() -> None:
    msrs = Msrs()
    value = [0xFEE00900]

    def write(new: int) -> bool:
        value[0] = new
        return new != 0xBAD

    msrs.handlers[APIC_BASE] = (lambda: value[0], write)
    assert msrs.read(APIC_BASE) == 0xFEE00900
    assert msrs.write(APIC_BASE, 1)
    assert not msrs.write(APIC_BASE, 0xBAD)
    msrs.reset()
    assert msrs.read(APIC_BASE) == 0xBAD  # the device resets itself


def test_the_adjustment_of_the_time_stamp_counter() -> None:
    msrs = Msrs()
    heard: list[int] = []
    msrs.on_adjust = lambda: heard.append(msrs.tsc_adjust)
    assert bit(cpuid(7, 0, (0, 0, 0, 0))[1], 1)
    assert msrs.read(TSC_ADJUST) == 0
    msrs.write(TSC_ADJUST, (1 << 64) - 5)
    saved = msrs.save()
    msrs.reset()
    msrs.restore(saved)
    assert heard == [-5, 0, -5]
    assert msrs.read(TSC_ADJUST) == (1 << 64) - 5
