"""The MC146818A against its data sheet, and the CMOS a BIOS reads."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.clock import MILLISECOND, SECOND
from avmm.devices.rtc import UPDATE_WINDOW, A, B, C, D, Rtc
from tests.devices.bench import Bench

BASE = datetime(1999, 12, 31, 23, 59, 58)  # a Friday
TIME = (0x09, 0x08, 0x07, 0x06, 0x04, 0x02, 0x00)

Script = list[tuple[int, int | None, int]]


class Rig:
    def __init__(self, base: datetime | int = BASE, memory: int = 64 << 20, **options: int) -> None:
        self.bench = Bench()
        self.rtc = Rtc(self.bench, base, memory, **options)  # type: ignore[arg-type]
        self.edges: list[int] = []
        self.bench.line(8).connect(lambda level: self.edges.append(self.bench.time) if level else None)

    def get(self, index: int) -> int:
        self.bench.write(self.rtc, 0x70, index)
        return self.bench.read(self.rtc, 0x71)

    def set(self, index: int, value: int) -> None:
        self.bench.write(self.rtc, 0x70, index)
        self.bench.write(self.rtc, 0x71, value)

    def time(self) -> list[int]:
        return [self.get(index) for index in TIME]

    def word(self, index: int) -> int:
        return self.get(index) | self.get(index + 1) << 8


def test_the_year_2000() -> None:
    rig = Rig()
    assert rig.time() == [0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x58]
    assert rig.get(0x32) == 0x19
    rig.bench.pass_time(2 * SECOND - 1)
    assert rig.time() == [0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59]
    rig.bench.pass_time(1)
    assert rig.time() == [0x00, 0x01, 0x01, 7, 0x00, 0x00, 0x00]
    assert rig.get(0x32) == 0x20
    rig.bench.pass_time(59 * 86400 * SECOND)
    assert rig.time() == [0x00, 0x02, 0x29, 3, 0x00, 0x00, 0x00]
    assert rig.rtc.time() == datetime(2000, 2, 29)


def test_base_as_seconds() -> None:
    assert Rig(946684799).rtc.time() == datetime(1999, 12, 31, 23, 59, 59)


@pytest.mark.parametrize(
    ("b", "hour", "register"),
    [
        (0x02, 0, 0x00), (0x02, 23, 0x23), (0x06, 23, 23), (0x00, 0, 0x12), (0x00, 1, 0x01), (0x00, 12, 0x92), (0x00, 13, 0x81),
        (0x00, 23, 0x91), (0x04, 0, 12), (0x04, 11, 11), (0x04, 12, 0x80 | 12), (0x04, 22, 0x80 | 10),
    ],
)  # fmt: skip
def test_hour_formats(b: int, hour: int, register: int) -> None:
    rig = Rig()
    rig.set(B, 0x80 | b)
    for index, value in ((4, register), (2, 0), (0, 0), (7, 5), (8, 6), (9, 9)):
        rig.set(index, value)
    rig.set(B, b)
    assert rig.rtc.time().hour == hour
    rig.bench.pass_time(SECOND)
    assert (rig.get(4), rig.get(0)) == (register, 1)


def test_set_stops_the_time_and_the_divider_keeps_its_phase() -> None:
    rig = Rig()
    rig.bench.pass_time(300 * MILLISECOND)
    rig.set(B, 0x92)
    assert rig.get(B) == 0x82, "SET clears UIE"
    rig.set(0, 0x30)
    rig.bench.pass_time(10 * SECOND)
    assert rig.get(0) == 0x30
    rig.set(B, 0x02)
    rig.bench.pass_time(699 * MILLISECOND)
    assert rig.get(0) == 0x30
    rig.bench.pass_time(MILLISECOND)
    assert rig.get(0) == 0x31


def test_divider_reset_puts_the_next_update_half_a_second_away() -> None:
    rig = Rig()
    rig.set(A, 0x76)
    rig.bench.pass_time(7 * SECOND + 123 * MILLISECOND)
    assert rig.get(0) == 0x58
    rig.set(A, 0x26)
    rig.bench.pass_time(SECOND // 2 - 1)
    assert rig.get(0) == 0x58
    rig.bench.pass_time(1)
    assert rig.get(0) == 0x59


def test_update_in_progress() -> None:
    rig = Rig()
    assert rig.get(A) == 0x26
    rig.bench.pass_time(SECOND - UPDATE_WINDOW - 1)
    assert rig.get(A) == 0x26
    rig.bench.pass_time(1)
    assert rig.get(A) == 0xA6
    rig.set(A, 0xA6)
    rig.set(B, 0x82)
    assert rig.get(A) == 0x26, "SET clears UIP"
    rig.set(B, 0x02)
    rig.bench.pass_time(UPDATE_WINDOW)
    assert (rig.get(A), rig.get(0)) == (0x26, 0x59)


@pytest.mark.parametrize(("rate", "hertz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (10, 64), (15, 2)])
def test_periodic_interrupt(rate: int, hertz: int) -> None:
    rig = Rig()
    rig.set(A, 0x20 | rate)
    rig.set(B, 0x42)
    rig.bench.line(8).connect(lambda level: rig.edges.append(rig.bench.time) if level else None)
    for n in range(1, 2 * hertz // 2 + 1):
        due = -(-n * SECOND // hertz)
        rig.bench.pass_time(due - rig.bench.time)
        assert rig.edges == [due]
        rig.edges.clear()
        assert rig.get(C) & 0xEF == 0xC0
        assert not rig.bench.line(8).level
    assert rig.get(C) == 0


def test_no_periodic_drift_in_an_hour() -> None:
    rig = Rig()
    rig.set(A, 0x2F)
    rig.set(B, 0x42)
    for n in range(1, 7201):
        rig.bench.pass_time(SECOND // 2)
        assert rig.get(C) & 0xC0 == 0xC0, n
    assert rig.edges == [n * SECOND // 2 for n in range(1, 7201)]
    assert rig.rtc.time() == BASE + timedelta(hours=1)


def test_an_unread_register_c_blocks_further_interrupts_and_timers() -> None:
    rig = Rig()
    rig.set(B, 0x72)
    rig.bench.pass_time(SECOND)
    assert len(rig.edges) == 1
    assert rig.bench.clock.next_due() is None
    assert rig.get(C) == 0xD0, "flags go on being set"
    assert rig.bench.clock.next_due() is not None


def test_no_timer_without_an_enabled_interrupt() -> None:
    rig = Rig()
    rig.bench.pass_time(5 * SECOND)
    assert rig.bench.clock.next_due() is None
    assert rig.get(C) == 0x70, "flags without enables (the alarm is at midnight); no IRQF"
    rig.bench.pass_time(5 * SECOND)
    rig.set(B, 0x12)
    assert rig.bench.line(8).level, "enabling an interrupt whose flag is set"
    rig.rtc.reset()
    assert not rig.bench.line(8).level
    assert (rig.get(B), rig.get(C)) == (0x02, 0)


def test_update_ended_interrupt() -> None:
    rig = Rig()
    rig.bench.pass_time(SECOND // 4)
    rig.get(C)
    rig.set(B, 0x12)
    for n in range(1, 4):
        rig.bench.pass_time(SECOND)
        assert rig.get(C) & 0x90 == 0x90
        assert rig.edges[-1] == n * SECOND


@pytest.mark.parametrize(
    ("alarm", "after"),
    [
        ((0x59, 0x59, 0x23), [1, 1 + 86400]),  # seconds, minutes, hours
        ((0x58, 0x59, 0x23), [86400]),
        ((0x00, 0x00, 0xFF), [2, 3602]),
        ((0x30, 0xC0, 0xFF), [32, 92]),
        ((0xFF, 0xFF, 0xFF), [1, 2, 3]),
        ((0x05, 0x10, 0x07), [2 + 7 * 3600 + 10 * 60 + 5]),
        ((0xFF, 0xFF, 0x02), [2 + 7200, 2 + 7201]),
        ((0x60, 0xFF, 0xFF), []),
    ],
)
def test_alarm(alarm: tuple[int, int, int], after: list[int]) -> None:
    rig = Rig()
    for index, value in zip((1, 3, 5), alarm, strict=True):
        rig.set(index, value)
    rig.set(B, 0x22)
    if not after:
        assert rig.bench.clock.next_due() is None
    for seconds in after:
        assert rig.bench.clock.next_due() == seconds * SECOND
        rig.bench.pass_time(seconds * SECOND - rig.bench.time)
        assert rig.edges[-1] == seconds * SECOND
        assert rig.get(C) & 0xA0 == 0xA0
    assert len(rig.edges) == len(after)


def test_alarm_flag_without_interrupt_and_in_12_hour_mode() -> None:
    rig = Rig(datetime(2020, 1, 1, 12, 59, 59))
    rig.set(B, 0x80)
    for index, value in ((4, 0x92), (5, 0x81), (3, 0), (1, 0)):
        rig.set(index, value)
    rig.set(B, 0x00)
    rig.bench.pass_time(SECOND)
    assert rig.get(C) & 0x20


def test_read_only_registers_and_the_index_port() -> None:
    rig = Rig()
    rig.set(D, 0x00)
    rig.set(C, 0xFF)
    assert rig.get(D) == 0x80
    assert rig.get(C) == 0
    rig.bench.write(rig.rtc, 0x70, 0x8D)
    assert rig.rtc.nmi_masked
    assert rig.bench.read(rig.rtc, 0x71) == 0x80
    assert rig.bench.read(rig.rtc, 0x70) == 0xFF


def test_memory_fields() -> None:
    rig = Rig(memory=64 << 20, high_memory=5 << 30, cpus=4)
    assert rig.word(0x15) == 640
    assert rig.word(0x17) == rig.word(0x30) == 63 * 1024
    assert rig.word(0x34) == 48 * 16
    assert rig.word(0x5B) | rig.get(0x5D) << 16 == 5 << 14
    assert rig.get(0x5F) == 3
    assert Rig(memory=1 << 30).word(0x30) == 0xFFFF
    small = Rig(memory=512 << 10)
    assert (small.word(0x15), small.word(0x30), small.word(0x34)) == (512, 0, 0)


def test_drive_fields_boot_order_and_checksum() -> None:
    rig = Rig()
    assert (rig.get(0x10), rig.get(0x14) & 0xC1) == (0, 0)
    rig.rtc.set_floppies((4, 2))
    assert (rig.get(0x10), rig.get(0x14)) == (0x42, 0x47)
    rig.rtc.set_disks(((1024, 16, 63), (100, 4, 17)))
    assert (rig.get(0x12), rig.get(0x19), rig.get(0x1A), rig.get(0x39)) == (0xFF, 47, 47, 0x05)
    assert (rig.word(0x1B), rig.get(0x1D), rig.get(0x20), rig.get(0x23)) == (1024, 16, 0xC8, 63)
    assert (rig.word(0x24), rig.get(0x26), rig.get(0x29), rig.get(0x2C)) == (100, 4, 0xC0, 17)
    assert rig.get(0x2E) << 8 | rig.get(0x2F) == sum(rig.get(i) for i in range(0x10, 0x2E))
    rig.rtc.set_disks((None,))
    assert (rig.get(0x12), rig.word(0x1B), rig.get(0x39)) == (0, 0, 0)
    rig.rtc.set_boot_order(("cdrom", "floppy", "disk"))
    assert (rig.get(0x3D), rig.get(0x38)) == (0x13, 0x21)
    assert rig.get(0x2E) << 8 | rig.get(0x2F) == sum(rig.get(i) for i in range(0x10, 0x2E))
    with pytest.raises(ValueError, match="tape"):
        rig.rtc.set_boot_order(("tape",))


def test_reset_keeps_time_and_cmos() -> None:
    rig = Rig()
    rig.set(0x0F, 0x05)
    rig.set(0x7F, 0x77)
    rig.bench.pass_time(SECOND)
    rig.rtc.reset()
    assert (rig.get(0x0F), rig.get(0x7F), rig.get(0)) == (0x05, 0x77, 0x59)


def test_a_day_of_the_week_is_the_guests_own() -> None:
    rig = Rig()
    rig.set(6, 3)
    rig.bench.pass_time(SECOND)
    assert rig.get(6) == 3
    rig.bench.pass_time(SECOND)
    assert rig.get(6) == 4
    rig.set(6, 0xEE)
    rig.bench.pass_time(SECOND)
    assert rig.get(6) == 0xEE


steps = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 13), st.sampled_from([10, 11, 12, 0x32, 0x40, 0xFF])),
        st.one_of(st.none(), st.integers(0, 255), st.sampled_from([0x26, 0x02, 0x42, 0x72, 0x12, 0x32, 0x80])),
        st.one_of(st.integers(0, 3 * SECOND), st.integers(0, 10**6), st.just(400 * 86400 * SECOND)),
    ),
    max_size=30,
)


def replay(rig: Rig, script: Script) -> list[int]:
    seen = []
    for index, value, pause in script:
        if value is None:
            seen.append(rig.get(index))
        else:
            rig.set(index, value)
        rig.bench.pass_time(pause)
    return seen


@settings(derandomize=True, max_examples=150, deadline=None)
@given(steps, steps)
def test_random_traffic_and_restore_in_the_middle(before: Script, after: Script) -> None:
    rig, other = Rig(), Rig(0)
    replay(rig, before)
    other.bench.time = rig.bench.time
    other.rtc.restore(rig.rtc.save())
    assert other.bench.line(8).level is rig.bench.line(8).level
    rig.edges.clear()
    other.edges.clear()
    assert replay(rig, after) == replay(other, after)
    assert rig.edges == other.edges
    assert rig.rtc.save() == other.rtc.save()


def test_restore_refuses_what_is_not_its_own() -> None:
    with pytest.raises(ValueError, match="RTC"):
        Rig().rtc.restore(object())  # type: ignore[arg-type]
