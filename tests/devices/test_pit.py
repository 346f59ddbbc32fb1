"""The 8254 against its data sheet: counts and OUT by tick, the interrupt's edges by ns."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.clock import SECOND
from avmm.devices.pit import HZ, Pit, tick_at, tick_start
from avmm.devices.pit_counter import Counter
from tests.devices.bench import Bench

LSB, BOTH = 0x10, 0x30


def programmed(mode: int, count: int, control: int = LSB, gate: bool = True) -> Counter:
    """A counter given control word and count at tick -1: tick 0 is the first CLK pulse after it."""
    counter = Counter(gate)
    counter.write_control(-1, control | mode << 1)
    counter.write(-1, count & 0xFF)
    if control & BOTH == BOTH:
        counter.write(-1, count >> 8)
    return counter


def trace(counter: Counter, start: int, end: int) -> tuple[list[int], str]:
    """Counts and levels of OUT for the ticks [start, end)."""
    counts, levels = [], ""
    for t in range(start, end):
        levels += "H" if counter.out(t) else "L"
        counts.append(counter.run.count(t) & 0xFFFF)
    return counts, levels


@pytest.mark.parametrize(
    ("mode", "count", "counts", "out"),
    [
        (0, 4, [4, 3, 2, 1, 0, 0xFFFF, 0xFFFE], "LLLLHHH"),
        (2, 3, [3, 2, 1, 3, 2, 1, 3], "HHLHHLH"),
        (6, 3, [3, 2, 1, 3, 2, 1, 3], "HHLHHLH"),
        (2, 1, [2, 1, 2, 1], "HLHL"),  # illegal: taken as 2
        (3, 4, [4, 2, 4, 2, 4, 2], "HHLLHH"),
        (3, 5, [4, 2, 0, 4, 2, 4, 2, 0, 4, 2], "HHHLLHHHLL"),
        (7, 5, [4, 2, 0, 4, 2, 4, 2, 0, 4, 2], "HHHLLHHHLL"),
        (4, 3, [3, 2, 1, 0, 0xFFFF, 0xFFFE], "HHHLHH"),
    ],
)
def test_counts_and_out_after_a_write(mode: int, count: int, counts: list[int], out: str) -> None:
    counter = programmed(mode, count)
    assert counter.out(-1) is (mode != 0)
    assert trace(counter, 0, len(counts)) == (counts, out)


@pytest.mark.parametrize(("mode", "out"), [(1, "HLLLHHHH"), (5, "HHHHLHHH")])
def test_triggered_modes_wait_for_the_gate_and_can_be_retriggered(mode: int, out: str) -> None:
    counter = programmed(mode, 3, gate=False)
    assert trace(counter, 0, 5)[1] == "HHHHH"
    counter.set_gate(10, True)
    assert trace(counter, 10, 18) == ([0, 3, 2, 1, 0, 0xFFFF, 0xFFFE, 0xFFFD], out)
    counter.set_gate(20, False)
    counter.set_gate(21, True)
    counter.set_gate(22, False)
    counter.set_gate(23, True)
    low = [t for t in range(23, 30) if not counter.out(t)]
    assert low == ([23, 24, 25, 26] if mode == 1 else [27])


def test_mode_1_takes_a_new_count_only_with_the_next_trigger() -> None:
    counter = programmed(1, 4, gate=False)
    counter.set_gate(0, True)
    counter.write(2, 2)
    assert trace(counter, 2, 7)[1] == "LLLHH"
    counter.latch_status(6)
    assert counter.read(6) & 0x40, "null count: not loaded yet"
    counter.set_gate(7, False)
    counter.set_gate(8, True)
    assert trace(counter, 8, 13)[1] == "HLLHH"
    counter.latch_status(12)
    assert not counter.read(12) & 0x40


def test_gate_pauses_modes_0_and_4() -> None:
    for mode, out in ((0, "LLLLLLLH"), (4, "HHHHHHHL")):
        counter = programmed(mode, 5)
        counter.set_gate(2, False)
        assert trace(counter, 2, 4)[0] == [3, 3]
        counter.set_gate(4, True)
        assert trace(counter, 4, 8)[0] == [3, 2, 1, 0]
        again = programmed(mode, 5)
        levels = ""
        for t in range(8):
            if t in (2, 4):
                again.set_gate(t, t == 4)
            levels += trace(again, t, t + 1)[1]
        assert levels == out


def test_mode_0_written_with_the_gate_low_is_loaded_but_waits() -> None:
    counter = programmed(0, 5, gate=False)
    assert trace(counter, 0, 3)[0] == [5, 5, 5]
    counter.set_gate(3, True)
    assert trace(counter, 3, 9) == ([5, 4, 3, 2, 1, 0], "LLLLLH")


@pytest.mark.parametrize("mode", [2, 3])
def test_gate_low_forces_out_high_and_its_rise_starts_anew(mode: int) -> None:
    counter = programmed(mode, 4)
    low = 3
    assert not counter.out(low)
    counter.set_gate(low, False)
    assert trace(counter, low, low + 5)[1] == "HHHHH"
    counter.set_gate(10, True)
    assert trace(counter, 11, 19)[1] == ("HHHLHHHL" if mode == 2 else "HHLLHHLL")


def test_gate_falling_before_the_first_clk_pulse_after_the_count() -> None:
    counter = programmed(2, 4)
    counter.set_gate(-1, False)
    assert trace(counter, 0, 6) == ([4] * 6, "HHHHHH"), "loaded, but not counting"
    counter.set_gate(6, True)
    assert trace(counter, 7, 12) == ([4, 3, 2, 1, 4], "HHHLH")
    counter.write(8, 2)
    counter.set_gate(8, False)
    counter.set_gate(20, True)
    assert trace(counter, 21, 24)[0] == [2, 1, 2], "a count that waited for the end of the cycle comes with the trigger"


def test_new_counts_in_mid_cycle() -> None:
    counter = programmed(2, 4)
    counter.write(5, 2)  # cycle 4-7 goes on, then 2
    assert trace(counter, 5, 12) == ([3, 2, 1, 2, 1, 2, 1], "HHLHLHL")
    counter = programmed(3, 8)
    counter.write(1, 4)  # the high half goes on to 3, then halves of 2
    assert trace(counter, 1, 10)[1] == "HHHLLHHLL"
    counter = programmed(3, 8)
    counter.write(5, 4)  # the low half goes on to 7
    assert trace(counter, 4, 13)[1] == "LLLLHHLLH"
    counter = programmed(4, 6)
    counter.write(2, 2)
    assert trace(counter, 2, 7)[1] == "HHHLH"
    counter = programmed(0, 3)
    assert counter.out(3)
    counter.write(10, 2)
    assert trace(counter, 10, 14)[1] == "LLLH"


def test_the_first_of_two_bytes_stops_mode_0() -> None:
    counter = programmed(0, 0x102, BOTH)
    assert counter.out(0x102)
    counter.write(0x200, 3)
    assert trace(counter, 0x200, 0x203)[1] == "LLL"
    assert len(set(trace(counter, 0x200, 0x210)[0])) == 1
    counter.write(0x300, 0)
    assert trace(counter, 0x300, 0x306)[1] == "LLLLHH"


def test_bcd() -> None:
    counter = programmed(2, 0x1000, BOTH | 1)
    counter.latch_count(1)
    assert [counter.read(1), counter.read(1)] == [0x99, 0x09]
    counter = programmed(0, 0, BOTH | 1)
    counter.latch_count(0)
    assert [counter.read(0), counter.read(0)] == [0, 0]
    assert [counter.read(1), counter.read(1)] == [0x99, 0x99]
    assert not counter.out(9999)
    assert counter.out(10000)


def test_count_zero_is_65536() -> None:
    counter = programmed(2, 0, BOTH)
    assert counter.next_rise(5) == 65536
    counter.latch_count(0)
    assert [counter.read(0), counter.read(0)] == [0, 0]


@pytest.mark.parametrize(("access", "reads"), [(1, [0x34, 0x34]), (2, [0x12, 0x12]), (3, [0x34, 0x12])])
def test_access_formats(access: int, reads: list[int]) -> None:
    counter = programmed(0, 0x1234 + 5, BOTH)
    counter.control = counter.control & 0x0F | access << 4
    assert [counter.read(5), counter.read(5)] == reads
    lsb, msb = programmed(2, 7, 0x10), programmed(2, 7, 0x20)
    assert (lsb.reload, msb.reload) == (7, 0x700)

Script = list[tuple[int, int | None, int]]


class Rig:
    """A PIT on a bench, with the time of each rising edge of interrupt 0."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.pit = Pit(self.bench)
        self.edges: list[int] = []
        self.bench.line(0).connect(lambda level: self.edges.append(self.bench.time) if level else None)

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.bench.write(self.pit, port, value)

    def inb(self, port: int) -> int:
        return self.bench.read(self.pit, port)

    def program(self, mode: int, count: int) -> None:
        self.out(0x43, 0x30 | mode << 1)
        self.out(0x40, count & 0xFF, count >> 8)
        self.edges.clear()


