"""``trace``: every request, as a line of JSON."""

from __future__ import annotations

import contextlib
import json
import zlib
from pathlib import Path

from avmm.clock import Clock
from avmm.devices.block import BlockError
from avmm.interpose.interposers.stack import Below, Request


class TraceLayer:
    """Writes each request to a file, one JSON object a line: when it came, what it was, how long it took and how it ended."""

    def __init__(self, clock: Clock, path: str | Path) -> None:
        self._clock = clock
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by close()
        self.requests = 0
        self.failed = ""
        """Why nothing more is written."""

    async def perform(self, request: Request, below: Below) -> bytes:
        """Pass it on and write it down."""
        begin, error, data = self._clock.now(), "", b""
        try:
            data = await below(request)
            return data
        except BlockError as failure:
            error = failure.fault.name
            raise
        finally:
            self.requests += 1
            line = {
                "t": begin, "op": request.op, "drive": request.drive, "lba": request.lba, "count": request.count,
                "ns": self._clock.now() - begin, "crc32": zlib.crc32(request.data or data), "error": error,
            }  # fmt: skip
            self._write(json.dumps(line))

    def _write(self, line: str) -> None:
        """Add a line. A file that takes no more ends the trace, and not the guest's request."""
        if self._file.closed:
            return
        try:
            self._file.write(line + "\n")
        except OSError as error:
            self.failed = f"cannot write {self._file.name}: {error.strerror}"
            with contextlib.suppress(OSError):  # what is left in its buffer does not fit either
                self._file.close()

    def status(self) -> dict[str, object]:
        """What it has done so far."""
        return {"file": str(self._file.name), "requests": self.requests, **({"failed": self.failed} if self.failed else {})}

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def end(self) -> None:
        """End the file."""
        self.close()
