"""The 8259A pair against its data sheet."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.devices.line import InterruptLine
from avmm.devices.pic import CASCADE, Pic
from tests.devices.bench import Bench

M, S = 0x20, 0xA0


class Rig:
    """A PIC initialized as a PC's BIOS does (or as asked), its output recorded."""

    def __init__(self, icw1: int = 0x11, icw4: int = 0x01, slave_icw4: int = 0x01) -> None:
        self.bench = Bench()
        self.pic = Pic(self.bench)
        self.levels: list[bool] = []
        self.pic.output = self.levels.append
        for port, words in ((M, (icw1, 0x08, 0x04, icw4)), (S, (icw1, 0x70, 0x02, slave_icw4))):
            self.out(port, words[0])
            for word in words[1:]:
                self.out(port + 1, word)

    def out(self, port: int, value: int) -> None:
        self.bench.write(self.pic, port, value)

    def inb(self, port: int) -> int:
        return self.bench.read(self.pic, port)

    def intr(self) -> bool:
        return self.pic.intr

    def up(self, *inputs: int) -> None:
        for n in inputs:
            self.pic.inputs[n](True)

    def down(self, *inputs: int) -> None:
        for n in inputs:
            self.pic.inputs[n](False)

    def irr(self, port: int = M) -> int:
        self.out(port, 0x0A)
        return self.inb(port)

    def isr(self, port: int = M) -> int:
        self.out(port, 0x0B)
        return self.inb(port)


def test_every_input_has_its_vector_and_its_eoi() -> None:
    for n in [n for n in range(16) if n != CASCADE]:
        rig = Rig()
        rig.up(n)
        assert rig.intr()
        assert rig.levels == [True]
        assert rig.pic.acknowledge() == (0x08 + n if n < 8 else 0x70 + n - 8)
        assert rig.levels == [True, False]
        assert rig.isr() == (1 << n if n < 8 else 1 << CASCADE)
        assert rig.isr(S) == (1 << (n - 8) if n >= 8 else 0)
        if n >= 8:
            rig.out(S, 0x20)
        rig.out(M, 0x20)
        assert rig.isr() == rig.isr(S) == 0
        assert not rig.intr(), "an edge is served once, though the line is still high"


def test_input_2_is_not_brought_out() -> None:
    rig = Rig()
    rig.up(2)
    assert not rig.intr()


def test_fully_nested_priority() -> None:
    rig = Rig()
    rig.up(4, 1)
    assert rig.pic.acknowledge() == 0x09
    assert not rig.intr(), "4 waits for 1"
    rig.up(0)
    assert rig.pic.acknowledge() == 0x08, "0 interrupts 1"
    rig.out(M, 0x20)
    assert rig.isr() == 0x02
    assert not rig.intr()
    rig.out(M, 0x20)
    assert rig.pic.acknowledge() == 0x0C


def test_masks() -> None:
    rig = Rig()
    rig.out(M + 1, 0x02)
    rig.up(1)
    assert not rig.intr()
    assert (rig.irr(), rig.inb(M + 1)) == (0x02, 0x02)
    rig.out(M + 1, 0x00)
    assert rig.levels == [True]
    rig.out(M + 1, 0xFF)
    assert rig.levels == [True, False]


def test_a_withdrawn_request_is_spurious_7_and_sets_no_isr() -> None:
    rig = Rig()
    rig.up(3)
    rig.down(3)
    assert rig.levels == [True, False]
    assert rig.irr() == 0
    assert rig.pic.acknowledge() == 0x0F
    assert rig.isr() == 0


def test_a_slave_that_finds_nothing_is_spurious_15_and_leaves_the_master_in_service() -> None:
    rig = Rig()
    rig.up(9)
    rig.pic.slave.on_int = lambda level: None  # gone between the master's INTA and the slave's
    rig.down(9)
    assert rig.pic.acknowledge() == 0x77
    assert rig.isr(S) == 0
    assert rig.isr() == 1 << CASCADE


def test_edge_needs_a_new_edge_and_icw1_clears_the_latch() -> None:
    rig = Rig()
    rig.up(5)
    rig.out(M, 0x13)
    assert rig.irr() == 0
    for word in (0x08, 0x01):
        rig.out(M + 1, word)
    assert not rig.intr()
    rig.down(5)
    rig.up(5)
    assert rig.pic.acknowledge() == 0x0D


@pytest.mark.parametrize("ltim", [True, False])
def test_level_mode_requests_again_while_high(ltim: bool) -> None:
    rig = Rig(icw1=0x19 if ltim else 0x11)
    if not ltim:
        rig.out(0x4D0, 0xFF)
        rig.out(0x4D1, 0xFF)
        assert (rig.inb(0x4D0), rig.inb(0x4D1)) == (0xF8, 0xDE), "timer, keyboard, cascade, RTC, FPU stay edge-triggered"
    rig.up(5)
    assert rig.pic.acknowledge() == 0x0D
    assert rig.irr() == 0x20
    assert not rig.intr()
    rig.out(M, 0x20)
    assert rig.intr(), "still high"
    assert rig.pic.acknowledge() == 0x0D
    rig.down(5)
    rig.out(M, 0x20)
    assert not rig.intr()
    rig.up(11)
    for _ in range(3):
        assert rig.pic.acknowledge() == 0x73
        rig.out(S, 0x20)
        rig.out(M, 0x20)


