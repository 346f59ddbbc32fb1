"""DMA straight between a prompt medium and memory, as in real time, against the way through a buffer."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.devices.ata import Phase
from avmm.devices.block import SECTOR
from tests.devices.ata.host import BMIDE, BUFFER, TABLE, Host, pattern, prompt_host

ACTIVE, ERROR, INTERRUPT = 1, 2, 4
OUTSIDE = 0x200000
READ, WRITE, READ_EXT, WRITE_EXT = 0xC8, 0xCA, 0x25, 0x35


@pytest.mark.parametrize("early", [False, True], ids=["start after command", "start before command"])
@pytest.mark.parametrize("to_memory", [True, False])
def test_it_is_done_when_both_are_there(to_memory: bool, early: bool) -> None:
    host, medium = prompt_host()
    data = pattern(4, 7)
    host.prd((BUFFER, 512), (BUFFER + 512, 1024), (0x30000, 512))
    if not to_memory:
        host.memory.write(BUFFER, data[:1536])
        host.memory.write(0x30000, data[1536:])
    changed: list[tuple[int, int]] = []
    host.memory.on_write = lambda address, length: changed.append((address, length))
    if early:
        host.start_dma(to_memory)
    host.lba28(READ if to_memory else WRITE, 9, 4)
    if not early:
        assert host.alternate() == 0x58  # the drive asks; nothing has moved
        assert not medium.straight
        host.start_dma(to_memory)
    assert medium.straight == [("read" if to_memory else "write", 9, 4)]
    assert host.dma_status() == INTERRUPT
    assert host.irq.level
    assert host.inp(7) == 0x50
    assert host.registers()[:4] == (0, 12, 0, 0)
    if to_memory:
        assert host.memory.read(BUFFER, 1536) + host.memory.read(0x30000, 512) == medium.data[9 * 512 : 13 * 512]
        assert changed == [(BUFFER, 1536), (0x30000, 512)]
    else:
        assert medium.data[9 * 512 : 13 * 512] == data
        assert not changed
    assert not medium.log


def test_a_large_command_goes_through_the_buffer() -> None:
    host, medium = prompt_host()
    medium.data.extend(bytes(2048 * SECTOR))
    host.prd(*[(BUFFER, 0x8000)] * 64)
    host.lba48(READ_EXT, 0, 2049)
    host.start_dma(to_memory=True)
    host.wait()
    assert medium.log[0] == ("read", 0, 256)
    assert medium.straight[0] == ("read", 256, 256)  # what is left is not too large any more
    assert host.inp(7) == 0x50


def test_memory_in_many_small_pieces_goes_through_the_buffer() -> None:
    host, medium = prompt_host()
    for i in range(1024):
        host.memory.pack("<II", TABLE + 8 * i, BUFFER + 4 * i, 2 | (i == 1023) << 31)
    host.write(host.dma, BMIDE + 4, TABLE, 4)
    host.lba28(READ, 3, 4)
    host.start_dma(to_memory=True)
    assert host.wait() == 0x50
    assert not medium.straight
    got = b"".join(host.memory.read(BUFFER + 4 * i, 2) for i in range(1024))
    assert got == medium.data[3 * 512 : 7 * 512]


def test_saved_while_the_drive_waits_for_the_bus_master() -> None:
    host, medium = prompt_host()
    host.prd((BUFFER, 1024))
    host.lba28(READ, 5, 2)
    saved, engine = host.ata.save(), host.dma.save()
    assert (saved.phase, saved.buffer, saved.remaining) == (Phase.DMA_IN, b"", 2)
    for plain in (False, True):
        other, target = prompt_host()
        if plain:
            target.willing = itertools.repeat(False)
        other.memory.view[:] = host.memory.view
        other.ata.restore(saved)
        other.dma.restore(engine)
        other.start_dma(to_memory=True)
        assert other.wait() == 0x50
        assert other.memory.read(BUFFER, 1024) == medium.data[5 * 512 : 7 * 512]
        assert bool(target.straight) is not plain


def test_a_reset_takes_the_command_back() -> None:
    host, medium = prompt_host()
    host.prd((BUFFER, 1024))
    host.lba28(READ, 5, 2)
    host.write(host.ata, host.control, 4)
    host.write(host.ata, host.control, 0)
    host.start_dma(to_memory=True)
    host.wait()
    assert not medium.straight
    assert host.dma_status() == ACTIVE


REGIONS = st.lists(
    st.tuples(
        st.sampled_from([0x20000, 0x20200, 0x21000, 0x30001, 0x3FE00, 0xFFC00, OUTSIDE]), st.sampled_from([0, 2, 510, 512, 1024, 4096, 0x8000])
    ),
    min_size=1, max_size=5,
)  # fmt: skip
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("table"), REGIONS, st.booleans()),
        st.tuples(st.just("command"), st.sampled_from([READ, WRITE, READ_EXT, WRITE_EXT]), st.integers(0, 2047), st.integers(1, 600)),
        st.tuples(st.just("start"), st.booleans()),
        st.tuples(st.just("stop")),
        st.tuples(st.just("status")),
        st.tuples(st.just("reset")),
    ),
    min_size=3, max_size=14,
)  # fmt: skip


def _step(host: Host, step: tuple[Any, ...], at_once: bool) -> None:
    """Make a step; ``at_once``: a bus master is started with each command, as a bad sector shows no earlier than that when data go straight."""
    kind = step[0]
    if kind == "table":
        regions, ended = step[1:]
        for i, (address, size) in enumerate(regions):
            last = ended and i == len(regions) - 1
            host.memory.pack("<II", TABLE + 8 * i, address, size | last << 31)
        host.memory.pack("<II", TABLE + 8 * len(regions), OUTSIDE, 512)  # a table that is not ended leads out of memory, not into itself
        host.write(host.dma, BMIDE + 4, TABLE, 4)
    elif kind == "command":
        _, code, lba, count = step
        if at_once:
            host.stop_dma()
        (host.lba48 if code in (READ_EXT, WRITE_EXT) else host.lba28)(code, lba, count)
        if at_once:
            host.start_dma(code in (READ, READ_EXT))
    elif kind == "start":
        host.start_dma(step[1])
    elif kind == "stop":
        host.stop_dma()
    elif kind == "status":
        host.inp(7)
        host.write(host.dma, BMIDE + 2, ERROR | INTERRUPT)
    else:
        host.write(host.ata, host.control, 4)
        host.write(host.ata, host.control, 0)


@settings(max_examples=120, derandomize=True, deadline=None)
@given(STEPS, st.sets(st.integers(0, 2047), max_size=2), st.integers(0, 7))
def test_the_same_as_through_the_buffer(steps: list[tuple[Any, ...]], bad: set[int], unwilling: int) -> None:
    seen = []
    for straight in (False, True):
        host, medium = prompt_host()
        host.clock.virtual = not straight
        medium.bad = bad
        medium.willing = itertools.cycle(bool(unwilling & 1 << i) is False for i in range(3))
        host.memory.view[0x20000:] = pattern((len(host.memory.view) - 0x20000) // SECTOR, 3)
        shown = []
        for step in [("table", [(0x20000, 512)], False), *steps]:
            _step(host, step, bool(bad))
            host.pass_time(1_000_000_000)
            (drive,) = host.ata.present
            shown.append((host.alternate(), host.dma_status(), drive.task.error, host.irq.edges, host.irq.level,
                          host.ata.phase, host.registers()))  # fmt: skip
        seen.append((shown, bytes(host.memory.view), bytes(medium.data)))
    assert seen[0] == seen[1]