@pytest.mark.parametrize("mode", [2, 3])
@pytest.mark.parametrize("count", [0, 11932, 1193])
def test_no_drift_in_an_hour(mode: int, count: int) -> None:
    rig = Rig()
    rig.bench.time = 12345
    start = tick_at(rig.bench.time) + 1
    rig.program(mode, count)
    period = count or 65536
    seconds = 3600 if count == 0 else 60
    rig.bench.pass_time(seconds * SECOND)
    if count:  # the rest of the hour in one step of the model, not 3 million events
        rig.bench.time = 3600 * SECOND
        rig.bench.clock.run_due()
        rig.edges.clear()
        rig.bench.pass_time(SECOND)
    first = (tick_at(rig.edges[0]) - start) // period
    assert rig.edges == [tick_start(start + (first + i) * period) for i in range(len(rig.edges))]
    assert len(rig.edges) >= HZ // period


def test_ticks_and_ns() -> None:
    for tick in (0, 1, 2, 17, HZ - 1, HZ, 10**12 + 7):
        assert tick_at(tick_start(tick)) == tick
        assert tick == 0 or tick_at(tick_start(tick) - 1) == tick - 1
    assert tick_start(HZ) == SECOND


def test_one_shot_interrupt() -> None:
    rig = Rig()
    rig.program(0, 1000)
    assert not rig.bench.line(0).level
    rig.bench.pass_time(SECOND)
    assert rig.edges == [tick_start(1001)]
    assert rig.bench.clock.next_due() is None
    rig.program(4, 1000)
    assert rig.bench.line(0).level
    begin = tick_at(rig.bench.time)
    rig.bench.pass_time(SECOND)
    assert rig.edges == [tick_start(begin + 1002)], "the strobe is low for one tick; its end is the edge"


