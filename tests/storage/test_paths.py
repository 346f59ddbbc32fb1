"""One trace of reads, writes and flushes through every way to a disk: emulated PIO, emulated DMA, StorVSP, and the shunt alone.

Same bytes and same ends, by each way and with a change from each to each other at every place of the trace. In real time DMA and StorVSP
go straight between memory and a medium that need not wait; those are ways of their own.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations

import pytest

from avmm.devices.ata import AtaDisk
from avmm.devices.block import SECTOR
from avmm.storage.scsi_disk import ScsiDisk
from tests.devices.ata.host import BUFFER, Host, pattern
from tests.devices.bench import MemoryDisk
from tests.storage.guest import Answer, Storvsc
from tests.storage.test_prompt import RealTime

SECTORS = 512
Step = tuple[str, int, int]


class PromptDisk(MemoryDisk):
    """Has two of three requests done at once by whoever asks for that."""

    def __init__(self, sectors: int) -> None:
        super().__init__(sectors)
        self.asked = 0

    def _willing(self, lba: int, count: int) -> bool:
        self._check(lba, count)
        self.asked += 1
        return self.asked % 3 > 0

    def read_now(self, lba: int, count: int, pieces: Sequence[memoryview], id: int = 0) -> bool:
        if not self._willing(lba, count):
            return False
        at = lba * SECTOR
        for piece in pieces:
            piece[:] = self.data[at : at + len(piece)]
            at += len(piece)
        return True

    def write_now(self, lba: int, count: int, pieces: Sequence[memoryview], id: int = 0) -> bool:
        if not self._willing(lba, count):
            return False
        self.data[lba * SECTOR : (lba + count) * SECTOR] = b"".join(pieces)
        return True


class Straight(RealTime):
    """A driver whose requests are waited for one by one."""

    def answers(self) -> dict[int, Answer]:
        self.finish()
        self.under_way.clear()
        return self.now()


Path = Callable[[PromptDisk], Callable[[Step, bytes], tuple[str, bytes]]]


def trace(seed: int, length: int = 120) -> list[Step]:
    """Return steps, some of them beyond the end of the disk or onto a bad sector."""
    chance = random.Random(seed)
    steps: list[Step] = []
    for _ in range(length):
        op = chance.choice(["read", "read", "write", "write", "flush"])
        count = chance.choice([1, 1, 2, 8, 8, 17, 64, 128])
        steps.append((op, chance.randrange(SECTORS + 20), count))
    return steps


def content(index: int, count: int) -> bytes:
    return struct.pack("<II", index, 0xC0FFEE) * (count * SECTOR // 8)


def pio(medium: MemoryDisk) -> Callable[[Step, bytes], tuple[str, bytes]]:
    host = Host([AtaDisk(medium)], ram=4 << 20)

    def ended() -> str:
        status = host.wait()
        host.inp(7)
        return _ata_outcome(status, host.inp(1))

    def step(step: Step, data: bytes) -> tuple[str, bytes]:
        op, lba, count = step
        if op == "flush":
            host.out(7, 0xE7)
            return ended(), b""
        host.lba28(0x20 if op == "read" else 0x30, lba, count)
        found = b""
        while host.wait() & 0x89 == 0x08:
            host.inp(7)
            if op == "read":
                found += host.read_block(SECTOR)
            else:
                host.write_block(data[:SECTOR])
                data = data[SECTOR:]
        outcome = ended()
        return outcome, found if outcome == "good" else b""

    return step


def dma(medium: MemoryDisk, *, virtual: bool = True) -> Callable[[Step, bytes], tuple[str, bytes]]:
    host = Host([AtaDisk(medium)], ram=4 << 20)
    host.clock.virtual = virtual

    def step(step: Step, data: bytes) -> tuple[str, bytes]:
        op, lba, count = step
        if op == "flush":
            host.out(7, 0xE7)
        else:
            host.memory.write(BUFFER, data)
            size = count * SECTOR
            host.prd(*[(BUFFER + at, min(size - at, 0x10000)) for at in range(0, size, 0x10000)])
            host.lba28(0xC8 if op == "read" else 0xCA, lba, count)
            host.start_dma(op == "read")
        status = host.wait()
        host.inp(7)
        outcome = _ata_outcome(status, host.inp(1))
        host.stop_dma()
        return outcome, host.memory.read(BUFFER, count * SECTOR) if op == "read" and outcome == "good" else b""

    return step


def _ata_outcome(status: int, error: int) -> str:
    if not status & 1:
        return "good"
    return {0x10: "range", 0x40: "medium"}.get(error & 0x50, f"error {error:#x}")


def storvsp(medium: MemoryDisk, driver: type[Storvsc] = Storvsc) -> Callable[[Step, bytes], tuple[str, bytes]]:
    guest = driver(ScsiDisk(medium))
    reasons = {(5, 0x21): "range", (3, 0x11): "medium", (3, 0x0C): "medium"}

    def step(step: Step, data: bytes) -> tuple[str, bytes]:
        op, lba, count = step
        if op == "read":
            answer = guest.read_sectors(lba, count)
        else:
            answer = guest.write_sectors(lba, data) if op == "write" else guest.run(b"\x35" + bytes(9))
        outcome = "good" if answer.good else reasons[answer.why[:2]]
        return outcome, answer.data if op == "read" and answer.good else b""

    return step


def shunt(medium: MemoryDisk) -> Callable[[Step, bytes], tuple[str, bytes]]:
    """Primary requests go straight to VM-H, the others through the trap."""
    primary, secondary = storvsp(medium), pio(medium)
    return lambda step, data: (secondary if step[0] == "flush" else primary)(step, data)


PATHS: dict[str, Path] = {
    "pio": pio, "dma": dma, "shunt": shunt, "enlightened": storvsp,
    "straight dma": partial(dma, virtual=False), "straight enlightened": partial(storvsp, driver=Straight),
}  # fmt: skip


def play(path: Path, steps: list[Step], bad: set[int], then: Path | None = None, at: int = 0) -> tuple[list[tuple[str, bytes]], bytes]:
    """Make the steps by one path, from step ``at`` on by another, ``then``."""
    medium = PromptDisk(SECTORS)
    medium.data[:] = pattern(SECTORS)
    medium.bad = bad
    first = path(medium)
    second = then(medium) if then is not None else first
    answers = [
        (first if then is None or index < at else second)(one, content(index, one[2]) if one[0] == "write" else b"")
        for index, one in enumerate(steps)
    ]
    if then is None:
        assert (medium.asked > 0) == (path in (PATHS["straight dma"], PATHS["straight enlightened"]))
    return answers, bytes(medium.data)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_path_gives_the_same_bytes_and_the_same_errors(seed: int) -> None:
    steps = trace(seed)
    by_pio = play(pio, steps, set())
    assert {"good", "range"} == {outcome for outcome, _ in by_pio[0]}
    for path in PATHS.values():
        assert play(path, steps, set()) == by_pio


def test_every_path_reports_a_bad_sector() -> None:
    # Reads only: a drive that writes in blocks may have written those before the bad one, and PIO and DMA block differently.
    steps = [step for step in trace(4, 60) if step[0] != "write"]
    by_pio = play(pio, steps, {100, 300})
    assert "medium" in {outcome for outcome, _ in by_pio[0]}
    for path in PATHS.values():
        assert play(path, steps, {100, 300}) == by_pio


@pytest.mark.parametrize("length", [8, pytest.param(60, marks=pytest.mark.long)])
def test_a_switch_at_every_place_changes_nothing(length: int) -> None:
    steps = trace(5, length)
    expected = play(pio, steps, set())
    for (one, first), (other, second) in permutations(PATHS.items(), 2):
        for at in range(length + 1):
            assert play(first, steps, set(), second, at) == expected, f"from {one} to {other} at step {at}"
