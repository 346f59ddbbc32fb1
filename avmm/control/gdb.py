"""A TCP port or Unix socket at which a gdb debugs one machine.

The machine stops when a gdb connects, and goes on when it detaches, is gone, or has sent nothing sensible; one gdb is served at a time.
The invariant: when a connection has ended, nothing of it is left in the machine: no breakpoint, no step, no pause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from avmm.control.config import ConfigError, parse_address
from avmm.control.listener import Listener
from avmm.control.reverse import Reverse
from avmm.control.snapshot import SnapshotError
from avmm.debug.debugger import DebugError, Debugger, Stop
from avmm.debug.packets import encode
from avmm.debug.stub import OWNER, Action, Do, Stub
from avmm.hypervisor.partition import RunState

CHUNK = 1 << 16
CLIENTS = 16  # of which one is served, and the others are told so
OUTPUT_LIMIT = 1 << 20
PATIENCE = 30.0  # seconds of the host's time for which a client that does not read is waited for
INTERRUPT = b"\x03"
BUSY = "another gdb is debugging this machine"

Monitor = Callable[[str], Awaitable[str]]
"""Carries out a line of the human monitor and returns what it says."""


class GdbServer:
    """Serves ``debugger``'s machine at ``address``. ``await server.start()``, then ``close()``."""

    def __init__(self, debugger: Debugger, address: str, monitor: Monitor, reverse: Reverse, *, patience: float = PATIENCE) -> None:
        self.debugger = debugger
        self.reverse = reverse
        self.monitor = monitor
        self.patience = patience
        self._where = parse_address(address)
        self._listener = Listener(f"gdb:{debugger.partition.name}", self._serve, CLIENTS)
        self._session: Session | None = None

    @property
    def address(self) -> str:
        """Where it listens, as gdb's ``target remote`` wants it."""
        if isinstance(self._where, Path):
            return str(self._where)
        host, port = self._where
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def connected(self) -> bool:
        """Whether a gdb is there."""
        return self._session is not None

    async def start(self) -> None:
        """Listen. ConfigError when that cannot be."""
        try:
            if isinstance(self._where, Path):
                await self._listener.unix(self._where, CHUNK)
            else:
                host, port = self._where
                self._where = host, await self._listener.tcp(host, port, CHUNK)
        except OSError as error:
            raise ConfigError(f"cannot listen for gdb at {self.address}: {error.strerror or error}") from None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._session is not None:
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(self.patience):
                    await reader.read(CHUNK)  # its first packet
                writer.write(b"+" + encode(f"E.{BUSY}".encode()))
            return
        self._session = session = Session(self, reader, writer)
        try:
            await session.run()
        finally:
            self._session = None

    async def close(self) -> None:
        """Let the gdb go, and stop listening."""
        await self._listener.close()


class Session:
    """One gdb."""

    def __init__(self, server: GdbServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.debugger = server.debugger
        self.stub = Stub(server.debugger, reverse=server.reverse.available)
        self._server = server
        self._reader = reader
        self._writer = writer
        self._detached = False
        self._ahead = b""
        """What came while the machine was on its way backwards."""

    async def run(self) -> None:
        """Serve it until it is gone."""
        debugger = self.debugger
        debugger.listeners.append(self._stopped)
        try:
            with suppress(DebugError):  # a machine that has ended can be looked at
                await debugger.pause()
            while not self._detached and (data := await self._read()):
                for action in self.stub.feed(data):
                    if action is not None:
                        await self._do(action)
                    self._flush()
                    async with asyncio.timeout(self._server.patience):
                        await self._writer.drain()
                self._flush()
        except (ConnectionError, TimeoutError):
            pass  # it has gone, or does not read
        finally:
            debugger.listeners.remove(self._stopped)
            await asyncio.shield(self._leave())

    async def _read(self) -> bytes:
        data, self._ahead = self._ahead, b""
        return data or await self._reader.read(CHUNK)

    async def _leave(self) -> None:
        debugger = self.debugger
        await debugger.remove_all(OWNER)
        if debugger.partition.state is RunState.PAUSED:
            debugger.unit.forget_step()
            await debugger.partition.resume()

    def _stopped(self, stop: Stop) -> None:
        self.stub.stopped(stop)
        self._flush()

    def _flush(self) -> None:
        data = self.stub.output()
        if not data or self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > OUTPUT_LIMIT:
            self._writer.transport.abort()
            return
        self._writer.write(data)

    async def _do(self, action: Action) -> None:
        debugger = self.debugger
        try:
            match action.do:
                case Do.RESUME:
                    await debugger.resume()
                case Do.STEP:
                    await debugger.step(action.inside, interrupts=action.interrupts)
                case Do.BACK_STEP:
                    await self._server.reverse.step()
                case Do.BACK_RESUME:
                    await self._back()
                case Do.PAUSE:
                    await debugger.pause()
                case Do.MONITOR:
                    self.stub.monitor_done(await self._server.monitor(action.text))
                case Do.KILL:
                    self._detached = True
                    self._flush()
                    await debugger.partition.stop("killed by gdb")
                case Do.DETACH:
                    self._detached = True
        except (DebugError, SnapshotError) as error:
            if action.do is not Do.PAUSE:
                self.stub.refuse(str(error))

    async def _back(self) -> None:
        """Run backwards, until gdb says Ctrl-C, or is gone."""
        reverse = self._server.reverse
        going = asyncio.ensure_future(reverse.resume())
        reading = asyncio.ensure_future(self._reader.read(CHUNK))
        try:
            while not going.done():
                await asyncio.wait((going, reading), return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    data = reading.result()
                    self._ahead += data.replace(INTERRUPT, b"")
                    if not data or INTERRUPT in data:
                        await reverse.call_off()
                        break
                    reading = asyncio.ensure_future(self._reader.read(CHUNK))
            await going
        finally:
            for task in (going, reading):
                task.cancel()
            await asyncio.gather(going, reading, return_exceptions=True)
