"""The local APIC against the SDM's rules for priorities, EOI, the timer and LINT0."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.devices.lapic import LocalApic
from avmm.devices.lapic_registers import BASE, LINT0, LINT1, TIMER
from tests.devices.bench import Bench

EOI, TPR, PPR, SVR, ESR, ICR, ICR_HIGH = 0xB0, 0x80, 0xA0, 0xF0, 0x280, 0x300, 0x310
ISR, TMR, IRR = 0x100, 0x180, 0x200
INITIAL, CURRENT, DIVIDE = 0x380, 0x390, 0x3E0
BY_1 = 0b1011


class FakePic:
    def __init__(self) -> None:
        self.intr = False
        self.vector = 0x08

    def acknowledge(self) -> int | None:
        self.intr = False
        return self.vector


class Rig:
    def __init__(self, enable: bool = True) -> None:
        self.bench = Bench()
        self.pic = FakePic()
        self.apic = LocalApic(self.bench, self.pic)
        self.levels: list[bool] = []
        self.eois: list[int] = []
        self.nmis = 0
        self.apic.output = self.levels.append
        self.apic.on_eoi = self.eois.append
        self.apic.on_nmi = self._nmi
        if enable:
            self.write(SVR, 0x1FF)

    def _nmi(self) -> None:
        self.nmis += 1

    def read(self, offset: int, size: int = 4) -> int:
        return self.apic.read_memory(BASE + offset, size)

    def write(self, offset: int, value: int) -> None:
        self.apic.write_memory(BASE + offset, 4, value)

    def request_pic(self) -> None:
        self.pic.intr = True
        self.apic.pic_changed(True)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0x20, 0), (0x30, 0x50014), (TPR, 0), (0xD0, 0), (0xE0, 0xFFFFFFFF), (SVR, 0xFF), (TIMER, 0x10000), (LINT0, 0x700), (LINT1, 0x10000)],
)
def test_reset_values(offset: int, value: int) -> None:
    rig = Rig()
    rig.write(TPR, 0x55)
    rig.write(LINT0, 0x10000)
    rig.apic.reset()
    assert rig.read(offset) == value
    assert rig.apic.base == 0xFEE00900


@pytest.mark.parametrize(
    ("offset", "written", "reads"),
    [
        (0x20, 0xFFFFFFFF, 0xFF000000),
        (0xD0, 0x12345678, 0x12000000),
        (0xE0, 0, 0x0FFFFFFF),
        (TPR, 0x1FF, 0xFF),
        (0x30, 0, 0x50014),
        (DIVIDE, 0xFF, 0xB),
        (TIMER, 0xFFFFFFFF, 0x700FF),
        (LINT1, 0xFFFFFFFF, 0x1A7FF),
        (ICR_HIGH, 0xFFFFFFFF, 0xFF000000),
    ],
)
def test_writable_bits(offset: int, written: int, reads: int) -> None:
    rig = Rig()
    rig.write(offset, written)
    assert rig.read(offset) == reads


def test_requests_are_taken_by_priority_and_nest_by_class() -> None:
    rig = Rig()
    rig.apic.inject(0x41)
    rig.apic.inject(0x52)
    assert rig.levels == [True]
    assert rig.read(IRR + 0x20) == 1 << 1 | 1 << 18  # vectors 0x41 and 0x52
    assert rig.apic.acknowledge() == 0x52
    assert rig.read(ISR + 0x20) == 1 << 18
    assert rig.read(PPR) == 0x50
    assert not rig.apic.intr
    rig.apic.inject(0x5F)  # the same class must wait
    assert not rig.apic.intr
    rig.apic.inject(0x60)
    assert rig.apic.acknowledge() == 0x60
    assert rig.apic.acknowledge() == 0xFF  # 0x5F is held back: spurious, nothing enters service
    assert rig.read(PPR) == 0x60
    rig.write(EOI, 0)
    rig.write(EOI, 0)
    assert [rig.apic.acknowledge(), rig.read(PPR)] == [0x5F, 0x50]
    rig.write(EOI, 0)
    assert rig.apic.acknowledge() == 0x41
    rig.write(EOI, 0)
    rig.write(EOI, 0)  # nothing in service: no harm
    assert rig.apic.acknowledge() is None
    assert rig.levels[-1] is False


@pytest.mark.parametrize(("tpr", "passes"), [(0x00, True), (0x4F, True), (0x50, False), (0x5F, False), (0xF0, False)])
def test_task_priority_holds_back_its_class(tpr: int, passes: bool) -> None:
    rig = Rig()
    rig.write(TPR, tpr)
    rig.apic.inject(0x5A)
    assert rig.apic.intr is passes
    assert rig.read(PPR) == tpr
    rig.write(TPR, 0)
    assert rig.apic.intr
    assert rig.levels == [True]


def test_level_triggered_sets_tmr_and_broadcasts_its_eoi() -> None:
    rig = Rig()
    rig.apic.inject(0x61, level_triggered=True)
    assert rig.read(TMR + 0x30) == 1 << 1
    assert rig.apic.acknowledge() == 0x61
    rig.write(EOI, 0)
    assert rig.eois == [0x61]
    rig.apic.inject(0x61)
    assert rig.read(TMR + 0x30) == 0
    rig.apic.acknowledge()
    rig.write(EOI, 0)
    assert rig.eois == [0x61]


@pytest.mark.parametrize("mode", ["software off", "globally off", "ExtINT", "masked", "fixed"])
def test_pic_reaches_the_processor_as_lint0_says(mode: str) -> None:
    rig = Rig(enable=mode != "software off")
    if mode == "globally off":
        assert rig.apic.write_base(0xFEE00100)
    rig.write(LINT0, {"masked": 0x10700, "fixed": 0x33}.get(mode, 0x700))
    rig.request_pic()
    if mode == "masked":
        assert not rig.apic.intr
        assert rig.apic.acknowledge() is None
        rig.write(LINT0, 0x700)  # unmasked while the PIC asks
        assert rig.levels == [True]
    assert rig.apic.intr
    assert rig.apic.acknowledge() == (0x33 if mode == "fixed" else 0x08)
    assert rig.levels == [True, False]
    assert rig.read(ISR + 0x10) == {"fixed": 1 << 0x13, "globally off": 0xFFFFFFFF}.get(mode, 0)


def test_fixed_comes_before_extint() -> None:
    rig = Rig()
    rig.request_pic()
    rig.apic.inject(0x30)
    assert [rig.apic.acknowledge(), rig.apic.acknowledge(), rig.apic.acknowledge()] == [0x30, 0x08, None]


def test_level_triggered_lint0_repeats_until_the_pin_falls() -> None:
    rig = Rig()
    rig.write(LINT0, 0x8044)
    rig.apic.pic_changed(True)
    assert rig.read(LINT0) == 0xC044  # remote IRR
    assert rig.apic.acknowledge() == 0x44
    rig.write(EOI, 0)
    assert rig.apic.acknowledge() == 0x44
    rig.apic.pic_changed(False)
    rig.write(EOI, 0)
    assert rig.apic.acknowledge() is None
    assert rig.read(LINT0) == 0x8044


def test_software_disable_masks_the_lvt_and_refuses_messages() -> None:
    rig = Rig()
    rig.write(LINT1, 0x400)
    rig.write(SVR, 0xFF)
    assert rig.read(LINT1) == 0x10400
    rig.write(LINT1, 0x400)
    assert rig.read(LINT1) == 0x10400
    rig.apic.inject(0x40)
    rig.write(SVR, 0x1FF)
    assert not rig.apic.intr


def test_nmi_by_lint1_and_by_ipi() -> None:
    rig = Rig()
    rig.apic.lint1_changed(True)
    rig.apic.lint1_changed(False)
    assert rig.nmis == 0
    rig.write(LINT1, 0x400)
    rig.apic.lint1_changed(True)
    rig.write(ICR, 0x40400)
    assert rig.nmis == 2


@pytest.mark.parametrize(
    ("high", "low", "arrives"),
    [
        (0, 0x40055, True),  # self
        (0, 0x80055, True),  # all including self
        (0, 0xC0055, False),  # all but self
        (0x00, 0x00055, True),  # physical 0: us
        (0x01, 0x00055, False),
        (0xFF, 0x00055, True),
        (0x02, 0x00855, True),  # logical, flat
        (0x04, 0x00855, False),
        (0x00, 0x00155, True),  # lowest priority
        (0x00, 0x00500, False),  # INIT
        (0x00, 0x00655, False),  # SIPI
    ],
)
def test_ipis(high: int, low: int, arrives: bool) -> None:
    rig = Rig()
    rig.write(0xD0, 0x02000000)
    rig.write(ICR_HIGH, high << 24)
    rig.write(ICR, low | 0x1000)
    assert rig.apic.acknowledge() == (0x55 if arrives else None)
    assert rig.read(ICR) == low  # delivery status is idle at once


def test_logical_cluster_destination() -> None:
    rig = Rig()
    rig.write(0xE0, 0x0FFFFFFF)
    rig.write(0xD0, 0x21000000)
    for destination, arrives in ((0x21, True), (0x22, False), (0x31, False), (0xFF, True)):
        rig.write(ICR_HIGH, destination << 24)
        rig.write(ICR, 0x855)
        assert rig.apic.acknowledge() == (0x55 if arrives else None)
        rig.write(EOI, 0)


def test_errors_are_latched_by_writing_esr_and_interrupt_once() -> None:
    rig = Rig()
    rig.write(0x370, 0xFE)
    rig.write(ICR, 0x40005)
    assert rig.apic.acknowledge() == 0xFE
    rig.write(EOI, 0)
    assert rig.read(ESR) == 0
    rig.apic.inject(3)
    assert rig.read(0x3F0) == 0  # a reserved register
    rig.write(ESR, 0)
    assert rig.read(ESR) == 0xE0
    rig.write(ESR, 0)
    assert rig.read(ESR) == 0
    rig.write(0x370, 0x02)  # its own vector is illegal: no endless loop
    rig.apic.inject(3)
    assert rig.read(IRR) == 0


@pytest.mark.parametrize(("code", "divisor"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)])
def test_one_shot_counts_down_from_the_clock(code: int, divisor: int) -> None:
    rig = Rig()
    rig.write(DIVIDE, code)
    rig.write(TIMER, 0x30)
    rig.write(INITIAL, 1000)
    rig.bench.pass_time(400 * divisor)
    assert rig.read(CURRENT) == 600
    rig.bench.pass_time(600 * divisor - 1)
    assert not rig.apic.intr
    rig.bench.pass_time(1)
    assert rig.apic.acknowledge() == 0x30
    assert rig.read(CURRENT) == 0
    rig.write(EOI, 0)
    rig.bench.pass_time(10000 * divisor)
    assert not rig.apic.intr


def test_periodic_timer_keeps_its_phase_through_masking() -> None:
    rig = Rig()
    rig.write(DIVIDE, BY_1)
    rig.write(TIMER, 0x20030)
    rig.write(INITIAL, 100_000)
    fired = 0
    for _ in range(5):
        rig.bench.pass_time(100_000)
        fired += rig.apic.acknowledge() == 0x30
        rig.write(EOI, 0)
    assert fired == 5
    rig.write(TIMER, 0x30030)
    rig.bench.pass_time(250_000)
    assert not rig.apic.intr
    assert rig.read(CURRENT) == 50_000
    rig.write(TIMER, 0x20030)
    levels = len(rig.levels)
    rig.bench.pass_time(49_999)
    assert len(rig.levels) == levels
    rig.bench.pass_time(1)
    assert rig.levels[levels:] == [True]
    rig.write(INITIAL, 0)  # stops it
    rig.apic.acknowledge()
    rig.write(EOI, 0)
    rig.bench.pass_time(1_000_000)
    assert not rig.apic.intr
    assert rig.bench.clock.next_due() is None


def test_a_period_of_one_tick_does_not_make_the_host_spin() -> None:
    rig = Rig()
    rig.write(DIVIDE, BY_1)
    rig.write(TIMER, 0x20030)
    rig.write(INITIAL, 1)
    due = rig.bench.clock.next_due()
    assert due is not None
    assert due >= 10_000
    rig.bench.pass_time(1_000_000)
    assert rig.apic.acknowledge() == 0x30


def test_finished_one_shot_does_not_revive_as_periodic() -> None:
    rig = Rig()
    rig.write(TIMER, 0x30)
    rig.write(INITIAL, 100)
    rig.bench.pass_time(1000)
    rig.write(TIMER, 0x20030)
    assert rig.read(CURRENT) == 0
    assert rig.bench.clock.next_due() is None


def test_new_divisor_keeps_the_count() -> None:
    rig = Rig()
    rig.write(DIVIDE, BY_1)
    rig.write(TIMER, 0x30)
    rig.write(INITIAL, 1000)
    rig.bench.pass_time(300)
    rig.write(DIVIDE, 0)
    assert rig.read(CURRENT) == 700
    rig.bench.pass_time(1399)
    assert rig.levels == []
    rig.bench.pass_time(1)
    assert rig.levels == [True]


def test_base_msr() -> None:
    rig = Rig()
    rig.apic.inject(0x40)
    assert not rig.apic.write_base(0xFEE00D00)  # x2APIC
    assert not rig.apic.write_base(1 << 52 | 0xFEE00900)
    assert rig.apic.write_base(0xFEE00000)
    assert rig.apic.base == 0xFEE00100
    assert rig.read(0x30) == 0xFFFFFFFF
    assert rig.levels[-1] is False
    rig.write(SVR, 0x1FF)
    assert rig.apic.write_base(0xFEE00900)
    assert rig.read(SVR) == 0xFF  # as after RESET


def test_odd_accesses_are_tolerated() -> None:
    rig = Rig()
    assert [rig.read(0x30, 1), rig.read(0x31, 1), rig.read(0x32, 2), rig.read(0x34, 4)] == [0x14, 0, 5, 0]
    assert rig.read(0x30, 8) == 0x50014
    rig.apic.write_memory(BASE + TPR, 1, 0x55)
    rig.apic.write_memory(BASE + TPR + 4, 4, 0x55)
    assert rig.read(TPR) == 0
    rig.apic.write_memory(BASE + TPR, 8, 0x1234_0000_0066)
    assert rig.read(TPR) == 0x66


def drive(rig: Rig, steps: list[tuple[int, int, int]]) -> list[object]:
    seen: list[object] = []
    for kind, offset, value in steps:
        match kind:
            case 0:
                rig.apic.write_memory(BASE + offset, 4, value)
            case 1:
                seen.append(rig.read(offset))
            case 2:
                rig.apic.inject(value & 0xFF, bool(value & 0x100))
            case 3:
                seen.append(rig.apic.acknowledge())
            case 4:
                rig.pic.intr = bool(value & 1)
                rig.apic.pic_changed(rig.pic.intr)
            case 5:
                rig.bench.pass_time(value % 500_000)
        # The one invariant: the output follows intr.
        assert rig.apic.intr == (rig.levels[-1] if rig.levels else False)
    return [*seen, rig.apic.save()]


STEP = st.tuples(
    st.integers(0, 5),
    st.one_of(st.sampled_from([EOI, TPR, SVR, ICR, TIMER, LINT0, INITIAL, DIVIDE, CURRENT, PPR, ESR]), st.integers(0, 0xFFF)),
    st.one_of(st.integers(0, 0xFFFFFFFF), st.sampled_from([0, 0x1FF, 0x20040, 0x700, 0x8044, 20_000])),
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(STEP, max_size=30), st.lists(STEP, max_size=30))
def test_any_accesses_and_restoring_in_between(first: list[tuple[int, int, int]], second: list[tuple[int, int, int]]) -> None:
    one = Rig()
    drive(one, first)
    other = Rig(enable=False)
    other.bench.time = one.bench.time
    other.pic.intr = one.pic.intr
    other.apic.restore(one.apic.save())
    assert drive(other, second) == drive(one, second)


def test_restore_refuses_what_is_not_its_own() -> None:
    with pytest.raises(ValueError, match="local APIC"):
        Rig().apic.restore(object())  # type: ignore[arg-type]
