"""The guest port as the guest's kernel sees it, and one that misbehaves."""

from __future__ import annotations

import pytest

from avmm.devices.guest_port import GuestPort
from tests.devices.bench import Bench


def test_asking_and_answering() -> None:
    bench = Bench()
    port = GuestPort(bench)
    assert bench.read(port, 0x5F0) == 0xFF, "nothing is wanted"
    assert port.mode is None
    bench.write(port, 0x5F0, 0, 2)
    assert (port.mode, port.error) == (0, 0)
    port.ask(1)
    assert not port.answered
    assert bench.lines[10].level
    assert bench.read(port, 0x5F0) == 1
    assert not bench.lines[10].level
    assert bench.read(port, 0x5F0) == 0xFF
    assert not port.answered
    bench.write(port, 0x5F0, 0x0C00, 2)
    assert (port.answered, port.mode, port.error) == (True, 0, 12)
    port.ask(2)
    port.ask(1)
    assert bench.lines[10].edges >= 3, "each wish is an edge"
    assert bench.read(port, 0x5F0, 2) == 1, "the last one counts"


def test_steps_are_told_while_somebody_listens() -> None:
    bench = Bench()
    port = GuestPort(bench)
    heard: list[tuple[int, int]] = []
    bench.write(port, 0x5F4, 0x01000001, 4)
    port.listener = lambda step, number: heard.append((step, number))
    port.tell(True)
    assert not bench.lines[10].level, "nobody is there to be told"
    bench.write(port, 0x5F0, 0, 2)
    port.listener = lambda step, number: heard.append((step, number))
    port.tell(True)
    assert bench.lines[10].level
    assert bench.read(port, 0x5F0, 2) == 0x01FF
    bench.write(port, 0x5F4, 0xFF000002, 4)
    assert heard == [(0xFF, 2)]
    assert bench.read(port, 0x5F4, 4) == 0xFFFFFFFF
    port.listener = None
    port.tell(False)
    assert bench.read(port, 0x5F0, 2) == 0x00FF
    bench.write(port, 0x5F4, 0x01000003, 4)
    assert len(heard) == 1


def test_reset_and_saved_state() -> None:
    bench = Bench()
    port = GuestPort(bench)
    bench.write(port, 0x5F0, 2, 2)
    port.ask(1)
    other = Bench()
    twin = GuestPort(other)
    twin.restore(port.save())
    assert other.lines[10].level
    assert (twin.mode, twin.answered, other.read(twin, 0x5F0)) == (2, False, 1)
    port.reset()
    assert (port.mode, port.answered, bench.lines[10].level, bench.read(port, 0x5F0)) == (None, True, False, 0xFF)
    with pytest.raises(ValueError, match="not a saved state"):
        port.restore(None)
