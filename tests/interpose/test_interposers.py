"""Interposers between an emulated disk and the driver."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avmm.devices.block import SECTOR, BlockDevice, BlockError
from avmm.interpose.interposers.fault import FaultLayer, Rule
from avmm.interpose.interposers.limit import LimitLayer
from avmm.interpose.interposers.mirror import MirrorLayer
from avmm.interpose.interposers.stack import Interposed, Interposer
from avmm.interpose.interposers.trace import TraceLayer
from avmm.interpose.strand import Strand
from tests.devices.bench import Bench, MemoryDisk


class Rig(Bench):
    def __init__(self) -> None:
        super().__init__()
        self.medium = MemoryDisk(256)
        self.medium.data[:] = bytes(i // SECTOR & 0xFF for i in range(256 * SECTOR))
        self.layers: list[Interposer] = []
        self.disk: BlockDevice = Interposed(0, self.medium, self.layers)

    def run(self, work: Any) -> Any:
        results: list[Any] = []
        Strand(work, results.append)
        for _ in range(1000):
            if results:
                if isinstance(results[0], BaseException):
                    raise results[0]
                return results[0]
            self.pass_time(1_000_000)
        raise AssertionError("it takes for ever")


def test_trace(tmp_path: Path) -> None:
    rig = Rig()
    trace = TraceLayer(rig.clock, tmp_path / "trace")
    rig.medium.bad.add(9)
    rig.layers.append(FaultLayer(rig.clock, [Rule("delay", op="read", seconds=0.002)]))
    rig.layers.append(trace)
    assert rig.run(rig.disk.read(3, 2)) == bytes(rig.medium.data[3 * SECTOR : 5 * SECTOR])
    rig.run(rig.disk.write(7, bytes(SECTOR)))
    rig.run(rig.disk.flush())
    with pytest.raises(BlockError):
        rig.run(rig.disk.read(9, 1))
    trace.close()
    lines = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    assert [(line["op"], line["lba"], line["count"], line["ns"], line["error"]) for line in lines] == [
        ("read", 3, 2, 2_000_000, ""), ("write", 7, 1, 0, ""), ("flush", 0, 0, 0, ""), ("read", 9, 1, 2_000_000, "MEDIUM"),
    ]  # fmt: skip


def test_a_trace_whose_disk_is_full_ends_and_disturbs_nobody() -> None:
    rig = Rig()
    trace = TraceLayer(rig.clock, "/dev/full")
    rig.layers.append(trace)
    for lba in (3, 4):
        assert rig.run(rig.disk.read(lba, 1)) == bytes([lba]) * SECTOR
    assert trace.status() == {"file": "/dev/full", "requests": 2, "failed": "cannot write /dev/full: No space left on device"}
    trace.close()


def test_faults_by_rule() -> None:
    rig = Rig()
    faults = FaultLayer(rig.clock, [Rule("error", op="read", first=10, last=19, times=1), Rule("torn", op="write", first=100)])
    rig.layers.append(faults)
    rig.run(rig.disk.read(0, 10))
    with pytest.raises(BlockError) as caught:
        rig.run(rig.disk.read(5, 10))
    assert caught.value.lba == 10
    rig.run(rig.disk.read(5, 10))  # once only
    with pytest.raises(BlockError) as caught:
        rig.run(rig.disk.write(100, b"\xee" * 4 * SECTOR))
    assert caught.value.lba == 102
    assert rig.medium.data[100 * SECTOR : 104 * SECTOR] == b"\xee" * 2 * SECTOR + b"\x66" * SECTOR + b"\x67" * SECTOR
    assert faults.hits == [1, 1]


def test_probability_repeats_with_the_seed() -> None:
    def outcomes(seed: int) -> list[bool]:
        rig = Rig()
        rig.layers.append(FaultLayer(rig.clock, [Rule("error", probability=0.3)], seed))
        failed = []
        for lba in range(100):
            try:
                rig.run(rig.disk.read(lba, 1))
                failed.append(False)
            except BlockError:
                failed.append(True)
        return failed

    assert outcomes(1) == outcomes(1) != outcomes(2)
    assert 15 < sum(outcomes(1)) < 45


def test_limit_is_machine_time() -> None:
    rig = Rig()
    limit = LimitLayer(rig.clock, bytes_per_s=1 << 20, burst=0.005)
    rig.layers.append(limit)
    for _ in range(16):
        rig.run(rig.disk.read(0, 128))
    assert rig.time == pytest.approx(1_000_000_000, rel=0.02)
    assert limit.waited > 900_000_000


def test_mirror_while_it_is_written_to() -> None:
    rig = Rig()
    target = MemoryDisk(256)
    mirror = MirrorLayer(rig, 0, target, rig.medium)
    rig.layers.append(mirror)
    with pytest.raises(ValueError, match="not complete"):
        mirror.switch_over()
    for lba in range(0, 256, 5):
        rig.run(rig.disk.write(lba, bytes([lba ^ 0xFF]) * SECTOR))
    rig.pass_time(10_000_000)
    assert mirror.complete
    assert target.data == rig.medium.data
    mirror.switch_over()
    rig.run(rig.disk.write(1, b"new!" * 128))
    assert rig.run(rig.disk.read(1, 1)) == b"new!" * 128
    assert target.data != rig.medium.data
    with pytest.raises(ValueError, match="on the mirror only"):
        mirror.close()


def test_a_mirror_that_fails_is_left_out() -> None:
    rig = Rig()
    target = MemoryDisk(256)
    target.bad.add(70)
    mirror = MirrorLayer(rig, 0, target, rig.medium)
    rig.layers.append(mirror)
    rig.pass_time(10_000_000)
    assert isinstance(mirror.failed, BlockError)
    rig.run(rig.disk.write(70, bytes(SECTOR)))
    mirror.close()


def test_a_mirror_that_fails_in_a_write_is_not_the_guests_trouble() -> None:
    rig = Rig()
    target = MemoryDisk(256)
    mirror = MirrorLayer(rig, 0, target, rig.medium)
    rig.layers.append(mirror)
    rig.pass_time(10_000_000)
    assert mirror.complete
    target.bad.add(3)
    rig.run(rig.disk.write(3, b"\x11" * SECTOR))
    assert rig.medium.data[3 * SECTOR] == 0x11
    assert isinstance(mirror.failed, BlockError)
    assert "medium" in str(mirror.status()["failed"])
    with pytest.raises(ValueError, match="not complete"):
        mirror.switch_over()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("error", Rule("error")),
        ("torn, op=write, lba=0x10-0x1f, times=2", Rule("torn", "write", 16, 31, times=2)),
        ("delay,seconds=0.5,probability=0.25,lba=7", Rule("delay", first=7, last=7, probability=0.25, seconds=0.5)),
    ],
)
def test_rules_as_text(text: str, rule: Rule) -> None:
    assert Rule.parse(text) == rule


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("explode", "choose error, delay or torn"),
        ("error,op=trim", "choose read, write or flush"),
        ("error,colour=red", "choose of op, lba, times, probability, seconds"),
        ("error,times=often", "cannot read 'times=often'"),
        ("error,lba=1-x", "cannot read 'lba=1-x'"),
        ("error,probability=2", "probability is 0 to 1"),
        ("error,lba=5-1", "no sectors from 5 to 1"),
        ("error,lba=-5", "cannot read 'lba=-5'"),
        ("torn,op=read", "only a write is done by halves"),
        ("delay", "a delay has seconds"),
    ],
)
def test_rules_that_are_none(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Rule.parse(text)
