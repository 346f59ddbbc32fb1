"""The examples run as they are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
SAYS = {
    "boot_a_floppy": ["Hello from a floppy! > it lives", "port accesses"],
    "boot_and_type": ["ok> read motd.txt", "the machine is off: "],
    "fault_injection": ["write: The disk reported an error.", "sum: The disk reported an error.", "589ff6ef pattern.txt: as written."],
    "interposers": ["'write': 2, 'flush': 2", "the copy has the new file: True"],
    "mirror_and_switch_over": ["copied 4096 sectors", "last words: True"],
    "scripted_guest": ["10 ticks", "the machine is off: "],
    "share_a_disk": ["second sum pattern.txt", "The disk reported an error.", "first: done"],
    "storage_comparison": ["emulated ", "enlightened ", "shunt-only "],
    "ten_machines": [f"vm{number}: " for number in range(10)],
    "virtualize_under_load": ["to virtualized", "to direct", "589ff6ef pattern.txt: as written.", "went straight to the disk"],
    "walk_through_a_trap": ["port read of ata0 at 0x1f7", "service-os", "floating 1", "port read of pit", "3 ticks"],
}
LIBRARIES = {"dice"}
"""Imported by others: the manual's page on devices plays with it."""


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} == set(SAYS) | LIBRARIES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning:unicorn", str(path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in SAYS.get(path.stem, []):
        assert words in done.stdout, done.stdout


def test_the_scenarios_pass() -> None:
    folder = EXAMPLES[0].parent / "scenarios"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