def test_elcr_turns_a_high_input_into_a_request() -> None:
    rig = Rig()
    rig.up(10)
    rig.out(S, 0x11)
    for word in (0x70, 0x02, 0x01):
        rig.out(S + 1, word)
    assert not rig.intr()
    rig.out(0x4D1, 0x04)
    assert rig.pic.acknowledge() == 0x72


@pytest.mark.parametrize(
    ("in_service", "ocw2", "isr", "next_first"),
    [
        ((2, 5), 0x20, 1 << 5, 0),  # non-specific EOI
        ((2, 5), 0x65, 1 << 2, 0),  # specific EOI
        ((2, 5), 0xA0, 1 << 5, 3),  # rotate on non-specific EOI
        ((2, 5), 0xE5, 1 << 2, 6),  # rotate on specific EOI
        ((2, 5), 0xC3, 1 << 2 | 1 << 5, 4),  # set priority
        ((2, 5), 0x40, 1 << 2 | 1 << 5, 0),  # no operation
        ((), 0xA0, 0, 0),  # nothing in service: nothing to rotate
    ],
)
def test_ocw2(in_service: tuple[int, ...], ocw2: int, isr: int, next_first: int) -> None:
    rig = Rig()
    chip = rig.pic.master
    for n in reversed(in_service):
        chip.set_input(1 << n, True)
        assert chip.accept() == n
    rig.out(M, ocw2)
    assert rig.isr() == isr
    for n in range(8):
        rig.out(M, 0x60 | n)
        chip.set_input(1 << n, False)
        chip.set_input(1 << n, True)
    order = []
    for _ in range(8):
        order.append(level := chip.accept())
        rig.out(M, 0x60 | level)
    assert order == [(next_first + i) % 8 for i in range(8)]


def test_automatic_eoi_with_and_without_rotation() -> None:
    rig = Rig(icw4=0x03)
    rig.up(3, 4)
    assert rig.pic.acknowledge() == 0x0B
    assert rig.isr() == 0
    assert rig.pic.acknowledge() == 0x0C
    rig.out(M, 0x80)
    rig.down(3)
    rig.up(3)
    assert rig.pic.acknowledge() == 0x0B
    rig.down(3, 4)
    rig.up(3, 4)
    assert rig.pic.acknowledge() == 0x0C, "3 has become the lowest"
    rig.out(M, 0x00)
    assert rig.pic.acknowledge() == 0x0B
    rig.down(1, 6)
    rig.up(1, 6)
    assert rig.pic.acknowledge() == 0x0E, "5 is the highest still: no rotation any more"


def test_automatic_eoi_on_the_slave_gives_the_master_a_new_edge() -> None:
    rig = Rig(icw4=0x03, slave_icw4=0x03)
    rig.up(9, 10, 12)
    assert [rig.pic.acknowledge() for _ in range(3)] == [0x71, 0x72, 0x74]
    assert not rig.intr()


def test_special_mask_mode_lets_lower_levels_through() -> None:
    rig = Rig()
    rig.up(1)
    rig.pic.acknowledge()
    rig.up(6)
    assert not rig.intr()
    rig.out(M + 1, 0x02)
    assert not rig.intr(), "masking the level in service is not enough"
    rig.out(M, 0x68)
    assert rig.intr()
    assert rig.pic.acknowledge() == 0x0E
    rig.out(M, 0x20)
    assert rig.isr() == 0x02, "non-specific EOI passes over a masked level"
    rig.out(M, 0x48)
    rig.out(M, 0x20)
    assert rig.isr() == 0


def test_poll_command() -> None:
    rig = Rig()
    rig.out(M, 0x0C)
    assert rig.inb(M) == 0
    rig.up(6, 12)
    rig.out(M, 0x0C)
    assert rig.inb(M) == 0x82
    rig.out(S, 0x0C)
    assert rig.inb(S + 1) == 0x84
    assert (rig.isr(), rig.isr(S)) == (0x04, 0x10)
    assert rig.inb(M + 1) == 0, "one read only: this is IMR again"


def test_special_fully_nested_mode() -> None:
    for icw4, expected in ((0x01, False), (0x11, True)):
        rig = Rig(icw4=icw4)
        rig.up(12)
        assert rig.pic.acknowledge() == 0x74
        rig.up(9)
        assert rig.intr() is expected
        if expected:
            assert rig.pic.acknowledge() == 0x71
            rig.up(14)
            assert not rig.intr(), "lower than what the slave serves"


