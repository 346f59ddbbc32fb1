"""A serial port changes hands: between bytes and in the middle of them, at every access, at random ones, and with things going wrong."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avmm.devices.uart import BI, DR, FE, THRE
from avmm.interpose.front import Way
from avmm.interpose.serial.handover import SerialModes
from avmm.interpose.serial.sequence import SerialSequence, Stage
from avmm.interpose.switch import Outcome, Plan
from tests.interpose.kinds import LONG, Machine, SerialMachine, alternating
from tests.interpose.rig import Access, Guest, Trigger

BASE = 0x3F8
DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(BASE, BASE + 8)
CHARACTER = 86_806
"""At 115,200 bit/s, ns."""


def setup(fcr: int = 0x87, ier: int = 0, divisor: int = 1, lcr: int = 0x03) -> Guest:
    """As a driver begins."""
    for port, value in ((LCR, 0x80), (DATA, divisor), (IER, divisor >> 8), (LCR, lcr), (IIR, fcr), (MCR, 0x0B), (SCR, 0x5A), (IER, ier)):
        yield Access(port, value)


def modes(m: Machine) -> Guest:
    """Read back what can be."""
    lcr = yield Access(LCR)
    yield Access(LCR, lcr | 0x80)
    low = yield Access(DATA)
    high = yield Access(IER)
    yield Access(LCR, lcr)
    values = [lcr, low, high]
    for port in (IER, MCR, SCR):
        values.append((yield Access(port)))
    m.log.append(("modes", *values, (yield Access(IIR)) >> 6))


def send(m: Machine, data: bytes) -> Guest:
    """Poll, as a boot loader does."""
    for byte in data:
        while not (yield Access(LSR)) & THRE:
            yield 5_000
        yield Access(DATA, byte)
    while (yield Access(LSR)) & 0x60 != 0x60:
        yield 5_000


def receive(m: Machine, count: int) -> Guest:
    got = bytearray()
    for _ in range(100_000):
        if len(got) == count:
            break
        if (yield Access(LSR)) & DR:
            got.append((yield Access(DATA)))
        else:
            yield 5_000
    m.log.append(("received", bytes(got)))


def served(m: Machine, out: bytes, count: int) -> Guest:
    """Serve interrupts, as an operating system does, until all is sent, ``count`` bytes have come, and nothing happened for 5 ms."""
    got, left, quiet = bytearray(), bytearray(out), 0
    while quiet < 500 or left or len(got) < count:
        if not m.line(4).level:
            quiet += 1
            yield 10_000
            continue
        quiet = 0
        cause = (yield Access(IIR)) & 0x0F
        if cause in (0x04, 0x0C):
            while (yield Access(LSR)) & DR:
                got.append((yield Access(DATA)))
        elif cause == 0x02:
            for byte in left[:16]:
                yield Access(DATA, byte)
            del left[:16]
        elif cause == 0x06:
            yield Access(LSR)
        elif cause == 0x00:
            yield Access(MSR)
    m.log.append(("served", bytes(got), bytes(left)))


def talking(m: SerialMachine) -> Guest:
    """Send and receive by polling, change the speed, look at everything."""
    yield from setup()
    m.uart.receive(b"hello, port")
    yield from send(m, b"ready, and more than a FIFO holds.")
    yield from receive(m, 11)
    yield from modes(m)
    yield from setup(fcr=0x41, divisor=3, lcr=0x1A)
    m.uart.receive(bytes(range(5)))
    yield from receive(m, 5)
    yield from send(m, b"slower")
    yield from modes(m)


def interrupted(m: SerialMachine) -> Guest:
    """Send and receive by interrupts."""
    yield from setup(ier=0x0F)
    m.uart.receive(bytes(range(40)))
    yield from served(m, bytes(range(100, 140)), 40)
    m.uart.set_modem(cts=False)
    while not m.line(4).level:
        yield 10_000
    m.log.append(("cause", (yield Access(IIR)) & 0x0F, "modem", (yield Access(MSR))))
    yield from modes(m)


GUESTS = {"talking": talking, "interrupted": interrupted}


def outcome(m: SerialMachine) -> tuple[object, ...]:
    m.pass_time(20_000_000)
    return m.log, bytes(m.wire)


@cache
def undisturbed(name: str) -> SerialMachine:
    m = SerialMachine()
    m.run(GUESTS[name](m))
    return m


def check(name: str, triggers: list[Trigger]) -> SerialMachine:
    m = SerialMachine(triggers)
    m.run(GUESTS[name](m))
    assert outcome(m) == outcome(undisturbed(name))
    assert m.driver.spurious == 0
    return m


@pytest.mark.parametrize("how", ["between", "middle", "inside"])
@pytest.mark.parametrize("name", GUESTS)
def test_a_switch_at_every_access_and_back(name: str, how: str) -> None:
    """H1, H2, H5, H6, H8, H9, H10, H13: nothing is lost, and every mode is what it was."""
    stages = set()
    for at in range(0, undisturbed(name).accesses, 7 if name == "talking" else 2):
        m = check(name, alternating([(at, how), (at + 3, how), (at + 40, how)]))
        assert m.reports or how == "inside"
        stages |= {report.stage for report in m.reports}
    if how == "between":
        assert stages == {Stage.IDLE.value}
    if how == "inside":
        assert {Stage.SENDING.value, Stage.INTERRUPT.value if name == "interrupted" else Stage.RECEIVING.value} <= stages


HOW = st.sampled_from(["between", "middle", "inside"])


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(GUESTS)), places=st.lists(st.tuples(st.integers(0, 400), HOW), min_size=1, max_size=10))
def test_random_places(name: str, places: list[tuple[int, str]]) -> None:
    check(name, alternating(places))


def taken(*, settled: bool = True, **setting: int) -> SerialMachine:
    """A port that was set and then virtualized."""
    m = SerialMachine()
    m.run(setup(**setting))
    m.switch(Plan(True))
    assert m.reports.pop().done
    if settled:
        m.pass_time(3_000_000)
    return m


@pytest.mark.parametrize("trigger", [0x01, 0x41, 0x81, 0xC1])
def test_the_trigger_level_is_found_out_and_restored(trigger: int) -> None:
    """H8: FCR cannot be read."""
    m = taken(settled=False, fcr=trigger, ier=1)
    assert m.driver.probing
    m.pass_time(3_000_000)
    assert not m.driver.probing
    assert m.port.fcr == trigger
    m.switch(Plan(False))
    (report,) = m.reports
    assert report.done
    assert isinstance(report.modes, SerialModes)
    assert (report.modes.fcr, report.modes.divisor, report.modes.lcr) == (trigger, 1, 3)
    assert m.uart.fcr == trigger
    m.uart.receive(bytes({0x01: 1, 0x41: 4, 0x81: 8, 0xC1: 14}[trigger] - 1))
    m.pass_time(CHARACTER * 20)
    count = len(m.uart.save().rx)
    assert m.uart._cause() == (1 if count == 0 else 0x0C)
    m.uart.receive(b"!")
    m.pass_time(CHARACTER)
    assert m.uart._cause() == 0x04


def test_it_is_found_out_later_when_the_port_was_sending() -> None:
    m = SerialMachine()
    m.run(setup(fcr=0x81))
    for byte in b"sixteen bytes...":
        m.perform(Access(DATA, byte))
    m.switch(Plan(True, middle=True))
    assert (m.driver.probing, m.port.trigger_known) == (False, False)
    m.uart.receive_break()
    m.pass_time(20 * CHARACTER + 3_000_000)
    assert m.perform(Access(LSR)) & (BI | FE)  # looking did not eat it
    m.perform(Access(DATA))
    m.pass_time(5_000_000)
    assert (m.port.fcr, m.port.trigger_known, bytes(m.wire)) == (0x81, True, b"sixteen bytes...")


def test_what_comes_while_the_port_is_looked_at_waits_on_the_wire() -> None:
    m = taken(settled=False, fcr=0xC7, ier=1)
    m.uart.receive(b"early")
    m.run(send(m, b"x"))
    m.run(receive(m, 5))
    assert m.log == [("received", b"early")]
    assert m.wire == b"x"


def test_what_waits_in_the_receiver_is_put_back_in_loopback() -> None:
    """H6, H10: up to a full FIFO, in order, with the modem's change that the guest has not seen."""
    m = SerialMachine()
    m.run(setup(fcr=0xC7, ier=0x09))
    m.run(modes(m))
    m.switch(Plan(True))
    m.pass_time(3_000_000)
    m.uart.receive(bytes(range(1, 17)))
    m.pass_time(20 * CHARACTER)
    m.uart.set_modem(dsr=False)
    m.switch(Plan(False, middle=True))
    m.uart.receive(b"late")  # while it is held
    assert m.perform(Access(MCR)) == 0x0B  # an access that waits
    assert (m.waits, m.reports[-1].done, m.front.way) == (1, True, Way.DIRECT)
    assert m.reports[-1].machine_pause_ns <= 2_000_000
    m.log.clear()
    m.run(receive(m, 20))
    assert m.log == [("received", bytes(range(1, 17)) + b"late")]
    assert m.perform(Access(MSR)) == 0x92  # DCD and CTS; DSR has changed


