"""A small QMP client for the command line: one command after another, events put aside."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from avmm.control.config import ConfigError
from avmm.control.qmp import QmpError

PATIENCE = 30.0
_KEPT = 1000
_LINE_LIMIT = 16 << 20


class QmpClient:
    """A connection to a machine's socket. ``async with QmpClient(path) as qmp: await qmp.execute("query-status")``."""

    def __init__(self, path: Path, patience: float = PATIENCE, vm: str = "") -> None:
        self.path = path
        self.vm = vm
        """The machine that commands are for, on a socket that controls several; empty on a machine's own."""
        self.patience = patience
        self.events: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(self.path, limit=_LINE_LIMIT)
        except OSError as error:
            raise ConfigError(f"cannot reach {self.path}: {error.strerror or error}") from None
        try:
            greeting = await self._read()
            if "QMP" not in greeting:
                raise ConfigError(f"{self.path} does not speak QMP")
            await self.execute("qmp_capabilities")
        except BaseException:
            self._writer.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._writer is not None
        self._writer.close()

    async def execute(self, command: str, **arguments: object) -> Any:
        """Return a command's result; underscores in the arguments' names stand for dashes. QmpError when it is refused."""
        assert self._writer is not None
        message: dict[str, Any] = {"execute": command}
        if self.vm and command != "qmp_capabilities":
            arguments.setdefault("vm", self.vm)
        if arguments:
            message["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._writer.write(json.dumps(message).encode() + b"\n")
        while True:
            answer = await self._read(self.patience)
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(answer["error"]["desc"], answer["error"]["class"])
            else:
                return answer["return"]

    async def listen(self) -> AsyncIterator[dict[str, Any]]:
        """Yield events as they come until the connection ends."""
        while True:
            try:
                message = self.events.popleft() if self.events else await self._read(None)
            except ConfigError:
                return
            yield message

    async def _read(self, patience: float | None = PATIENCE) -> dict[str, Any]:
        assert self._reader is not None
        try:
            async with asyncio.timeout(patience):
                line = await self._reader.readline()
            answer = json.loads(line) if line else None
        except TimeoutError:
            raise ConfigError(f"{self.path} does not answer") from None
        except (ConnectionError, ValueError):
            answer = None
        if not isinstance(answer, dict):
            raise ConfigError(f"the connection to {self.path} has ended")
        return answer
