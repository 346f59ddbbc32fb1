"""ACPI fixed hardware against the ACPI specification's chapter on it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.clock import SECOND
from avmm.devices.power import AcpiPower
from tests.devices.bench import Bench

STATUS, ENABLE, CONTROL, TIMER, GPE_STATUS, GPE_ENABLE = 0xB000, 0xB002, 0xB004, 0xB008, 0xB010, 0xB012
PWRBTN = 0x100
HALF_PERIOD = -(-(1 << 23) * SECOND // 3579545)  # of the timer's bit 23


def sci(bench: Bench) -> bool:
    return bench.line(9).level


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def power(bench: Bench) -> AcpiPower:
    return AcpiPower(bench)


def test_timer_counts_at_3_579545_mhz_and_wraps_at_24_bits(bench: Bench, power: AcpiPower) -> None:
    assert bench.read(power, TIMER, 4) == 0
    bench.pass_time(SECOND)
    assert bench.read(power, TIMER, 4) == 3579545
    assert [bench.read(power, TIMER + n) for n in range(4)] == list((3579545).to_bytes(4, "little"))
    assert bench.read(power, TIMER, 2) == 3579545 & 0xFFFF
    bench.pass_time(9 * SECOND)
    assert bench.read(power, TIMER, 4) == 35795450 % (1 << 24)


def test_acpi_mode_is_switched_through_the_smi_port(bench: Bench, power: AcpiPower) -> None:
    assert bench.read(power, CONTROL, 2) == 0
    bench.write(power, 0xB2, 0xF1)
    assert bench.read(power, CONTROL, 2) == 1
    bench.write(power, 0xB2, 0x55)
    assert (bench.read(power, CONTROL, 2), bench.read(power, 0xB2)) == (1, 0x55)
    bench.write(power, 0xB2, 0xF0)
    bench.write(power, 0xB3, 0xA5)
    assert (bench.read(power, CONTROL, 2), bench.read(power, 0xB3), bench.read(power, 0xB2)) == (0, 0xA5, 0xF0)


def test_power_button_raises_the_sci_until_its_status_is_cleared(bench: Bench, power: AcpiPower) -> None:
    assert not power.press_power_button()
    assert not sci(bench)
    bench.write(power, 0xB2, 0xF1)
    bench.write(power, ENABLE, PWRBTN, 2)
    assert sci(bench)  # it was pressed before
    assert bench.read(power, STATUS, 2) == PWRBTN
    bench.write(power, STATUS, 0x00FF, 2)  # other bits
    assert sci(bench)
    bench.write(power, STATUS, PWRBTN, 2)
    assert not sci(bench)
    assert power.press_power_button()
    assert sci(bench)
    bench.write(power, STATUS + 1, 1)  # by byte
    assert not sci(bench)
    bench.write(power, ENABLE, 0, 2)
    assert not power.press_power_button()


@pytest.mark.parametrize("size", [1, 2])
def test_soft_off(bench: Bench, power: AcpiPower, size: int) -> None:
    bench.write(power, CONTROL, 0x0001, 2)
    assert bench.requests == []
    if size == 2:
        bench.write(power, CONTROL, 0x2001, 2)
    else:
        bench.write(power, CONTROL + 1, 0x20)
    assert bench.requests == ["power off: the guest entered ACPI S5"]
    assert bench.read(power, CONTROL, 2) == 1  # SLP_EN reads as 0


def test_other_sleep_types_are_not_offered(bench: Bench, power: AcpiPower) -> None:
    bench.write(power, CONTROL, 0x2400, 2)
    assert bench.requests == []
    assert bench.events == [("acpi-power.sleep", {"type": 1})]
    assert bench.read(power, CONTROL, 2) == 0x0400


def test_timer_carry_sets_its_status_and_interrupts(bench: Bench, power: AcpiPower) -> None:
    assert bench.clock.next_due() is None
    bench.write(power, 0xB2, 0xF1)
    bench.write(power, ENABLE, 1, 2)
    bench.pass_time(HALF_PERIOD - 1)
    assert (sci(bench), bench.read(power, STATUS, 2)) == (False, 0)
    bench.pass_time(1)
    assert (sci(bench), bench.read(power, STATUS, 2)) == (True, 1)
    bench.write(power, STATUS, 1, 2)
    assert (sci(bench), bench.read(power, STATUS, 2)) == (False, 0)
    bench.pass_time(HALF_PERIOD)
    assert sci(bench)
    bench.write(power, ENABLE, 0, 2)
    assert not sci(bench)
    assert bench.clock.next_due() is None


def test_general_purpose_events(bench: Bench, power: AcpiPower) -> None:
    bench.write(power, 0xB2, 0xF1)
    power.raise_gpe(9)
    assert bench.read(power, GPE_STATUS, 2) == 0x200
    assert not sci(bench)
    bench.write(power, GPE_ENABLE + 1, 0x02)
    assert sci(bench)
    bench.write(power, GPE_STATUS + 1, 0x02)
    assert not sci(bench)


def test_block_can_be_elsewhere() -> None:
    bench = Bench()
    power = AcpiPower(bench, 0x600)
    assert {(ports.first, ports.count) for ports in power.ports} == {(0x600, 4), (0x604, 2), (0x608, 4), (0x610, 4), (0xB2, 2)}
    bench.pass_time(SECOND)
    assert bench.read(power, 0x608, 4) == 3579545
    bench.write(power, 0x604, 0x2000, 2)
    assert len(bench.requests) == 1


def test_reset(bench: Bench, power: AcpiPower) -> None:
    bench.write(power, 0xB2, 0xF1)
    bench.write(power, ENABLE, 0x101, 2)
    power.press_power_button()
    power.reset()
    assert not sci(bench)
    assert [bench.read(power, port, 2) for port in (STATUS, ENABLE, CONTROL)] == [0, 0, 0]
    assert bench.clock.next_due() is None


STEP = st.tuples(
    st.integers(0, 3),
    st.sampled_from([*range(0xB000, 0xB006), *range(0xB008, 0xB00C), *range(0xB010, 0xB014), 0xB2, 0xB3]),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 0xFFFFFFFF),
)


def drive(bench: Bench, power: AcpiPower, steps: list[tuple[int, int, int, int]]) -> list[object]:
    seen: list[object] = []
    for kind, port, size, value in steps:
        if kind == 0:
            seen.append(bench.read(power, port, size))
        elif kind == 1:
            bench.write(power, port, value & ((1 << 8 * size) - 1), size)
        elif kind == 2:
            bench.pass_time(value)
        else:
            seen.append(power.press_power_button())
        seen.append(sci(bench))
    return [*seen, power.save(), bench.clock.next_due()]


@settings(derandomize=True, deadline=None)
@given(st.lists(STEP, max_size=25), st.lists(STEP, max_size=25))
def test_any_accesses_and_restoring_in_between(first: list[tuple[int, int, int, int]], second: list[tuple[int, int, int, int]]) -> None:
    bench, other_bench = Bench(), Bench()
    power, other = AcpiPower(bench), AcpiPower(other_bench)
    drive(bench, power, first)
    other_bench.time = bench.time
    other.restore(power.save())
    assert drive(other_bench, other, second) == drive(bench, power, second)


def test_restore_refuses_what_is_not_its_own(power: AcpiPower) -> None:
    with pytest.raises(ValueError, match="ACPI"):
        power.restore(object())  # type: ignore[arg-type]
