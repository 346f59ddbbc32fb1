"""The seat in front of a machine of another process, over its console socket.

The invariant: each thing that is done is answered once, in order; when the connection ends everything that waits for an answer fails
with SeatError and the viewers are told, once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from avmm.control.config import ConfigError
from avmm.control.seat import wire
from avmm.control.seat.facts import Facts
from avmm.control.seat.local import PAST
from avmm.control.seat.picture import Picture
from avmm.control.seat.seat import SeatError, Viewer
from avmm.control.seat.stream import read
from avmm.control.seat.wire import Kind, WireError

PATIENCE = 10.0
TEXT_AT_ONCE, BYTES_AT_ONCE = 32, 4096
"""Longer input goes in pieces, so that the rest can be called off."""


class RemoteSeat:
    """``async with RemoteSeat(path) as seat``. See :class:`~avmm.control.seat.seat.Seat`. ConfigError when it cannot be reached."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        self.picture: Picture | None = None
        self.facts: Facts | None = None
        self.lost = ""
        """Why there is no connection any more; empty while there is one."""
        self._viewers: list[Viewer] = []
        self._room: bytes = b""
        self._past = bytearray()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._writer: asyncio.StreamWriter
        self._task: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def reconnect(self) -> None:
        """Sit down once more where the connection was lost: its viewers hear what there is now. ConfigError when it cannot be reached."""
        await self._connect()
        self.lost = ""
        self._past.clear()
        if self._room:
            self._writer.write(self._room)

    async def _connect(self) -> None:
        try:
            reader, self._writer = await asyncio.open_unix_connection(self.path)
        except OSError as error:
            raise ConfigError(f"cannot reach {self.path}: {error.strerror or error}") from None
        try:
            await self._greet(reader)
        except BaseException:
            self._writer.close()
            raise
        self._task = asyncio.get_running_loop().create_task(self._read(reader), name=f"attached:{self.name}")

    async def _greet(self, reader: asyncio.StreamReader) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                found = await read(reader, wire.TO_CLIENT_LIMIT)
            hello = wire.decode_json(found[1]) if found is not None and found[0] is Kind.HELLO else {}
        except TimeoutError:
            raise ConfigError(f"{self.path} does not answer") from None
        except (WireError, ConnectionError):
            hello = {}
        if not hello:
            raise ConfigError(f"{self.path} is no console's socket, or serves as many consoles as it can")
        if hello.get("avmm") != wire.VERSION:
            raise ConfigError(f"{self.path} is of another version of avmm: attach with the avmm that runs the machine")
        self.name = str(hello.get("name", self.name))

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._end("this console has left")
        self._writer.close()

    # -- what the host says

    async def _read(self, reader: asyncio.StreamReader) -> None:
        reason = "the connection has ended"
        try:
            while (found := await read(reader, wire.TO_CLIENT_LIMIT)) is not None:
                self._take(*found)
        except ConnectionError as error:
            reason = f"the connection has broken: {error.strerror or error}"
        except (WireError, TypeError, KeyError) as error:
            reason = f"the host said what was not understood: {error}"
        self._end(reason)

    def _take(self, kind: Kind, payload: bytes) -> None:
        match kind:
            case Kind.TEXT | Kind.PIXELS:
                self.picture = wire.decode_text(payload, self.picture) if kind is Kind.TEXT else wire.decode_pixels(payload)
                for viewer in list(self._viewers):
                    viewer.picture_changed()
            case Kind.FACTS:
                self.facts = Facts.from_dict(wire.decode_json(payload))
                for viewer in list(self._viewers):
                    viewer.facts_changed()
            case Kind.SERIAL:
                self._past += payload
                if len(self._past) > 2 * PAST:
                    del self._past[:-PAST]
                for viewer in list(self._viewers):
                    viewer.serial(payload)
            case Kind.BELL:
                for viewer in list(self._viewers):
                    viewer.bell()
            case Kind.DONE:
                self._done(payload.decode("utf-8", "replace"))
            case _:
                raise WireError(f"{kind.name} is not for a console")

    def _done(self, sentence: str) -> None:
        if not self._waiting:
            raise WireError("an answer to nothing")
        future = self._waiting.popleft()
        if not future.done():
            if sentence:
                future.set_exception(SeatError(sentence))
            else:
                future.set_result(None)

    def _end(self, reason: str) -> None:
        if self.lost:
            return
        self.lost = reason
        self._writer.close()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(SeatError(reason))
        for viewer in list(self._viewers):
            viewer.lost(reason)

    # -- what is said to it

    def watch(self, viewer: Viewer) -> None:
        """Tell a viewer from now on; the serial line's last words are told at once."""
        self._viewers.append(viewer)
        if self._past:
            viewer.serial(bytes(self._past))
        if self.lost:
            viewer.lost(self.lost)

    def unwatch(self, viewer: Viewer) -> None:
        """Do not any more."""
        self._viewers.remove(viewer)

    def room(self, width: int, height: int) -> None:
        """Let larger pictures be shrunk before they are sent."""
        self._room = wire.encode_room(width, height)
        if not self.lost:
            self._writer.write(self._room)

    async def _ask(self, message: bytes) -> None:
        if self.lost:
            raise SeatError(self.lost)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._writer.write(message)
        await future

    async def press(self, keys: tuple[str, ...]) -> None:
        """Press keys together and let them go."""
        await self._ask(wire.encode_press(keys))

    async def type(self, text: str) -> None:
        """Type text as fast as the guest reads its keyboard."""
        for at in range(0, len(text), TEXT_AT_ONCE):
            await self._ask(wire.message(Kind.TYPE, text[at : at + TEXT_AT_ONCE].encode("utf-8", "replace")))

    async def send(self, data: bytes) -> None:
        """Write to the serial line."""
        for at in range(0, len(data), BYTES_AT_ONCE):
            await self._ask(wire.message(Kind.SEND, data[at : at + BYTES_AT_ONCE]))

    async def send_break(self) -> None:
        """Send a break over the serial line."""
        await self._ask(wire.message(Kind.BREAK))

    async def mouse(self, dx: int, dy: int, wheel: int, buttons: int) -> None:
        """Move the mouse, turn its wheel, press its buttons."""
        await self._ask(wire.encode_mouse(dx, dy, wheel, buttons))
