"""Runs the command line in this process, and in real terminals."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from avmm_console import lifetime
from avmm_console.cli import main
from tests.console.terminal import Terminal


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line on standard error."""
        assert self.err.count("\n") == 1, self.err
        assert self.out == ""
        return self.err.strip()


Avmm = Callable[..., Result]


@pytest.fixture
def avmm_command(capfd: pytest.CaptureFixture[str]) -> Avmm:
    def command(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, *capfd.readouterr())

    return command


MakeTerminal = Callable[..., Terminal]


@pytest.fixture
def make_terminal(tmp_path: Path) -> Iterator[MakeTerminal]:
    """Makes terminals, in the test's folder or another, and lets them go at the end."""
    if shutil.which("tmux") is None and os.environ.get("CI") != "true":
        pytest.skip("tmux is not installed")
    made: list[Terminal] = []

    def make(columns: int = 100, rows: int = 30, folder: Path = tmp_path, **more: Any) -> Terminal:
        made.append(Terminal(folder, columns, rows, **more))
        return made[-1]

    yield make
    for terminal in made:
        terminal.close()


@pytest.fixture
def terminal(make_terminal: MakeTerminal) -> Terminal:
    return make_terminal()


@pytest.fixture(scope="session", autouse=True)
def _libuv_is_awake() -> None:
    """The first loop with a signal handler opens libuv's own pipe, once a process and for its whole life."""

    async def nothing() -> int:
        return 0

    lifetime.run(nothing())
