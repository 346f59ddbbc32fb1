"""The QEMU Machine Protocol on a Unix socket: JSON objects, commands in, replies and events out.

After QEMU's "QEMU Machine Protocol Specification" (docs/interop/qmp-spec): greeting, capabilities negotiation, commands
with ids, error classes, events with timestamps. Objects need no lines of their own, but we end each with CR LF. The commands
are in commands/.

A client costs a bounded amount of memory and no guest's time: a command may have 1 MiB, and nothing is read while
a command of the client is under way; when what it does not read reaches 1 MiB, or it reads nothing for :data:`PATIENCE`
seconds while a reply waits, it is dropped.

The invariant: replies come in the order of the commands, and a client sees an event that a command causes before any
command after it is executed.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avmm.control.listener import Listener

if TYPE_CHECKING:
    from avmm.control.commands import Target

COMMAND_LIMIT = 1 << 20
CHUNK = 1 << 16
OUTPUT_LIMIT = 1 << 20
CLIENTS = 256
PATIENCE = 30.0
LAST_WORDS = 1.0  # seconds that commands may take after their server was closed
VERSION = (0, 1, 0)
_BLANKS = b" \t\r\n"
_STRUCTURE = re.compile(rb'["{}\[\]]')
_IN_STRING = re.compile(rb'["\\\n]')


class QmpError(Exception):
    """A command was refused. ``kind`` is one of QMP's error classes."""

    def __init__(self, reason: str, kind: str = "GenericError") -> None:
        super().__init__(reason)
        self.kind = kind


def version() -> dict[str, object]:
    """Return our version as query-version tells it."""
    major, minor, micro = VERSION
    return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": f"avmm {major}.{minor}.{micro}"}


def _no_constant(name: str) -> object:
    raise ValueError(f"invalid keyword '{name}'")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


class JsonStream:
    """Finds the values in a stream of bytes: from an opening bracket to the one that closes it, or else to the end of the line.

    A string that is not closed in its line ends the value there, broken; so a client finds its way back after a mistake.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        """Up to here it has been looked at."""
        self._depth = 0
        self._string = False

    @property
    def pending(self) -> int:
        """Bytes of a value that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes and yield the values that are complete, whatever is in them."""
        self._buffer += data
        start = 0
        try:
            while True:
                while not self._depth and start < len(self._buffer) and self._buffer[start] in _BLANKS:
                    start += 1
                end = self._end(start)
                if end < 0:
                    return
                value = bytes(self._buffer[start:end])
                start = self._at = end
                yield value
        finally:
            del self._buffer[:start]
            self._at = max(0, self._at - start)

    def _end(self, start: int) -> int:
        """Return where the value that begins at ``start`` ends, -1 when that has not come yet."""
        buffer = self._buffer
        if start == len(buffer):
            return -1
        if not self._depth:
            if buffer[start] not in b"{[":
                return buffer.find(b"\n", start)
            self._at = start
        while (found := (_IN_STRING if self._string else _STRUCTURE).search(buffer, self._at)) is not None:
            mark = found[0]
            self._at = found.end()
            if self._string:
                if mark == b"\\":
                    if self._at == len(buffer):
                        self._at -= 1  # what it escapes has not come
                        return -1
                    self._at += 1
                elif mark == b"\n":
                    self._string, self._depth = False, 0
                    return self._at
                else:
                    self._string = False
            elif mark == b'"':
                self._string = True
            else:
                self._depth += 1 if mark in b"{[" else -1
                if not self._depth:
                    return self._at
        self._at = len(buffer)
        return -1


def decode(text: bytes) -> object:
    """Return a JSON value. QmpError where it is malformed."""
    try:
        return _DECODER.decode(text.decode())
    except RecursionError:
        raise QmpError("JSON parse error, nested too deeply") from None
    except UnicodeDecodeError:
        raise QmpError("JSON parse error, this is not UTF-8") from None
    except ValueError as error:
        raise QmpError(f"JSON parse error, {error}") from None


def encode(message: dict[str, Any]) -> bytes:
    """Return a message as it goes over the wire."""
    return json.dumps(message, separators=(", ", ": ")).encode() + b"\r\n"


def check_message(message: object) -> tuple[str, dict[str, Any]]:
    """Return a command's name and arguments. QmpError when the message is none."""
    if not isinstance(message, dict):
        raise QmpError("QMP input must be a JSON object")
    for key in message:
        if key not in ("execute", "arguments", "id"):
            raise QmpError(f"QMP input member '{key}' is unexpected")
    if "execute" not in message:
        raise QmpError("QMP input lacks member 'execute'")
    name, arguments = message["execute"], message.get("arguments", {})
    if not isinstance(name, str):
        raise QmpError("QMP input member 'execute' must be a string")
    if not isinstance(arguments, dict):
        raise QmpError("QMP input member 'arguments' must be an object")
    return name, arguments


