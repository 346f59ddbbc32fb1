"""The file on the host that stands for a disk.

Raw images, and block devices of the host, opened for reading and writing, read-only, or below an overlay that takes the
changes. A file whose size is no multiple of 512 is treated as QEMU's raw format does: the last sector is padded with
zeros, and the file grows to whole sectors when that one is written.

Whatever sits in the page cache is served without a thread (preadv2(2), RWF_NOWAIT); what would block goes to the file's
own few threads. Measured on ext4, one core: a cached read of 4 KiB 1.6 us and of 1 MiB 50 us, a write of 4 KiB 4.5 us and of
128 KiB 9 us, a trip to a thread and back 90 us. Hence: cached reads up to 1 MiB and writes up to 128 KiB are done at once.

The invariant: :meth:`BackingFile.flush` returns only if every write acknowledged before is on stable storage. The kernel
reports a failed write-back once and forgets it, so after one failed flush all later ones fail too.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final, NoReturn, TypeVar

from avmm._pieces import Pieces
from avmm.devices.block import SECTOR, BlockError, BlockFault
from avmm.host import holes
from avmm.host.opening import ImageError, Mode, close_image, explain, open_image
from avmm.host.overlay import Overlay
from avmm.host.requests import Data
from avmm.host.throttle import Throttle
from avmm.memory import PAGE

T = TypeVar("T")
Segment = tuple[int, int, int, int]
"""File descriptor, offset in that file, offset in the buffer, length."""

READ_NOW = 1 << 20
WRITE_NOW = 128 << 10
PIECES: Final = 1024  # IOV_MAX
_NOWAIT: Final = os.RWF_NOWAIT
_now: Final = perf_counter_ns  # of an imported name the module's table would be asked each time
_SECTOR: Final = SECTOR
_Pieces: Final = Pieces
SAMPLE, SAMPLES = 16 << 10, 32
"""Bytes of a sample of an image, and how many there are at most, more or less."""
COMMIT_SECTORS = 2048
"""Sectors that a commit looks at at once."""


class BackingFile:
    """An open image. Requests are whole sectors and may overlap in time; host errors are BlockError(MEDIUM)."""

    def __init__(
        self, path: Path, mode: Mode, fd: int, size: int, *, overlay: Overlay | None, pool: ThreadPoolExecutor, held: AsyncExitStack
    ) -> None:
        """Use :meth:`open`. ``held`` closes the files and the pool."""
        self.path = path
        self.mode = mode
        self.size = -(-size // SECTOR) * SECTOR
        """Bytes of the disk: those of the file, rounded up to whole sectors."""
        self.overlay = overlay
        self.closed = False
        self._fd = fd
        self._held = held
        self._present = size
        self._pool = pool
        self._running: set[asyncio.Future[Any]] = set()
        self._nowait = True
        self._throttle = Throttle()
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._writes = 0
        self._synced = -1
        self._sync_error: OSError | None = None
        self._fingerprint: str | None = None
        self.read_only = mode == "ro"
        """Whether there is nowhere to write to."""

    @classmethod
    async def open(
        cls, path: str | Path, mode: Mode = "rw", overlay_path: str | Path | None = None, size: int | None = None
    ) -> BackingFile:
        """Open and lock the image at ``path``.

        ``overlay`` never touches the image: changes go to ``overlay_path`` (made if missing), without one to a nameless
        file that is gone when this one is closed. With ``size`` a missing ``rw`` image is made, sparse, of so many bytes;
        one that exists must have that size.
        """
        image = await open_image(Path(path), mode, None if overlay_path is None else Path(overlay_path), size)
        return cls(Path(path), mode, image.fd, image.size, overlay=image.overlay, pool=image.pool, held=image.held)

    # -- requests: each is started at once, and either done on return or a future

    def start_read(self, offset: int, length: int) -> bytearray | asyncio.Future[bytearray]:
        """Return the bytes if the page cache has them, otherwise a future of them."""
        self._check(offset, length)
        buffer = bytearray(length)
        if not length:
            return buffer
        segments = self._segments(offset, length)
        if length <= READ_NOW and self._nowait and self._read_now(segments, buffer):
            return buffer
        return self._run(offset, self._read_blocking, segments, buffer)

    def start_write(self, offset: int, data: Data) -> asyncio.Future[None] | None:
        """Return None if ``data`` have been written to the page cache, otherwise a future; ``data`` must not change until then."""
        length = len(data)
        fd, at = self._place(offset, length)
        if length <= WRITE_NOW and self._prompt(fd, at, length):
            self._write_here(fd, at, offset, length, (data,))
            return None
        return self._run(offset, self._write_blocking, fd, at, offset, length, (data,))

    def start_flush(self) -> asyncio.Future[None] | None:
        """Return None if nothing was written since the last flush, otherwise a future that is done when all of it is stable."""
        self._check(0, 0)
        return self._run(0, self._flush_blocking) if self._unsynced() else None

    def start_discard(self, offset: int, length: int) -> asyncio.Future[None]:
        """Give the room that these sectors take back to the host. They read as zeros then; those that are not in an overlay, or
        where the host's file system has no holes, as before.
        """
        return self._run(offset, holes.punch, *self._place(offset, length), length)

    def read_now(self, offset: int, length: int, pieces: Sequence[memoryview]) -> bool:
        """Read into ``pieces`` if the page cache has it all. False: it has not, and what is in them means nothing."""
        self._check(offset, length)
        if length > READ_NOW or len(pieces) > PIECES or not self._nowait:
            return False
        fd, at = self._fd, offset
        if self.overlay is not None or offset + length > self._present:
            segments = self._segments(offset, length)
            if len(segments) != 1 or segments[0][3] != length:
                return False
            fd, at, _, _ = segments[0]
        return self._read_cached(fd, pieces, at, length)

    def write_now(self, offset: int, length: int, pieces: Sequence[memoryview]) -> bool:
        """Write ``pieces`` to the page cache. False, and nothing was written, if that may take the host some time."""
        fd, at = self._place(offset, length)
        if length > WRITE_NOW or len(pieces) > PIECES or not self._prompt(fd, at, length):
            return False
        self._write_here(fd, at, offset, length, pieces)
        return True

    async def read(self, offset: int, length: int) -> bytearray:
        """Return ``length`` bytes at ``offset``."""
        answer = self.start_read(offset, length)
        return answer if isinstance(answer, bytearray) else await asyncio.shield(answer)

    async def write(self, offset: int, data: Data) -> None:
        """Write ``data`` at ``offset``; every read after this returned sees them. Cancelling does not take the write back."""
        answer = self.start_write(offset, data if isinstance(data, bytes) else bytes(data))
        if answer is not None:
            await asyncio.shield(answer)

    async def flush(self) -> None:
        """Return when all writes acknowledged before are on stable storage."""
        answer = self.start_flush()
        if answer is not None:
            await asyncio.shield(answer)

    async def commit(self) -> int:
        """Put all writes on stable storage, those that an overlay holds into the image itself; returns how many sectors those were.

        The overlay still has them, so nothing is lost if this is cut short. Nothing should be written meanwhile. ImageError when
        the image cannot be written, or is below another overlay too.
        """
        await self.flush()
        return 0 if self.overlay is None else await asyncio.shield(self._run(0, self._commit_blocking, self.overlay))

    # -- snapshots

    async def changes(self) -> tuple[tuple[int, bytes], ...]:
        """Return what the overlay holds, as (first sector, data); nothing without an overlay. No request may be in flight."""
        return () if self.overlay is None else await self._run(0, self.overlay.contents)

    async def replace_changes(self, contents: tuple[tuple[int, bytes], ...]) -> None:
        """Let the overlay hold exactly ``contents``. No request may be in flight."""
        assert self.overlay is not None
        await self._run(0, self.overlay.replace, contents)
        with self._lock:
            self._writes += 1

    async def fingerprint(self) -> str:
        """Return a digest of samples of the image below the overlay: another image most likely has another."""
        if self._fingerprint is None:
            self._fingerprint = await self._run(0, self._sample)
        return self._fingerprint

    def _sample(self) -> str:
        digest = hashlib.sha256(f"{self._present}".encode())
        step = max(SAMPLE, self._present // SAMPLES // PAGE * PAGE)
        for at in [*range(0, self._present, step), max(0, self._present - SAMPLE)]:
            digest.update(os.pread(self._fd, SAMPLE, at))
        return digest.hexdigest()

    async def close(self) -> None:
        """Wait for what is in flight, flush, unlock. The file is closed even if the flush fails; then BlockError is raised."""
        if self.closed:
            return
        self.closed = True
        await close_image(self._held, self._finish())

    async def _finish(self) -> None:
        while self._running:
            await asyncio.wait(self._running)
        if self._unsynced():
            await asyncio.shield(self._run(0, self._flush_blocking))

    # -- how it is done

    def _check(self, offset: int, length: int) -> None:
        if self.closed or (offset | length) % _SECTOR or offset < 0 or length < 0 or offset + length > self.size:
            self._refuse(offset, length)

    def _refuse(self, offset: int, length: int) -> NoReturn:
        if self.closed:
            raise BlockError(BlockFault.NO_MEDIUM, offset // SECTOR, f"{self.path} has been closed")
        if offset % SECTOR or length % SECTOR:
            raise ValueError(f"{length} bytes at {offset} are not whole sectors")
        raise BlockError(BlockFault.RANGE, max(offset, self.size) // SECTOR)

    def _unsynced(self) -> bool:
        return not self.read_only and (self._synced != self._writes or self._sync_error is not None)

    def _segments(self, offset: int, length: int) -> list[Segment]:
        if self.overlay is None:
            return [(self._fd, offset, 0, min(length, self._present - offset))]
        segments = []
        for inside, first, count in self.overlay.runs(offset // SECTOR, length // SECTOR):
            at, size = first * SECTOR, count * SECTOR
            if inside:
                segments.append((self.overlay.fd, self.overlay.data_offset + at, at - offset, size))
            else:
                segments.append((self._fd, at, at - offset, min(size, self._present - at)))
        return segments

    def _read_now(self, segments: list[Segment], buffer: bytearray) -> bool:
        for fd, at, start, length in segments:
            target = buffer if length == len(buffer) else memoryview(buffer)[start : start + length]
            if not self._read_cached(fd, (target,), at, length):
                return False
        return True

    def _read_cached(self, fd: int, pieces: Sequence[bytearray | memoryview], at: int, length: int) -> bool:
        try:
            if isinstance(pieces, _Pieces):
                return pieces.preadv(fd, at, _NOWAIT) == length
            return os.preadv(fd, pieces, at, _NOWAIT) == length
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                self._nowait = False  # this file system cannot tell (tmpfs): everything goes to the threads
            return False  # not cached; a real error comes back from the thread

    def _read_blocking(self, segments: list[Segment], buffer: bytearray) -> bytearray:
        view = memoryview(buffer)
        for fd, at, start, length in segments:
            done = 0
            while done < length:
                got = os.preadv(fd, [view[start + done : start + length]], at + done)
                if not got:
                    raise OSError(errno.EIO, "the file has become shorter")
                done += got
        return buffer

    def _place(self, offset: int, length: int) -> tuple[int, int]:
        """Return where a write goes: file descriptor and offset in that file."""
        self._check(offset, length)
        if self.read_only:
            raise BlockError(BlockFault.READ_ONLY, offset // SECTOR)
        return (self._fd, offset) if self.overlay is None else (self.overlay.fd, self.overlay.data_offset + offset)

    def _prompt(self, fd: int, at: int, length: int) -> bool:
        """Whether a write to the page cache is likely to take no time."""
        if self._throttle.for_thread():
            return False
        return not (at | length) % PAGE or (self._settled(fd, at) and self._settled(fd, at + length))

    def _write_here(self, fd: int, at: int, offset: int, length: int, pieces: Sequence[Data]) -> None:
        began = _now()
        try:
            self._put(fd, at, offset, length, pieces)
        except OSError as error:
            raise self._medium(offset, error) from error
        if self._running:
            with self._lock:
                self._wrote(offset + length)
        else:  # no thread is at it
            self._wrote(offset + length)
        self._throttle.took(_now() - began)

    def _settled(self, fd: int, edge: int) -> bool:
        """Whether a write may begin or end at ``edge`` without the kernel having to read the rest of that page first."""
        if not edge % PAGE:
            return True
        try:
            os.preadv(fd, [bytearray(1)], edge, os.RWF_NOWAIT)
        except OSError:
            return False
        return True

    def _write_blocking(self, fd: int, at: int, offset: int, length: int, pieces: Sequence[Data]) -> None:
        self._put(fd, at, offset, length, pieces)
        with self._lock:
            self._wrote(offset + length)

    def _put(self, fd: int, at: int, offset: int, length: int, pieces: Sequence[Data]) -> None:
        done = pieces.pwritev(fd, at) if isinstance(pieces, _Pieces) else os.pwritev(fd, pieces, at)
        if done < length:  # the host has no room for more, and says so next time
            _write_all(fd, at + done, memoryview(b"".join(pieces))[done:])
        if self.overlay is not None:
            self.overlay.mark(offset // SECTOR, length // SECTOR)

    def _wrote(self, end: int) -> None:
        self._writes += 1
        if self.overlay is None and self._present < end:
            self._present = end

    def _flush_blocking(self) -> None:
        with self._flushing:
            if self._sync_error is not None:
                raise OSError(self._sync_error.errno, "an earlier flush failed, and what it lost cannot be known")
            writes = self._writes
            try:
                if self.overlay is None:
                    os.fdatasync(self._fd)
                else:
                    self.overlay.sync()
            except OSError as error:
                self._sync_error = error
                raise
            self._synced = writes

    def _commit_blocking(self, overlay: Overlay) -> int:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(self.path, "rb+", buffering=0) as image:
                if not os.path.samestat(os.fstat(image.fileno()), os.fstat(self._fd)):
                    raise ImageError(f"{self.path} is not the file any more that was opened.")
                total = self._commit_to(image.fileno(), overlay)
                os.fsync(image.fileno())
        except OSError as error:
            raise ImageError(explain(self.path, error, True)) from error
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_SH)
        return total

    def _commit_to(self, fd: int, overlay: Overlay) -> int:
        total = 0
        for start in range(0, overlay.sectors, COMMIT_SECTORS):
            for inside, first, count in overlay.runs(start, min(COMMIT_SECTORS, overlay.sectors - start)):
                if inside:
                    at, size = first * SECTOR, count * SECTOR
                    _write_all(fd, at, self._read_blocking([(overlay.fd, overlay.data_offset + at, 0, size)], bytearray(size)))
                    total += count
        return total

    def _run(self, offset: int, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        def translated() -> T:
            try:
                return work(*arguments)
            except OSError as error:
                raise self._medium(offset, error) from error

        future = asyncio.get_running_loop().run_in_executor(self._pool, translated)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def _medium(self, offset: int, error: OSError) -> BlockError:
        return BlockError(BlockFault.MEDIUM, offset // SECTOR, f"{self.path}: {error.strerror or error}")


def _write_all(fd: int, at: int, data: Data) -> None:
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:] if done else view, at + done)
