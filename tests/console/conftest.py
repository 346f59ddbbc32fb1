"""Runs the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from avmm_console import lifetime
from avmm_console.cli import main


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


@pytest.fixture(scope="session", autouse=True)
def _libuv_is_awake() -> None:
    """The first loop with a signal handler opens libuv's own pipe, once a process and for its whole life."""

    async def nothing() -> int:
        return 0

    lifetime.run(nothing())