class Session:
    """One client."""

    def __init__(self, server: QmpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.negotiated = False
        self.busy = False
        """Whether a command is under way."""
        self._reader = reader
        self._writer = writer

    async def run(self) -> None:
        """Serve the client until it goes, is dropped, or the server closes."""
        try:
            self.send({"QMP": {"version": version(), "capabilities": []}})
            stream = JsonStream()
            while data := await self._reader.read(CHUNK):
                for text in stream.feed(data):
                    await self._take(text)
                    if self.server.closing:
                        return
                if stream.pending > COMMAND_LIMIT:
                    await self._reply(_refusal(QmpError(f"JSON parse error, more than {COMMAND_LIMIT} bytes")))
                    break
        except (ConnectionError, TimeoutError):
            pass  # it has gone, or does not read

    async def _take(self, text: bytes) -> None:
        self.busy = True
        await self._reply(await self._answer(text))
        self.busy = False

    async def _answer(self, text: bytes) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        try:
            message = decode(text)
            if isinstance(message, dict) and "id" in message:
                answer = {"id": message["id"]}
            name, arguments = check_message(message)
            return {"return": await self._execute(name, arguments)} | answer
        except QmpError as error:
            return _refusal(error) | answer

    async def _execute(self, name: str, arguments: dict[str, Any]) -> object:
        if name == "qmp_capabilities":
            return self._negotiate(arguments)
        if not self.negotiated:
            raise QmpError("Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound")
        return await self.server.target.execute(name, arguments)

    def _negotiate(self, arguments: dict[str, Any]) -> object:
        if self.negotiated:
            raise QmpError("Capabilities negotiation is already complete, command ignored", "CommandNotFound")
        wanted = arguments.get("enable", [])
        if set(arguments) - {"enable"} or wanted != []:
            raise QmpError("This server has no capabilities to enable")
        self.negotiated = True
        return {}

    async def _reply(self, message: dict[str, Any]) -> None:
        self.send(message)
        async with asyncio.timeout(self.server.patience):
            await self._writer.drain()

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message, or drop the client when too much waits for it."""
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > self.server.output_limit:
            self.server.dropped += 1
            transport.abort()
            return
        self._writer.write(encode(message))


def _refusal(error: QmpError) -> dict[str, Any]:
    return {"error": {"class": error.kind, "desc": str(error)}}


class QmpServer:
    """Serves ``target`` on a Unix socket that only its owner can open. ``await server.start()``, then ``close()``."""

    def __init__(self, path: Path, target: Target, *, patience: float = PATIENCE, output_limit: int = OUTPUT_LIMIT) -> None:
        self.path = path
        self.target = target
        self.patience = patience
        self.output_limit = output_limit
        self.dropped = 0
        """Clients that did not read what was sent to them."""
        self.closing = False
        refusal = _refusal(QmpError(f"This server has {CLIENTS} clients already"))
        self._listener = Listener(f"qmp:{path.name}", self._serve, CLIENTS, encode(refusal))
        self._sessions: dict[Session, asyncio.Task[None]] = {}

    @property
    def clients(self) -> int:
        """Clients connected now."""
        return self._listener.clients

    async def start(self) -> None:
        """Make the socket and listen. ConfigError when that cannot be."""
        await self._listener.unix(self.path, CHUNK)
        self.target.listeners.append(self.event)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session, task = Session(self, reader, writer), asyncio.current_task()
        assert task is not None
        self._sessions[session] = task
        try:
            await session.run()
        finally:
            del self._sessions[session]

    def event(self, name: str, data: dict[str, Any]) -> None:
        """Send an event to everybody who is listening."""
        now = time.time_ns()
        message: dict[str, Any] = {"timestamp": {"seconds": now // 10**9, "microseconds": now % 10**9 // 1000}, "event": name}
        if data:
            message["data"] = data
        for session in list(self._sessions):
            if session.negotiated:
                session.send(message)

    async def close(self) -> None:
        """Let commands under way be answered, such as the ``quit`` that this is the end of, let all clients go, remove the socket."""
        if not self._listener.open or self.closing:
            return
        self.target.listeners.remove(self.event)
        self.closing = True
        self._listener.stop()
        busy = [task for session, task in self._sessions.items() if session.busy]
        if busy:
            await asyncio.wait(busy, timeout=LAST_WORDS)
        await self._listener.close()


Publish = Callable[[str, dict[str, Any]], None]
