"""The mouse, seen through the controller."""

from __future__ import annotations

import pytest

from tests.devices.kbc import MS, Pc


@pytest.fixture
def pc():
    return Pc()


def packets(pc, size=3):
    out = []
    for _ in range(40):
        out += list(pc.drain())
        pc.bench.pass_time(10 * MS)
    assert len(out) % size == 0
    return [tuple(out[at : at + size]) for at in range(0, len(out), size)]


def test_psmouse_probe(pc):
    pc.raw()
    assert pc.mouse(0xF2) == b"\xfa\x00"
    assert pc.mouse(0xF6) == b"\xfa"
    assert pc.mouse(0xFF) == b"\xfa\xaa\x00"
    assert pc.mouse(0xE8, 0, 0xE8, 0, 0xE8, 0, 0xE8, 0, 0xE9) == b"\xfa" * 8 + b"\xfa\x00\x00\x64"  # no Synaptics pad
    assert pc.mouse(0xE7, 0xF4, 0xE9) == b"\xfa\xfa\xfa\x30\x00\x64"
    assert pc.mouse(0xE1) == b"\xfe"
    assert pc.irq12.edges


@pytest.mark.parametrize(("ident", "expected"), [(0, 3), (3, 4), (4, 4)])
def test_movement(pc, ident, expected):
    pc.awake(ident)
    pc.kbc.mouse(5, 3, 2, 0b11001)
    (packet,) = packets(pc, expected)
    assert packet[:3] == (0x08 | 0x20 | 1, 5, 0xFD)
    assert packet[3:] == {0: (), 3: (0xFE,), 4: (0x3E,)}[ident]
    assert pc.status() & 1 == 0
    assert pc.kbc.idle


def test_packet_carries_the_aux_mark_and_irq_12(pc):
    pc.awake()
    pc.kbc.mouse(-1, 0)
    assert pc.irq12.level
    assert not pc.irq1.level
    assert pc.status() & 0x21 == 0x21
    assert pc.drain() == bytes([0x18, 0xFF, 0])


def test_sample_rate_limits_packets(pc):
    pc.awake()
    for _ in range(10):
        pc.kbc.mouse(1, 0)
    assert pc.drain() == bytes([8, 1, 0])
    pc.bench.pass_time(4 * MS)
    assert pc.drain() == b""
    pc.bench.pass_time(10 * MS)
    assert pc.drain() == bytes([8, 9, 0])


def test_long_way_and_overflow(pc):
    pc.awake()
    pc.kbc.mouse(600, -300)
    assert packets(pc) == [(8, 255, 255), (8, 255, 45), (8, 90, 0)]
    pc.kbc.mouse(-10_000, 0)
    first, *rest = packets(pc)
    assert first == (0x58, 1, 0)
    assert sum(x - 256 for _, x, _ in rest) == -4095 + 255
    assert all(head == 0x18 for head, _, _ in rest)


def test_a_click_between_two_samples_is_seen(pc):
    pc.awake()
    pc.kbc.mouse(1, 0)
    for buttons in (1, 0, 2, 0):
        pc.kbc.mouse(0, 0, 0, buttons)
    assert [head & 7 for head, _, _ in packets(pc)] == [0, 1, 0, 2, 0]


def test_a_command_cuts_a_packet_but_not_its_buttons(pc):
    pc.awake()
    pc.kbc.mouse(0, 0, 0, 1)
    assert pc.poll() == 9
    assert pc.mouse(0xE6)[-1:] == b"\xfa"
    pc.bench.pass_time(20 * MS)
    assert packets(pc) == [(9, 0, 0)]


def test_remote_mode_and_scaling(pc):
    pc.awake()
    assert pc.mouse(0xF0) == b"\xfa"
    pc.kbc.mouse(7, 0)
    pc.kbc.mouse(7, 1)
    assert pc.drain() == b""
    assert pc.mouse(0xEB) == bytes([0xFA, 0x28, 14, 0xFF])
    assert pc.mouse(0xE9)[1] == 0x60
    assert pc.mouse(0xEA, 0xE7) == b"\xfa\xfa"
    pc.kbc.mouse(4, -6)
    assert packets(pc) == [(8, 6, 12)]


def test_wrap_mode(pc):
    pc.raw()
    assert pc.mouse(0xEE) == b"\xfa"
    assert pc.mouse(0xF2, 0x55, 0xEE) == b"\xf2\x55\xee"
    assert pc.mouse(0xEC) == b"\xfa"
    assert pc.mouse(0xF2) == b"\xfa\x00"


def test_mouse_mistakes(pc):
    pc.raw()
    assert pc.mouse(0x01, 0x01) == b"\xfe\xfc"
    assert pc.mouse(0xE8, 9, 3) == b"\xfa\xfe\xfa"
    assert pc.mouse(0xF3, 99, 99) == b"\xfa\xfe\xfc"
    assert pc.mouse(0xE9) == b"\xfa\x00\x03\x64"
    assert pc.mouse(0xF2, 0xFE) == b"\xfa\x00\x00"


def test_nothing_moves_before_reporting(pc):
    pc.raw()
    pc.kbc.mouse(9, 9, 0, 1)
    assert pc.kbc.idle
    assert pc.mouse(0xF4) == b"\xfa"
    assert pc.drain() == b""
    pc.kbc.mouse(1, 0)
    assert packets(pc) == [(9, 1, 0)]


def test_saved_between_two_samples(pc):
    pc.awake()
    pc.kbc.mouse(1, 0)
    pc.kbc.mouse(2, 0)
    assert pc.drain() == bytes([8, 1, 0])
    twin = Pc()
    twin.bench.time = pc.bench.time
    twin.kbc.restore(pc.kbc.save())
    for one in (pc, twin):
        one.bench.pass_time(10 * MS)
        assert one.irq12.level
        assert one.drain() == bytes([8, 2, 0])