def test_only_an_edge_arms_a_timer() -> None:
    rig = Rig()
    rig.out(0x43, 0x74, 0xB6)
    rig.out(0x41, 18, 0)
    rig.out(0x42, 0, 4)
    rig.out(0x61, 3)
    assert rig.bench.clock.next_due() is None
    rig.program(1, 100)
    rig.program(5, 100)
    assert rig.bench.clock.next_due() is None, "the gate of counter 0 never rises"


def test_late_edges_are_coalesced_in_phase() -> None:
    rig = Rig()
    rig.program(2, 1000)
    rig.bench.time = tick_start(1 + 10_500)
    rig.bench.clock.run_due()
    assert len(rig.edges) == 1
    assert rig.pit.missed == 9
    rig.bench.pass_time(tick_start(1 + 12_500) - rig.bench.time)
    assert rig.edges[1:] == [tick_start(1 + 11_000), tick_start(1 + 12_000)]
    assert rig.bench.events == [("pit.coalesced", {"edges": 9})]


def test_reprogramming_does_not_swallow_an_edge_that_was_due() -> None:
    rig = Rig()
    rig.program(2, 1000)
    rig.bench.time = tick_start(1005)
    rig.out(0x40, 0)
    assert rig.edges == [rig.bench.time]


def test_new_count_at_the_end_of_the_cycle_moves_the_edges() -> None:
    rig = Rig()
    rig.program(2, 1000)
    rig.bench.pass_time(tick_start(1500))
    rig.out(0x40, 100, 0)
    rig.bench.pass_time(tick_start(2250) - rig.bench.time)
    assert rig.edges == [tick_start(1 + t) for t in (1000, 2000, 2100, 2200)]


def test_read_back_and_latch() -> None:
    rig = Rig()
    rig.program(2, 1000)
    rig.out(0x43, 0xE2)  # status only
    assert rig.inb(0x40) == 0x80 | 0x40 | 0x34, "OUT, null count, both bytes, mode 2"
    rig.bench.pass_time(tick_start(101))
    rig.out(0x43, 0xC2)  # status and count
    rig.bench.pass_time(tick_start(50))
    rig.out(0x43, 0xC2, 0x00)  # ignored: still latched
    assert [rig.inb(0x40) for _ in range(3)] == [0xB4, 900 & 0xFF, 900 >> 8]
    live = rig.inb(0x40) | rig.inb(0x40) << 8
    assert 848 <= live <= 851
    rig.out(0x43, 0xC0, 0xCE)
    assert rig.inb(0x43) == 0xFF


