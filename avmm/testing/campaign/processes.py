"""Worker processes on this machine, each with one instance at a time.

A worker is a session of its own, so that Ctrl-C at the terminal reaches the campaign alone, which ends its workers.
The invariant: a worker that dies, or takes longer than it may, is :class:`WorkerLost` to whoever waits for it, and nothing of it is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, Self

from avmm.control.config import ConfigError
from avmm.testing.campaign.matrix import Instance, Scenario

LINE_LIMIT = 16 << 20
LAST_WORDS = 1000


class WorkerLost(Exception):
    """A worker ended while it had an instance; the sentence says how."""


class InstanceTimeout(Exception):
    """An instance took longer of the host's time than it may."""


class WorkerProcess:
    """One worker, started in ``folder`` (by default here) when it is first asked for something."""

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._errors: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None else None

    async def ask(self, request: dict[str, Any], limit: float | None = None) -> dict[str, Any]:
        """Return the answer. Raises WorkerLost, InstanceTimeout after ``limit`` seconds of the host's time, or ConfigError."""
        try:
            process = self._process or await self._start()
            async with asyncio.timeout(limit):
                line = await _exchange(process, json.dumps(request).encode() + b"\n")
        except TimeoutError:
            await self.close()
            raise InstanceTimeout(f"it took longer than {limit:g} s of the host's time") from None
        except asyncio.CancelledError:
            await self.close()
            raise
        if not line.endswith(b"\n"):
            raise WorkerLost(await self._how_it_ended())
        answer: dict[str, Any] = json.loads(line)
        if "wrong" in answer:
            raise ConfigError(answer["wrong"])
        return answer

    async def _start(self) -> asyncio.subprocess.Process:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                sys.executable, "-m", "avmm.testing.campaign.worker",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=self._errors, limit=LINE_LIMIT,
                start_new_session=True, cwd=self._folder,
            )
        )  # fmt: skip
        try:
            self._process = await asyncio.shield(starting)
        except (FileNotFoundError, NotADirectoryError):
            self._errors.close()
            raise ConfigError(f"a worker has no folder {self._folder}: the scenario must be at the same path on every worker") from None
        except asyncio.CancelledError:  # it must be known to be ended
            self._process = await starting
            raise
        return self._process

    async def _how_it_ended(self) -> str:
        assert self._process is not None
        assert self._errors is not None
        status = await self._process.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - LAST_WORDS))
        words = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        await self.close()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return f"the worker {how}{': ' + words[-1] if words else ''}"

    async def close(self) -> None:
        """End it, with what it started."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.communicate()
        if self._errors is not None:
            self._errors.close()


async def _exchange(process: asyncio.subprocess.Process, request: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError, ConnectionResetError):  # then there is no answer either
        process.stdin.write(request)
        await process.stdin.drain()
    return await process.stdout.readline()


class Processes:
    """A pool of ``slots`` workers here; an instance may take ``limit`` seconds of the host's time."""

    def __init__(self, slots: int, limit: float | None = None, artefacts: str | None = None) -> None:
        self.slots = slots
        self.workers = [WorkerProcess() for _ in range(slots)]
        self._limit = limit
        self._artefacts = artefacts

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self.workers:
            await worker.close()

    async def run(self, slot: int, instance: Instance) -> dict[str, Any]:
        """Run an instance on a worker that has nothing else to do."""
        return await self.workers[slot].ask({"run": instance.as_dict(), "artefacts": self._artefacts}, self._limit)


async def collect(scenario: str) -> list[Scenario]:
    """Return the tests of a scenario's file, found in a process of their own. Raises ConfigError."""
    worker = WorkerProcess()
    try:
        answer = await worker.ask({"collect": scenario})
    except WorkerLost as lost:
        raise ConfigError(f"{scenario} cannot be read: {lost}") from None
    finally:
        await worker.close()
    return [Scenario(test["id"], test["parameters"]) for test in answer["tests"]]
