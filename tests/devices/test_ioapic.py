"""The I/O APIC against the 82093AA datasheet."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.devices.ioapic import BASE, IoApic
from tests.devices.bench import Bench

LEVEL = 0x8000
MASKED = 0x10000
REMOTE_IRR = 0x4000


class Rig:
    def __init__(self) -> None:
        self.sent: list[tuple[int, bool, int]] = []
        self.apic = IoApic(Bench(), lambda vector, level, mode: self.sent.append((vector, level, mode)))

    def read(self, index: int) -> int:
        self.apic.write_memory(BASE, 4, index)
        return self.apic.read_memory(BASE + 0x10, 4)

    def write(self, index: int, value: int) -> None:
        self.apic.write_memory(BASE, 4, index)
        self.apic.write_memory(BASE + 0x10, 4, value)

    def route(self, number: int, low: int, high: int = 0) -> None:
        self.write(0x11 + 2 * number, high)
        self.write(0x10 + 2 * number, low)


def test_identification() -> None:
    rig = Rig()
    assert rig.read(1) == 0x00170011
    rig.write(0, 0xFFFFFFFF)
    assert rig.read(0) == rig.read(2) == 0x0F000000
    assert rig.apic.read_memory(BASE, 4) == 2
    rig.write(1, 0)
    assert rig.read(1) == 0x00170011
    assert rig.read(0x40) == 0
    assert len(rig.apic.inputs) == 24


def test_all_entries_are_masked_after_reset() -> None:
    rig = Rig()
    rig.route(5, 0x35, 0xFF000000)
    assert (rig.read(0x1A), rig.read(0x1B)) == (0x35, 0xFF000000)
    rig.apic.reset()
    assert all(rig.read(0x10 + 2 * number) == MASKED and rig.read(0x11 + 2 * number) == 0 for number in range(24))


@pytest.mark.parametrize("number", [0, 2, 15, 23])
def test_edge_sends_once_per_rising_edge(number: int) -> None:
    rig = Rig()
    rig.route(number, 0x40 + number)
    for level in (True, True, False, True):
        rig.apic.inputs[number](level)
    assert rig.sent == [(0x40 + number, False, 0)] * 2


def test_edge_at_a_masked_entry_is_lost() -> None:
    rig = Rig()
    rig.route(1, MASKED | 0x31)
    rig.apic.inputs[1](True)
    rig.route(1, 0x31)
    assert rig.sent == []


def test_level_waits_for_eoi_and_repeats_while_asserted() -> None:
    rig = Rig()
    rig.route(9, LEVEL | 0x39)
    rig.apic.inputs[9](True)
    assert rig.read(0x22) == LEVEL | REMOTE_IRR | 0x39
    rig.apic.inputs[9](False)
    rig.apic.inputs[9](True)  # remote IRR: still one message under way
    rig.apic.eoi(0x38)
    assert rig.sent == [(0x39, True, 0)]
    rig.apic.eoi(0x39)
    assert rig.sent == [(0x39, True, 0)] * 2
    rig.apic.inputs[9](False)
    rig.apic.eoi(0x39)
    assert len(rig.sent) == 2
    assert rig.read(0x22) == LEVEL | 0x39


def test_level_masked_then_unmasked_is_sent() -> None:
    rig = Rig()
    rig.route(9, MASKED | LEVEL | 0x39)
    rig.apic.inputs[9](True)
    assert rig.sent == []
    rig.route(9, LEVEL | 0x39)
    assert rig.sent == [(0x39, True, 0)]


def test_remote_irr_is_read_only_and_forgotten_through_edge_mode() -> None:
    rig = Rig()
    rig.route(3, MASKED | LEVEL | REMOTE_IRR | 0x1000 | 0x33)
    assert rig.read(0x16) == MASKED | LEVEL | 0x33
    rig.route(3, LEVEL | 0x33)
    rig.apic.inputs[3](True)
    rig.write(0x16, MASKED | LEVEL | 0x33)
    assert rig.read(0x16) == MASKED | LEVEL | REMOTE_IRR | 0x33
    rig.write(0x16, MASKED | 0x33)
    rig.write(0x16, LEVEL | 0x33)
    assert len(rig.sent) == 2


@pytest.mark.parametrize(("mode", "level"), [(0, True), (1, True), (2, False), (4, False), (7, False)])
def test_only_fixed_and_lowest_priority_can_be_level(mode: int, level: bool) -> None:
    rig = Rig()
    rig.route(4, LEVEL | mode << 8 | 0x34)
    rig.apic.inputs[4](True)
    assert rig.sent == [(0x34, level, mode)]


def test_odd_accesses() -> None:
    rig = Rig()
    rig.apic.write_memory(BASE, 1, 0x01)
    assert [rig.apic.read_memory(BASE + 0x12, 1), rig.apic.read_memory(BASE + 0x20, 4)] == [0x17, 0]
    rig.apic.write_memory(BASE, 4, 0x10)
    rig.apic.write_memory(BASE + 0x10, 1, 0x33)
    assert rig.read(0x10) == MASKED


STEP = st.tuples(st.integers(0, 2), st.integers(0, 0x47), st.integers(0, 0xFFFFFFFF))


def drive(rig: Rig, steps: list[tuple[int, int, int]]) -> object:
    for kind, index, value in steps:
        if kind == 0:
            rig.write(index, value & 0xFFFE_FFFF)
        elif kind == 1:
            rig.apic.inputs[index % 24](bool(value & 1))
        else:
            rig.apic.eoi(value & 0xFF)
    return rig.apic.save()


@settings(derandomize=True, deadline=None)
@given(st.lists(STEP, max_size=30), st.lists(STEP, max_size=30))
def test_any_accesses_and_restoring_in_between(first: list[tuple[int, int, int]], second: list[tuple[int, int, int]]) -> None:
    one, other = Rig(), Rig()
    other.apic.restore(drive(one, first))  # type: ignore[arg-type]
    one.sent.clear()
    assert drive(one, second) == drive(other, second)
    assert one.sent == other.sent


def test_restore_refuses_what_is_not_its_own() -> None:
    with pytest.raises(ValueError, match="I/O APIC"):
        Rig().apic.restore(object())  # type: ignore[arg-type]
