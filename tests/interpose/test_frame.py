"""A memory-mapped frame device changes hands: its registers, its memory and a command in progress."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avmm.interpose.frame.handover import FrameModes
from avmm.interpose.frame.sequence import FrameSequence, Stage
from avmm.interpose.front import Way
from avmm.interpose.switch import Outcome, Plan
from avmm.platform import frame
from avmm.platform.frame import BAD, BASE, BUSY, DONE, REGISTERS
from tests.interpose.kinds import FrameMachine, Machine, alternating, plan
from tests.interpose.rig import Access, Guest, Trigger

CONTROL, STATUS, MODE, ORIGIN, SIZE, SOURCE, COLOUR, COMMAND = (
    BASE + offset for offset in (frame.CONTROL, frame.STATUS, frame.MODE, frame.ORIGIN, frame.SIZE, frame.SOURCE, frame.COLOUR, frame.COMMAND)
)
PIXELS = BASE + REGISTERS


def put(address: int, value: int) -> Guest:
    yield Access(address, value, 4)


def command(code: int, origin: int, size: int, colour: int = 0, source: int = 0) -> Guest:
    for address, value in ((ORIGIN, origin), (SIZE, size), (SOURCE, source), (COLOUR, colour), (COMMAND, code)):
        yield from put(address, value)


def finish(m: Machine, interrupt: bool) -> Guest:
    """Wait for the end of a command, acknowledge it and read everything back."""
    for _ in range(100_000):
        if interrupt:
            if m.line(10).level:
                break
        elif not (yield Access(STATUS, None, 4)) & BUSY:
            break
        yield 1_000
    else:
        raise AssertionError("busy for ever")
    m.log.append(("status", (yield Access(STATUS, None, 4))))
    yield from put(STATUS, DONE)
    values = []
    for address in (CONTROL, MODE, ORIGIN, SIZE, SOURCE, COLOUR):
        values.append((yield Access(address, None, 4)))
    m.log.append((tuple(values), m.line(10).level))


def drawing(m: Machine) -> Guest:
    """By polling and by interrupts, good and bad commands, pixels by hand."""
    yield from put(MODE, 64 | 32 << 16)
    for n in range(8):
        yield Access(PIXELS + 64 * 3 + n, n + 1, 1)
    yield from command(frame.FILL, 4 | 8 << 16, 20 | 10 << 16, 0xAB)
    yield from finish(m, False)
    yield from put(CONTROL, 1)
    yield from command(frame.COPY, 30 | 1 << 16, 8 | 12 << 16, 0, 0 | 3 << 16)
    yield from finish(m, True)
    yield from command(frame.FILL, 60, 5 | 1 << 16, 1)  # over the edge
    yield from finish(m, True)
    yield from command(frame.FILL, 0, 0, 1)
    yield from finish(m, True)
    yield from command(9, 0, 1 | 1 << 16)
    yield from put(CONTROL, 0)
    yield from finish(m, False)
    yield from command(frame.FILL, 0, 2 | 2 << 16, 7)
    yield from put(COLOUR, 9)  # lost: it is busy
    yield from finish(m, False)
    for at in range(0, 64 * 32, 64):
        m.log.append((yield Access(PIXELS + at, None, 8)))


@cache
def undisturbed() -> FrameMachine:
    m = FrameMachine()
    m.run(drawing(m))
    return m


def check(triggers: list[Trigger]) -> FrameMachine:
    m, plain = FrameMachine(triggers), undisturbed()
    m.run(drawing(m))
    assert m.log == plain.log
    assert m.real.pixels == plain.real.pixels
    assert m.line(10).edges == plain.line(10).edges
    assert m.driver.spurious == 0
    return m


@pytest.mark.parametrize("how", ["between", "middle", "inside"])
@pytest.mark.parametrize("virtual", [False, True], ids=["virtualize", "devirtualize"])
def test_a_switch_at_every_access(how: str, virtual: bool) -> None:
    """H1-H3, H5, H6, H8-H10: what the guest reads, the pixels and the interrupts are those of a run without a switch."""
    stages = set()
    for at in range(undisturbed().accesses + 1):
        before = [Trigger(0, plan(True, "between"))] if virtual else []
        m = check([*before, Trigger(at, plan(not virtual, how))])
        stages |= {report.stage for report in m.reports[virtual:]}
        assert all(report.done and report.machine_pause_ns == 0 for report in m.reports)
    if how == "between":
        assert stages == {Stage.IDLE.value}
    elif how == "inside":
        assert stages == {Stage.ISSUED.value, Stage.STATUS.value}
    else:
        assert stages == {Stage.IDLE.value, Stage.ISSUED.value, Stage.STATUS.value}


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(places=st.lists(st.tuples(st.integers(0, 200), st.sampled_from(["between", "middle", "inside"])), min_size=1, max_size=10))
def test_random_places(places: list[tuple[int, str]]) -> None:
    """H13."""
    check(alternating(places))


def test_memory_is_the_guests_own_while_direct_and_traps_while_virtualized() -> None:
    """H3."""
    m = FrameMachine()
    assert m.ram_maps[PIXELS] == (frame.PIXELS, memoryview(m.real.pixels))
    m.switch(Plan(True))
    assert m.ram_maps[PIXELS] == (frame.PIXELS, None)
    m.perform(Access(PIXELS + 5, 0x77, 1))
    assert m.real.pixels[5] == 0x77
    m.switch(Plan(False))
    assert m.ram_maps[PIXELS][1] is not None


def test_modes_are_reported() -> None:
    """H8."""
    m = FrameMachine()
    m.run(put(MODE, 100 | 50 << 16))
    m.run(put(CONTROL, 1))
    m.perform(Access(STATUS, None, 4))
    m.switch(Plan(True, middle=True))
    assert m.reports[0].modes == FrameModes(100, 50, True)


def hang(m: FrameMachine) -> None:
    m.real._timer.callback = lambda: None


def test_a_command_that_never_ends() -> None:
    """The guest hears BAD; the device is not given back."""
    m = FrameMachine()
    m.switch(Plan(True))
    hang(m)
    m.run(put(MODE, 64 | 32 << 16))
    m.run(command(frame.FILL, 0, 3 | 3 << 16))
    m.pass_time(600_000_000)
    assert m.perform(Access(STATUS, None, 4)) == DONE | BAD
    assert "busy for 500 ms" in m.driver.broken
    m.switch(Plan(False, middle=True, patience=1_000_000))
    m.pass_time(1_000_000)
    assert (m.reports[-1].outcome, m.front.way) == (Outcome.ROLLED_BACK, Way.VIRTUALIZED)


def test_a_spurious_interrupt_does_not_reach_the_guest() -> None:
    m = FrameMachine()
    m.run(put(CONTROL, 1))
    m.switch(Plan(True, middle=True))
    m.real.complete()
    assert (m.driver.spurious, m.line(10).edges, m.real.status) == (1, 0, 0)


def test_a_machine_reset_while_virtualized() -> None:
    m = FrameMachine()
    m.switch(Plan(True))
    m.run(put(MODE, 64 | 32 << 16))
    m.run(command(frame.FILL, 0, 9 | 9 << 16, 3))
    m.front.reset()
    m.pass_time(1_000_000)
    assert m.perform(Access(STATUS, None, 4)) == 0
    m.log.clear()
    m.run(drawing(m))
    assert m.log == undisturbed().log


EVENTS = {
    "register": lambda s: s.write(frame.SIZE),
    "command": lambda s: s.write(frame.COMMAND),
    "pixel": lambda s: s.write(REGISTERS + 3),
    "control": lambda s: s.write(frame.CONTROL),
    "idle": lambda s: s.look(0),
    "busy": lambda s: s.look(BUSY),
    "done": lambda s: s.look(DONE),
}
IDLE, S, B, D = Stage.IDLE, Stage.SETUP, Stage.ISSUED, Stage.STATUS
TABLE = {
    IDLE: {"register": S, "command": IDLE, "pixel": IDLE, "control": IDLE, "idle": IDLE, "busy": B, "done": D},
    S: {"register": S, "command": IDLE, "pixel": S, "control": S, "idle": S, "busy": B, "done": D},
    B: {"register": IDLE, "command": IDLE, "pixel": IDLE, "control": IDLE, "idle": IDLE, "busy": B, "done": D},
    D: {"register": S, "command": IDLE, "pixel": IDLE, "control": IDLE, "idle": IDLE, "busy": B, "done": D},
}
"""The stage after the event, and after a look at a device that has nothing to do (or what the event says)."""
REACH = {IDLE: [], S: ["register", "idle"], B: ["busy"], D: ["done"]}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("stage", TABLE)
def test_every_stage_with_every_event(stage: Stage, event: str) -> None:
    """H4."""
    sequence = FrameSequence()
    for step in REACH[stage]:
        EVENTS[step](sequence)
    assert sequence.stage is stage
    EVENTS[event](sequence)
    if event not in ("busy", "done"):
        EVENTS["idle"](sequence)
    assert sequence.stage is TABLE[stage][event]
    assert sequence.over == (sequence.stage is IDLE)
    assert sequence.resting == (sequence.stage in (IDLE, S))