def test_interrupts_go_to_whom_they_belong() -> None:
    """H9: to the guest's own handler while direct, to the driver while virtualized, which has the emulated one raise the guest's."""
    m = SerialMachine()
    m.run(setup(fcr=1, ier=1))
    m.uart.receive(b"a")
    m.pass_time(CHARACTER)
    assert (m.line(4).level, m.line(4).edges) == (True, 1)
    m.switch(Plan(True, middle=True))
    assert (m.line(4).level, m.line(4).edges) == (True, 1)  # the level is replayed, and no edge is new
    assert m.perform(Access(IIR)) & 0x0F == 0x04
    assert m.perform(Access(DATA)) == ord("a")
    assert not m.line(4).level
    m.pass_time(3_000_000)
    m.uart.receive(b"b")
    m.pass_time(2 * CHARACTER)
    assert (m.line(4).level, m.line(4).edges) == (True, 2)
    m.switch(Plan(False, middle=True))
    m.pass_time(2_000_000)
    assert (m.reports[-1].done, m.line(4).level, m.line(4).edges) == (True, True, 2)


def test_an_error_that_the_guest_has_not_seen_waits_for_the_guest() -> None:
    """H11: it cannot be put back, so the port is given when it has been read."""
    m = taken()
    m.uart.receive_break()
    m.pass_time(2 * CHARACTER)
    m.switch(Plan(False, middle=True, patience=5_000_000))
    m.pass_time(1_000_000)
    assert not m.reports
    assert m.perform(Access(LSR)) & (BI | FE) == BI | FE
    assert m.perform(Access(DATA)) == 0
    assert m.reports[-1].done
    assert m.reports[-1].machine_pause_ns == 87_000  # the character itself had to be put back


