"""The examples run as they are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
SAYS = {
    "boot_and_type": ["ok> read motd.txt", "the machine is off: "],
    "scripted_guest": ["10 ticks", "the machine is off: "],
    "ten_machines": [f"vm{number}: " for number in range(10)],
    "walk_through_a_trap": ["port read of ata0 port 0x1f7", "service-os", "floating 1"],
}


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= set(SAYS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning:unicorn", str(path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in SAYS.get(path.stem, []):
        assert words in done.stdout, done.stdout
