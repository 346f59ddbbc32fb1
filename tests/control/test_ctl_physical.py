"""avmm ctl virtualize, devirtualize, physical and interpose, on a machine that runs in another process (H1, H10, H11, H13)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import avmm_guests
from tests.control.test_ctl import Up

DESCRIPTION = """
[vm.first]
memory = "16M"
disks = [{{ path = "{image}", mode = "overlay" }}]
physical = ["ata0", "com1"]

[vm.second]
memory = "16M"
hyperv = true
disks = [{{ path = "{image}", mode = "overlay" }}]
"""


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    started = Up(tmp_path, DESCRIPTION.format(image=avmm_guests.image()))
    yield started
    started.end()


def test_a_device_changes_hands_and_interposers_come_and_go(up: Up, tmp_path: Path) -> None:
    assert up.ctl("physical", "first") == "com1: direct\nata0: direct\n"
    assert "ata0 is direct: virtualize it first" in up.ctl("interpose", "first", "ata0", "trace", "--file", "x", status=1)
    told = up.ctl("virtualize", "first", "ata0", "--when", "middle", "--bound", "50ms", "--on-bound", "defer")
    assert told.startswith("ata0 is virtualized: done")
    assert "of at most 50000 us" in told
    assert "virtualized already" in up.ctl("virtualize", "first", "ata0", status=1)
    assert "write it like 2ms" in up.ctl("virtualize", "first", "com1", "--bound", "2", status=2)

    trace, mirror = tmp_path / "trace.jsonl", tmp_path / "mirror.img"
    up.ctl("interpose", "first", "ata0", "trace", "--file", str(trace))
    assert "choose error, delay or torn" in up.ctl("interpose", "first", "ata0", "fault", "--rule", "odd", status=1)
    up.ctl("interpose", "first", "ata0", "fault", "--rule", "error,op=write,lba=0-1,times=1", "--rule", "delay,seconds=0.001,probability=0.5")
    up.ctl("interpose", "first", "ata0", "limit", "--mb-s", "100", "--burst", "5ms")
    up.ctl("interpose", "first", "ata0", "mirror", "--file", str(mirror))
    assert up.ctl("interpose", "first", "ata0", "share", "--with", "second") == "second has it as LUN 1\n"
    assert "which machine" in up.ctl("interpose", "first", "ata0", "share", "--with", "third", status=1)
    listed = up.ctl("interpose", "first", "ata0", "list")
    assert [line.split(":")[0].strip() for line in listed.splitlines()] == ["ata0", "trace", "fault", "limit", "mirror", "share"]
    assert "remove them first" in up.ctl("devirtualize", "first", "ata0", status=1)

    up.ctl("type", "first", "sum pattern.txt\n")
    assert "interposers" in up.ctl("--json", "physical", "first")
    for kind in ("share", "fault", "limit", "mirror", "trace"):
        up.ctl("interpose", "first", "ata0", "remove", kind)
    assert "no fault interposer" in up.ctl("interpose", "first", "ata0", "remove", "fault", status=1)
    assert up.ctl("devirtualize", "first", "ata0", "--bound", "50ms", "--on-bound", "defer").startswith("ata0 is direct: done")
    assert json.loads(up.ctl("--json", "physical", "first")) == [
        {"device": "com1", "mode": "direct", "interposers": {}}, {"device": "ata0", "mode": "direct", "interposers": {}},
    ]  # fmt: skip
    assert mirror.stat().st_size == Path(avmm_guests.image()).stat().st_size
    assert trace.exists()


def test_the_monitor(up: Up) -> None:
    assert "com1: done" in up.ctl("hmp", "first", "virtualize com1 middle 50 defer")
    assert "com1: virtualized" in up.ctl("hmp", "first", "info physical")
    assert "com1 has no disks" in up.ctl("hmp", "first", "interpose com1 trace path=x")
    assert "com1: done" in up.ctl("hmp", "first", "devirtualize com1 middle 50 defer")
    assert "no bound in ms" in up.ctl("hmp", "first", "virtualize com1 middle soon")