def test_past_the_bound_the_guest_keeps_the_emulated_port() -> None:
    """H11: sixteen characters take 1.4 ms to put back; with half of that it is rolled back, and nothing is doubled."""
    m = taken()
    m.uart.receive(bytes(range(16)))
    m.pass_time(20 * CHARACTER)
    m.switch(Plan(False, middle=True, bound=700_000))
    m.pass_time(700_000)
    (report,) = m.reports
    assert (report.outcome, report.machine_pause_ns, m.front.way) == (Outcome.ROLLED_BACK, 700_000, Way.VIRTUALIZED)
    m.uart.receive(b"more")
    m.pass_time(5 * CHARACTER)
    m.run(receive(m, 20))
    assert m.log[-1] == ("received", bytes(range(16)) + b"more")
    m.switch(Plan(False, middle=True))
    assert m.reports[-1].done


def test_cancelled_while_it_is_given() -> None:
    m = taken()
    m.uart.receive(b"abcdef")
    m.pass_time(10 * CHARACTER)
    switch = m.switch(Plan(False, middle=True, bound=LONG))
    m.pass_time(100_000)
    assert switch.cancel()
    assert m.reports[-1].outcome is Outcome.CANCELLED
    m.pass_time(1_000_000)
    m.run(receive(m, 6))
    m.run(send(m, b"still here"))
    assert (m.log[-1], bytes(m.wire)) == (("received", b"abcdef"), b"still here")


