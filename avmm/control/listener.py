"""A listening socket and its clients, each served by a task of its own: for QMP, for consoles, for gdb, for metrics.

The invariant: after :meth:`Listener.close` there is no client, no task and no file of it left; a socket that another process
has put in the file's place stays.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from avmm.control.config import ConfigError

_PATH_LIMIT = 107  # sockaddr_un.sun_path without its NUL
_BACKLOG = 128

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
"""Serves one client to its end."""


class Listener:
    """Serves at most ``most`` clients at once. ``refusal`` is what one beyond them is sent before it is let go."""

    def __init__(self, name: str, serve: Serve, most: int, refusal: bytes = b"") -> None:
        self._name = name
        self._serve = serve
        self._most = most
        self._refusal = refusal
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._path: Path | None = None
        self._inode = (0, 0)

    @property
    def open(self) -> bool:
        """Whether it listens, or has clients still."""
        return self._server is not None

    @property
    def clients(self) -> int:
        """Clients connected now."""
        return len(self._tasks)

    async def unix(self, path: Path, limit: int) -> None:
        """Make a socket that only its owner can open, and listen. ``limit``: bytes that are read ahead. ConfigError when that cannot be."""
        listening = _bind(path)
        try:
            self._path, self._inode = path, _inode(path)
            self._server = await asyncio.start_unix_server(self._connected, sock=listening, limit=limit, backlog=_BACKLOG)
        except BaseException:
            listening.close()
            raise

    async def tcp(self, host: str, port: int, limit: int) -> int:
        """Listen on a port, and return its number: a free one's for 0. OSError when it cannot be had."""
        self._server = await asyncio.start_server(self._connected, host, port, limit=limit)
        return int(self._server.sockets[0].getsockname()[1])

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= self._most:
            writer.write(self._refusal)
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name=self._name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.close())  # a task cancelled before its first step never enters its coroutine

    def stop(self) -> None:
        """Take no more clients."""
        if self._server is not None:
            self._server.close()

    async def close(self) -> None:
        """Take no more clients, let those there are go, and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None
        with suppress(OSError):
            if self._path is not None and _inode(self._path) == self._inode:
                self._path.unlink()


def _inode(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _bind(path: Path) -> socket.socket:
    """Return a socket with mode 0600 at ``path``; a dead one that is left there makes room. ConfigError with one sentence."""
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise ConfigError(f"{path} is too long for a socket: {_PATH_LIMIT} bytes are allowed")
    try:
        if stat.S_ISSOCK(path.stat().st_mode):
            if _answers(path):
                raise ConfigError(f"{path} belongs to a machine that runs: end it, or choose another name")
            path.unlink()
        else:
            raise ConfigError(f"{path} is in the way: a file that is no socket")
    except FileNotFoundError:
        pass
    made = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        made.bind(os.fspath(path))
    except OSError as error:
        made.close()
        raise ConfigError(f"cannot make the socket {path}: {error.strerror}") from None
    finally:
        os.umask(before)
    return made


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True
        except OSError as error:
            raise ConfigError(f"cannot use the socket {path}: {error.strerror}") from None
    return True