def test_port_b() -> None:
    rig = Rig()
    rig.out(0x61, 0xFF)
    assert rig.inb(0x61) & 0x0F == 0x0F
    rig.out(0x61, 0x00)
    toggles = []
    for tick in range(36):
        rig.bench.time = tick_start(tick)
        toggles.append(rig.inb(0x61) >> 4 & 1)
    assert toggles == [0] * 18 + [1] * 18
    rig.out(0x43, 0xB0)  # counter 2, mode 0: the classic calibration loop
    rig.out(0x42, 0x10, 0)
    rig.out(0x61, 0x01)
    assert not rig.inb(0x61) & 0x20
    rig.bench.pass_time(tick_start(18))
    assert rig.inb(0x61) & 0x20


def test_speaker_wave_and_hook() -> None:
    rig = Rig()
    calls: list[tuple[bool, int]] = []
    rig.pit.on_speaker_change = lambda: calls.append(rig.pit.speaker_wave())
    rig.out(0x61, 3)
    rig.out(0x61, 0x0F)
    assert len(calls) == 1, "bits 2 and 3 are not the speaker's"
    rig.out(0x43, 0xB6)
    rig.out(0x42, 0xA9, 0x04)
    rig.bench.pass_time(tick_start(2))
    assert rig.pit.speaker_wave() == (True, 0x4A9)
    rig.out(0x61, 2)
    assert calls[-1] == (True, 0), "the gate is closed"
    rig.out(0x61, 0)
    assert calls[-1] == (False, 0)


def test_reset_lowers_the_line_and_cancels() -> None:
    rig = Rig()
    rig.program(2, 100)
    rig.out(0x61, 3)
    rig.pit.reset()
    assert not rig.bench.line(0).level
    assert rig.bench.clock.next_due() is None
    assert rig.inb(0x61) & 0x0F == 0


def test_restore_drives_the_line_and_keeps_the_deadline() -> None:
    rig = Rig()
    rig.program(2, 1000)
    rig.bench.pass_time(tick_start(500))
    other = Rig()
    other.bench.time = rig.bench.time
    other.pit.restore(rig.pit.save())
    assert other.bench.line(0).level
    assert other.bench.clock.next_due() == tick_start(1001)
    low = Rig()
    low.program(0, 1000)
    other.pit.restore(low.pit.save())
    assert not other.bench.line(0).level


ports = st.sampled_from([0x40, 0x41, 0x42, 0x43, 0x43, 0x61])
values = st.one_of(st.none(), st.integers(0, 255), st.sampled_from([0x34, 0x36, 0x30, 0xB6]))
steps = st.lists(st.tuples(ports, values, st.integers(0, 400_000)), max_size=50)


def replay(rig: Rig, script: Script) -> list[int]:
    """Run a script of port accesses and pauses; return what was read."""
    seen = []
    for port, value, pause in script:
        if value is None:
            seen.append(rig.inb(port))
        else:
            rig.out(port, value)
        rig.bench.pass_time(pause)
    return seen


@settings(derandomize=True, max_examples=120, deadline=None)
@given(steps, steps)
def test_random_traffic_and_restore_in_the_middle(before: Script, after: Script) -> None:
    rig = Rig()
    replay(rig, before)
    other = Rig()
    other.bench.time = rig.bench.time
    other.pit.restore(rig.pit.save())
    assert other.bench.line(0).level is rig.bench.line(0).level
    rig.edges.clear()
    other.edges.clear()
    assert replay(rig, after) == replay(other, after)
    assert rig.edges == other.edges
    assert rig.pit.save() == other.pit.save()


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.sampled_from([0, 2, 3, 4]), st.integers(2, 40), st.integers(0, 60), st.integers(2, 40))
def test_edges_and_high_ticks_agree_with_out(mode: int, count: int, at: int, new: int) -> None:
    """``next_rise`` and ``high_ticks`` are closed forms of what OUT does tick by tick, over a change of count as well."""
    counter = programmed(mode, count)
    counter.out(at)
    counter.write(at, new)
    rise = counter.next_rise(at)
    levels = [counter.out(t) for t in range(at, at + 200)]
    rises = [at + i for i in range(1, 200) if levels[i] and not levels[i - 1]]
    assert rise == (rises[0] if rises else None)
    start = max(at + 100, counter.run.at)
    assert counter.run.high_ticks(start, at + 200) == sum(levels[start - at :])


def test_restore_refuses_what_is_not_its_own() -> None:
    with pytest.raises(ValueError, match="PIT"):
        Rig().pit.restore(object())  # type: ignore[arg-type]
