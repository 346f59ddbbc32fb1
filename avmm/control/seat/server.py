"""A seat on a Unix socket, for consoles in other processes: ``avmm attach``.

A console that does not read costs the host one picture and 64 KiB of the serial line: it is not sent the changes that it missed, but the
latest picture when it reads again, however long that takes (it may have been stopped with Ctrl-Z). Only its owner can open the socket.

The invariant: input of one console is carried out in order and answered in order; what a console leaves half typed is dropped.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from avmm.control.inputs import InputsFull
from avmm.control.listener import Listener
from avmm.control.seat import wire
from avmm.control.seat.local import PAST, LocalSeat
from avmm.control.seat.picture import Picture, PixelPicture
from avmm.control.seat.seat import SeatError
from avmm.control.seat.stream import read
from avmm.control.seat.wire import Kind, WireError

CLIENTS = 64
HIGH_WATER = 1 << 16
WINDOW = 256
"""Messages of a client that wait to be carried out before no more are read."""


class Session:
    """One console. It hears what changes, sends it when the client takes it, and carries out its input."""

    def __init__(self, seat: LocalSeat, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._seat = seat
        self._reader = reader
        self._writer = writer
        self._news = asyncio.Event()
        self._sent: Picture | None = None
        self._room = (0xFFFF, 0xFFFF)
        self._picture = self._facts = self._bell = self._lost = False
        self._serial = bytearray()
        self._input: asyncio.Queue[tuple[Kind, bytes]] = asyncio.Queue(WINDOW)

    # -- what changes

    def picture_changed(self) -> None:
        """Send the picture, when there is room."""
        self._picture = True
        self._news.set()

    def facts_changed(self) -> None:
        """Send the facts."""
        self._facts = True
        self._news.set()

    def serial(self, data: bytes) -> None:
        """Send it; the oldest is left out when too much waits."""
        self._serial += data
        if len(self._serial) > 2 * PAST:
            del self._serial[:-PAST]
        self._news.set()

    def bell(self) -> None:
        """Send it."""
        self._bell = True
        self._news.set()

    def lost(self, reason: str) -> None:
        """End."""
        self._lost = True
        self._news.set()

    # -- its tasks

    async def run(self) -> None:
        """Serve the client until it goes or the machine is gone."""
        self._writer.transport.set_write_buffer_limits(high=HIGH_WATER)
        self._write(wire.message(Kind.HELLO, wire.encode_json({"avmm": wire.VERSION, "name": self._seat.name})))
        self._picture, self._facts = self._seat.picture is not None, self._seat.facts is not None
        self._seat.watch(self)
        try:
            async with asyncio.TaskGroup() as group:
                acting = group.create_task(self._act(), name="seat:act")
                sending = group.create_task(self._send(), name="seat:send")
                reading = group.create_task(self._read(), name="seat:read")
                await asyncio.wait([reading, sending, acting], return_when=asyncio.FIRST_COMPLETED)
                for task in (reading, sending, acting):
                    task.cancel()
        except* (ConnectionError, WireError):
            pass  # it has gone, or is none of ours
        finally:
            self._seat.unwatch(self)

    async def _send(self) -> None:
        while not self._lost:
            await self._news.wait()
            self._news.clear()
            self._write_news()
            await self._writer.drain()

    def _write(self, message: bytes) -> None:
        if self._writer.is_closing():  # which uvloop would say with a RuntimeError
            raise ConnectionResetError
        self._writer.write(message)

    def _write_news(self) -> None:
        write = self._write
        if self._serial:
            write(wire.message(Kind.SERIAL, bytes(self._serial)))
            self._serial.clear()
        if self._picture and self._seat.picture is not None:
            picture = self._seat.picture
            if isinstance(picture, PixelPicture):
                picture = picture.within(*self._room)
            write(wire.encode_picture(picture, self._sent))
            self._sent = picture
        if self._facts and self._seat.facts is not None:
            write(wire.message(Kind.FACTS, wire.encode_json(self._seat.facts.as_dict())))
        if self._bell:
            write(wire.message(Kind.BELL))
        self._picture = self._facts = self._bell = False

    async def _read(self) -> None:
        while (found := await read(self._reader, wire.TO_HOST_LIMIT)) is not None:
            kind, payload = found
            if kind is Kind.ROOM:
                self._room = wire.decode_room(payload)
                self.picture_changed()
            else:
                await self._input.put(found)

    async def _act(self) -> None:
        while True:
            kind, payload = await self._input.get()
            sentence = ""
            try:
                await self._do(kind, payload)
            except (SeatError, InputsFull) as error:
                sentence = str(error)
            self._write(wire.message(Kind.DONE, sentence.encode()))
            await self._writer.drain()

    async def _do(self, kind: Kind, payload: bytes) -> None:
        match kind:
            case Kind.PRESS:
                await self._seat.press(wire.decode_press(payload))
            case Kind.TYPE:
                await self._seat.type(payload.decode("utf-8", "replace"))
            case Kind.SEND:
                await self._seat.send(payload)
            case Kind.BREAK:
                await self._seat.send_break()
            case Kind.MOUSE:
                await self._seat.mouse(*wire.decode_mouse(payload))
            case _:
                raise WireError(f"{kind.name} is not for the host")


class SeatServer:
    """Serves a machine's seat at ``path``. ``await server.start()``, then ``close()``."""

    def __init__(self, path: Path, seat: LocalSeat) -> None:
        self.path = path
        self.seat = seat
        self._listener = Listener(f"seat:{path.name}", self._serve, CLIENTS)

    @property
    def clients(self) -> int:
        """Consoles connected now."""
        return self._listener.clients

    async def start(self) -> None:
        """Make the socket and listen. ConfigError when that cannot be."""
        await self._listener.unix(self.path, wire.TO_HOST_LIMIT)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Session(self.seat, reader, writer).run()

    async def close(self) -> None:
        """Let all consoles go and remove the socket."""
        await self._listener.close()
