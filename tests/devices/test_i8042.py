"""The keyboard controller by IBM's manuals, and by what Linux (i8042, libps2, atkbd, psmouse) does with it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.devices.i8042 import GAP, I8042
from tests.devices.kbc import MS, Pc


@pytest.fixture
def pc():
    return Pc()


# -- controller


def test_linux_probe(pc):
    """i8042_controller_check, _selftest, _init, check_aux: with the answers of a PC that has both ports."""
    assert pc.status() == 0x10
    assert pc.ask(0xAA) == 0x55
    assert pc.status() & 4  # system flag
    ctr = pc.ask(0x20)
    assert pc.ask(0x20) == ctr
    pc.command(0x60, (ctr | 0x10) & ~0x01)
    for value in (0x5A, 0xA5):
        pc.command(0xD3, value)
        assert pc.status() & 0x21 == 0x21
        assert pc.data() == value
    for value in (0xF0, 0x56, 0xA4):  # a multiplexer would answer the last with its version
        pc.command(0xD3, value)
        assert pc.poll() == value
    pc.command(0xA7)
    assert pc.ask(0x20) & 0x20
    pc.command(0xA8)
    assert not pc.ask(0x20) & 0x20
    assert pc.ask(0xA9) == 0
    assert pc.ask(0xAB) == 0
    pc.command(0x60, 0x46)
    edges = pc.irq12.edges
    pc.command(0xD3, 0xA5)
    assert pc.irq12.edges == edges + 1  # the test whether IRQ 12 arrives
    assert not pc.irq1.level
    assert pc.data() == 0xA5
    assert not pc.irq12.level


def test_status_bits(pc):
    pc.command(0xD2, 0x42)
    assert pc.status() == 0x11
    pc.command(0xAA)
    assert pc.status() & 0x08
    pc.bench.write(pc.kbc, 0x60, 0xEE)
    assert not pc.status() & 0x08


@pytest.mark.parametrize("number", [0x01, 0x0F, 0x1F])
def test_controller_ram(pc, number):
    pc.command(0x60 + number, 0x99)
    assert pc.ask(0x20 + number) == 0x99
    assert pc.ask(0x20) == 0x61


def test_ports_with_nothing_plugged_in_time_out():
    pc = Pc(keyboard=False, mouse=False)
    pc.bench.write(pc.kbc, 0x60, 0xF2)
    assert pc.status() & 0x61 == 0x41
    assert pc.data() == 0xFE
    pc.command(0xD4, 0xF2)
    assert pc.status() & 0x61 == 0x61
    assert pc.data() == 0xFE
    assert not pc.kbc.press("a")
    pc.kbc.mouse(1, 1)
    assert pc.kbc.idle


@pytest.mark.parametrize(
    ("port", "value", "resets"),
    [(0x64, 0xFE, 1), (0x64, 0xF0, 1), (0x64, 0xFF, 0), (0x64, 0xFD, 0), (0x92, 0x01, 1), (0x92, 0x03, 1), (0x92, 0x02, 0)],
)
def test_reset_line(pc, port, value, resets):
    pc.bench.write(pc.kbc, port, value)
    assert len(pc.bench.requests) == resets


def test_reset_by_the_output_port(pc):
    pc.command(0xD1, 0xDE)
    assert pc.bench.requests == ["reset: keyboard controller"]


def test_a20_gate(pc):
    seen = []
    pc.kbc.on_a20 = seen.append
    assert pc.ask(0xD0) & 2
    pc.command(0xD1, 0xDD)
    assert (pc.kbc.a20, pc.bench.read(pc.kbc, 0x92)) == (False, 0)
    pc.bench.write(pc.kbc, 0x92, 2)
    assert pc.bench.read(pc.kbc, 0x92) == 2
    assert pc.ask(0xD0) & 2
    pc.command(0xDD)
    pc.command(0xDF)
    assert seen == [False, True, False, True]


def test_a_reply_gives_back_the_key_it_pushed_aside(pc):
    pc.kbc.press("a")
    pc.command(0x20)
    assert pc.data() == 0x61
    assert pc.poll() == 0x1E


def test_one_edge_for_each_byte(pc):
    pc.kbc.press("up")
    assert (pc.irq1.edges, pc.irq1.level) == (1, True)
    assert pc.data() == 0xE0
    assert not pc.irq1.level
    assert not pc.status() & 1
    assert pc.data() == 0xE0  # the old byte again
    pc.bench.pass_time(GAP - 1)
    assert not pc.irq1.level
    pc.bench.pass_time(GAP)
    assert (pc.irq1.edges, pc.irq1.level) == (2, True)
    assert pc.data() == 0x48


def test_a_poll_sees_the_next_byte_before_the_timer_is_served(pc):
    pc.kbc.press("up")
    pc.data()
    pc.bench.time += GAP  # machine time has passed, timers have not run
    assert pc.status() & 1
    assert pc.data() == 0x48


def test_interface_off_holds_the_key(pc):
    pc.command(0xAD)
    pc.kbc.press("a")
    assert not pc.status() & 1
    assert not pc.kbc.idle
    edges = pc.irq1.edges
    pc.command(0x20)
    assert pc.irq1.edges == edges  # asked in peace
    assert pc.data() == 0x71
    pc.bench.pass_time(MS)
    pc.command(0xAE)
    assert pc.irq1.edges == edges + 1
    assert pc.data() == 0x1E
    assert pc.kbc.idle


# -- state


def test_save_and_restore_in_the_middle():
    pc = Pc()
    pc.awake(4)
    pc.command(0x60, 0x47)
    pc.type("Hello")
    pc.kbc.press("alt")
    pc.kbc.mouse(700, 3, 5, 1)
    pc.kbc.mouse(0, 0, 0, 0)
    pc.data()
    pc.command(0x20)
    twin = Pc()
    twin.bench.time = pc.bench.time
    gates = []
    twin.kbc.on_a20 = gates.append
    state = pc.kbc.save()
    twin.kbc.restore(state)
    assert gates == [True]
    assert twin.kbc.save() == state
    for _ in range(200):
        for one in (pc, twin):
            one.bench.pass_time(310_000)
        assert (pc.irq1.level, pc.irq12.level) == (twin.irq1.level, twin.irq12.level)
        assert (pc.status(), pc.data()) == (twin.status(), twin.data())
        assert pc.kbc.save() == twin.kbc.save()
    assert twin.kbc.idle
    assert twin.kbc.release("alt")
    with pytest.raises(ValueError, match="keyboard controller"):
        twin.kbc.restore(I8042.State(version=2))


def test_reset(pc):
    pc.awake()
    pc.type("some text that waits")
    pc.kbc.press("ctrl")
    pc.kbc.mouse(5, 5)
    pc.command(0xDD)
    pc.kbc.reset()
    assert pc.kbc.a20
    assert pc.kbc.idle
    assert (pc.irq1.level, pc.irq12.level) == (False, False)
    pc.bench.pass_time(1_000 * MS)
    assert pc.status() == 0x10
    assert not pc.kbc.release("ctrl")
    assert pc.ask(0x20) == 0x61


traffic = st.one_of(
    st.tuples(st.just("get"), st.sampled_from([0x60, 0x64, 0x92]), st.just(0)),
    st.tuples(st.just("put"), st.sampled_from([0x60, 0x64, 0x92]), st.integers(0, 255)),
    st.tuples(st.just("put"), st.just(0x60), st.integers(0xE6, 255)),
    st.tuples(st.just("aux"), st.integers(0, 255), st.just(0)),
    st.tuples(st.just("aux"), st.integers(0xE6, 255), st.just(0)),
    st.tuples(st.just("key"), st.sampled_from(["a", "print", "pause", "ctrl", "alt", "volumeup", "up"]), st.booleans()),
    st.tuples(st.just("move"), st.integers(-9000, 9000), st.integers(0, 31)),
    st.tuples(st.just("time"), st.integers(0, 20_000_000), st.just(0)),
)


@settings(derandomize=True, max_examples=120, deadline=None)
@given(st.lists(traffic, max_size=80), st.booleans())
def test_random_traffic_never_raises(steps, patient):
    pc = Pc(patient=patient)
    for what, a, b in steps:
        match what:
            case "get":
                pc.bench.read(pc.kbc, a)
            case "put":
                pc.bench.write(pc.kbc, a, b)
            case "aux":
                pc.command(0xD4, a)
            case "key":
                (pc.kbc.press if b else pc.kbc.release)(a)
            case "move":
                pc.kbc.mouse(a, -a // 2, a // 1000, b)
            case "time":
                pc.bench.pass_time(a)
        assert not (pc.irq1.level and pc.irq12.level)
        assert len(pc.kbc.keyboard._buffer) <= 17
    twin = Pc(patient=patient)
    twin.kbc.restore(pc.kbc.save())
    assert twin.kbc.save() == pc.kbc.save()
    # Whatever state that was, a driver's start brings both devices back.
    for one in (pc, twin):
        one.command(0x60, 0x03)
        one.drain()
        one.keyboard(0xFF)
        one.mouse(0xFF)
        assert one.keyboard(0xF2)[:3] == b"\xfa\xab\x83"
        assert one.mouse(0xF2) == b"\xfa\x00"