def test_initialization_without_icw4_is_mcs_80_mode() -> None:
    for icw1, vector in ((0x12, 0x18), (0x56, 0x4C)):  # address interval 8, then 4
        rig = Rig()
        rig.out(M, icw1)
        rig.out(M + 1, 0x08)
        rig.out(M + 1, 0xF0)
        assert rig.inb(M + 1) == 0xF0, "neither ICW3 nor ICW4 was awaited"
        rig.up(3)
        assert rig.pic.acknowledge() == vector


def test_a_slave_without_the_right_address_leaves_the_bus_floating() -> None:
    rig = Rig()
    rig.out(S, 0x11)
    for word in (0x70, 0x05, 0x01):
        rig.out(S + 1, word)
    rig.up(8)
    assert rig.pic.acknowledge() == 0xFF


def test_a_line_replays_its_level_without_a_second_edge() -> None:
    rig = Rig()
    line = InterruptLine(5, rig.pic.inputs[5])
    line.raise_()
    assert rig.pic.acknowledge() == 0x0D
    rig.out(M, 0x20)
    line.connect(rig.pic.inputs[5])
    assert not rig.intr()


def test_save_in_mid_initialization_and_in_service() -> None:
    rig = Rig()
    rig.up(12, 3)
    rig.pic.acknowledge()
    rig.out(M, 0x0B)
    rig.out(M, 0x11)
    rig.out(M + 1, 0x40)
    state = rig.pic.save()
    other = Pic(Bench())
    heard: list[bool] = []
    other.output = heard.append
    other.restore(state)
    assert other.save() == state
    for pic in (rig.pic, other):
        pic.write(M + 1, 1, 0x04)
        pic.write(M + 1, 1, 0x01)
        pic.inputs[1](True)
        assert pic.acknowledge() == 0x41
        pic.inputs[12](True)  # already high: no edge
        assert (pic.slave.irr, pic.slave.isr) == (0, 0x10)
    assert heard == [True, False]
    with pytest.raises(ValueError, match="PIC"):
        other.restore(object())  # type: ignore[arg-type]


def test_restoring_a_pending_request_tells_the_output() -> None:
    rig = Rig()
    rig.up(9)
    other = Pic(Bench())
    heard: list[bool] = []
    other.output = heard.append
    other.restore(rig.pic.save())
    assert heard == [True]
    assert other.acknowledge() == 0x71


def test_reset() -> None:
    rig = Rig()
    rig.up(4)
    rig.out(0x4D1, 0x08)
    rig.pic.reset()
    assert rig.levels == [True, False]
    assert (rig.inb(M + 1), rig.irr(), rig.inb(0x4D1)) == (0, 0, 0)


actions = st.one_of(
    st.tuples(st.just("out"), st.sampled_from([0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1]), st.integers(0, 255)),
    st.tuples(st.just("line"), st.integers(0, 15), st.integers(0, 1)),
    st.tuples(st.just("in"), st.sampled_from([0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1]), st.just(0)),
    st.tuples(st.just("inta"), st.just(0), st.just(0)),
)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.lists(actions, max_size=60))
def test_random_traffic_keeps_the_invariant_and_survives_save(steps: list[tuple[str, int, int]]) -> None:
    rig = Rig()
    for what, where, value in steps:
        match what:
            case "out":
                rig.out(where, value)
            case "line":
                rig.pic.inputs[where](bool(value))
            case "in":
                rig.inb(where)
            case _:
                assert 0 <= rig.pic.acknowledge() <= 0xFF
        for chip in (rig.pic.master, rig.pic.slave):
            assert chip.irr & ~chip.lines == 0
            assert (chip.irr & chip.level_triggered) == (chip.lines & chip.level_triggered)
        assert bool(rig.pic.master.lines & 4) is rig.pic.slave.int
        assert rig.intr() is (rig.levels[-1] if rig.levels else False)
    other = Pic(Bench())
    other.restore(rig.pic.save())
    assert other.save() == rig.pic.save()
    assert other.intr is rig.intr()


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.integers(0, 7), st.booleans())
def test_priority_against_a_model(irr: int, imr: int, isr: int, lowest: int, special_mask: bool) -> None:
    """The resolver, level by level from the highest: a request wins unless something in service comes first."""
    chip = Pic(Bench()).master
    chip.write_command(0xC0 | lowest)
    chip.write_command(0x68 if special_mask else 0x48)
    chip.write_data(0)
    chip.isr = isr
    for n in range(8):
        chip.set_input(1 << n, bool(irr >> n & 1))
    chip.expect = 0
    chip.write_data(imr ^ 0xFF)
    chip.write_data(imr)
    expected = -1
    for i in range(8):
        level = (lowest + 1 + i) % 8
        masked = imr >> level & 1
        if isr >> level & 1 and not (special_mask and masked):
            break
        if irr >> level & 1 and not masked:
            expected = level
            break
    assert chip.int is (expected >= 0)
    assert chip.accept() == expected