def test_a_transmitter_that_never_empties() -> None:
    """The physical port hangs: the bytes stay where they are, and the switch says so."""
    m = taken()
    m.uart.receive(b"abc")
    m.pass_time(5 * CHARACTER)
    m.uart._tx_timer.callback = lambda: None
    m.switch(Plan(False, middle=True, bound=LONG))
    m.pass_time(2_000_000)
    (report,) = m.reports
    assert (report.outcome, report.reason) == (Outcome.FAILED, "com1 does not send")
    m.run(receive(m, 3))
    assert m.log[-1] == ("received", b"abc")


def test_saved_and_restored_while_virtualized() -> None:
    m = taken(fcr=0x41)
    m.uart.receive(b"kept")
    m.pass_time(6 * CHARACTER)
    state = m.front.save()
    m.run(receive(m, 4))
    m.front.restore(state)
    m.run(receive(m, 4))
    assert m.log == [("received", b"kept")] * 2
    with pytest.raises(ValueError, match="switch it first"):
        SerialMachine().front.restore(state)


EVENTS = {
    "write": lambda s: s.write(0, 65),
    "fifo": lambda s: s.write(2, 0xC7),
    "ready": lambda s: s.read(5, THRE),
    "data": lambda s: s.read(5, THRE | DR),
    "served": lambda s: s.read(2, 0xC2),
    "divisor": lambda s: s.look(0x83, False),
    "quiet": lambda s: s.look(0x03, False),
    "line": lambda s: s.look(0x03, True),
}
IDLE, D, S, R, N = Stage.IDLE, Stage.DIVISOR, Stage.SENDING, Stage.RECEIVING, Stage.INTERRUPT
TABLE = {
    IDLE: {"write": S, "fifo": IDLE, "ready": IDLE, "data": R, "served": IDLE, "divisor": D, "quiet": IDLE, "line": N},
    D: {"write": D, "fifo": D, "ready": D, "data": D, "served": D, "divisor": D, "quiet": IDLE, "line": N},
    S: {"write": S, "fifo": S, "ready": IDLE, "data": R, "served": IDLE, "divisor": D, "quiet": S, "line": N},
    R: {"write": R, "fifo": R, "ready": IDLE, "data": R, "served": R, "divisor": D, "quiet": R, "line": N},
    N: {"write": N, "fifo": N, "ready": N, "data": N, "served": N, "divisor": D, "quiet": IDLE, "line": N},
}
REACH = {IDLE: [], D: ["divisor"], S: ["write"], R: ["data"], N: ["line"]}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("stage", TABLE)
def test_every_stage_with_every_event(stage: Stage, event: str) -> None:
    """H4."""
    sequence = SerialSequence()
    for step in REACH[stage]:
        EVENTS[step](sequence)
    assert sequence.stage is stage
    EVENTS[event](sequence)
    assert sequence.stage is TABLE[stage][event]
    assert sequence.over == (sequence.stage is IDLE)
    assert sequence.fcr == (0xC1 if event == "fifo" else None)
