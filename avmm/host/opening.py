"""Opening and locking the file on the host that stands for a disk, and what is said when that cannot be done.

Whoever writes has the file alone, readers share it (flock(2)). The invariant: whatever goes wrong or is cancelled, no descriptor is left
open and no lock held.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import IO, Literal, NamedTuple

import aiofiles

from avmm.devices.block import SECTOR
from avmm.host.overlay import Overlay, OverlayError

Mode = Literal["rw", "ro", "overlay"]
THREADS = 4


class Opened(NamedTuple):
    """An image that is open and locked. ``held`` closes the files and ends the threads."""

    fd: int
    size: int
    overlay: Overlay | None
    pool: ThreadPoolExecutor
    held: AsyncExitStack


class ImageError(ValueError):
    """The image cannot be used as a disk; one sentence that says which and why."""


async def open_image(path: Path, mode: Mode, overlay_path: Path | None, size: int | None) -> Opened:
    """Open an image as :meth:`BackingFile.open` says. Raises ImageError."""
    if size is not None and size < SECTOR:
        raise ImageError(f"{path} cannot be {size} bytes long: a disk has at least one sector of {SECTOR} bytes.")
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix=f"file:{path.name}")
    async with AsyncExitStack() as held:
        held.callback(pool.shutdown)
        fd = await open_file(path, held, pool, write=mode == "rw", create=mode == "rw" and size is not None)
        length = await asyncio.get_running_loop().run_in_executor(pool, measure, path, fd, size, mode)
        overlay = None
        if mode == "overlay":
            overlay = await open_overlay(overlay_path, -(-length // SECTOR), held, pool)
        return Opened(fd, length, overlay, pool, held.pop_all())


async def close_image(held: AsyncExitStack, last: Awaitable[None]) -> None:
    """Wait for what is the ``last`` to be done with an image, and close it, whatever comes of that."""
    async with held:
        await last


async def open_file(path: Path, held: AsyncExitStack, pool: ThreadPoolExecutor, *, write: bool, create: bool) -> int:
    """Open and lock an image; ``held`` closes it. Raises ImageError."""

    def opener(name: str, flags: int) -> int:
        # O_NONBLOCK: a FIFO must not hold us up. It means nothing to the files that are accepted.
        fd = os.open(name, flags | os.O_NONBLOCK | (os.O_CREAT if create else 0), 0o644)
        try:
            if not (stat.S_ISREG(mode := os.fstat(fd).st_mode) or stat.S_ISBLK(mode)):
                raise ImageError(f"{path} is not a file that can hold a disk image.")
            fcntl.flock(fd, (fcntl.LOCK_EX if write else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            raise
        return fd

    mode: Literal["rb+", "rb"] = "rb+" if write else "rb"
    try:
        opening = asyncio.ensure_future(aiofiles.open(str(path), mode, buffering=0, opener=opener, executor=pool))
        try:
            file = await asyncio.shield(opening)
        except asyncio.CancelledError:  # a thread is at it and cannot be called back: what it opens is closed again
            with contextlib.suppress(OSError, ImageError):
                await (await opening).close()
            raise
    except OSError as error:
        raise ImageError(explain(path, error, write)) from error
    held.push_async_callback(file.close)
    return file.fileno()


def explain(path: Path, error: OSError, write: bool) -> str:
    """Return the sentence about a file that the host does not open."""
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return f"{path} does not exist."
        case errno.EISDIR:
            return f"{path} is a directory, not a disk image."
        case errno.EWOULDBLOCK:
            return f"{path} is in use: another machine has locked it."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            if write:
                return f"{path} is not writable; open it read-only or with an overlay."
            return f"{path} cannot be read: permission denied."
    return f"{path} cannot be opened: {error.strerror or error}."


def measure(path: Path, fd: int, size: int | None, mode: Mode) -> int:
    """Return the image's length, after giving an empty one the ``size`` that was asked for. Raises ImageError."""
    length = os.lseek(fd, 0, os.SEEK_END)
    if size is not None and mode == "rw" and not length:
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            raise ImageError(f"{path} cannot be made {size} bytes long: {error.strerror}.") from error
        length = size
    if size is not None and length != size:
        raise ImageError(f"{path} has {length} bytes, not the {size} asked for.")
    if length < SECTOR:
        raise ImageError(f"{path} is too short for a disk image: {length} bytes, a sector has {SECTOR}.")
    return length


def _nameless(held: AsyncExitStack) -> IO[bytes]:
    return held.enter_context(tempfile.TemporaryFile(buffering=0))


async def open_overlay(path: Path | None, sectors: int, held: AsyncExitStack, pool: ThreadPoolExecutor) -> Overlay:
    """Return an overlay for so many sectors: at ``path``, or in a nameless file. Raises ImageError."""
    loop = asyncio.get_running_loop()
    if path is None:
        nameless = await loop.run_in_executor(pool, _nameless, held)
        return Overlay(nameless.fileno(), sectors, permanent=False)
    fd = await open_file(path, held, pool, write=True, create=True)
    try:
        return await loop.run_in_executor(pool, Overlay.load, fd, sectors)
    except (OverlayError, OSError) as error:
        raise ImageError(f"{path} {error if isinstance(error, OverlayError) else f'cannot be used: {error.strerror}'}.") from error
