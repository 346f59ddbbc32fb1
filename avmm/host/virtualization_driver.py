"""The virtualization driver of VM-H, and the disk it offers: where the requests of a VM-C come in.

The way of a request, each step an asyncio task with a bounded inbox::

    Disk.read() -> virtualization:<name> -> class:<name> -> port:<name> -> file:<name> -> page cache, or a thread

and the answer comes back by completion routines, without a task switch on the way. A hop from task to task (put_nowait, one
turn of the loop, one task step) costs 2.5-3 us under uvloop, so an idle stage begins a request in the task that offers it. A
request with the guest's own pages (:meth:`Disk.read_now`) passes the same stages as plain calls, if nothing else is under way
and the page cache has what it wants; otherwise it was not made, and goes the long way. No stage is left out by either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns
from types import TracebackType
from typing import Final, Self

from avmm.devices.block import SECTOR, BlockError, BlockFault, journey
from avmm.host.backing import BackingFile
from avmm.host.class_driver import LARGEST, ClassDriver
from avmm.host.file_device import FileDevice
from avmm.host.opening import Mode
from avmm.host.port_driver import PortDriver
from avmm.host.requests import Data, Hops, Op, StorageRequest, StorageStage
from avmm.hypervisor.irp import next_id

_READ: Final = Op.READ
_WRITE: Final = Op.WRITE
_FLUSH: Final = Op.FLUSH
_now: Final = monotonic_ns  # of an imported name the module's table would be asked each time
_SECTOR: Final = SECTOR


@dataclass(slots=True)
class DiskStats:
    """What a disk has done so far."""

    requests: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    flushes: int = 0
    errors: int = 0
    copied: int = 0
    """Bytes copied between the page cache, the stack's own buffers and those of whoever asks."""
    latency: int = 0
    """Sum over all finished requests, ns of host time."""

    def count(self, op: Op, sectors: int, began: int, failed: bool = False) -> None:
        """Count a request that is finished now."""
        self.requests += 1
        self.latency += _now() - began
        size = sectors * _SECTOR
        if op is _READ or op is _WRITE:
            self.copied += size * 2 if sectors > LARGEST and op is _READ else size  # the parts of a large one are joined
        if failed:
            self.errors += 1
        elif op is _READ:
            self.bytes_read += size
        elif op is _WRITE:
            self.bytes_written += size
        elif op is _FLUSH:
            self.flushes += 1


class VirtualizationDriver(StorageStage):
    """Receives the requests of a VM-C and hands them to the kernel-mode stack, ``below``."""

    def __init__(self, name: str, below: StorageStage) -> None:
        super().__init__(f"virtualization:{name}")
        self.below = below
        self.stats = DiskStats()
        self.watcher: Callable[[StorageRequest], None] | None = None
        """Told of each request that is finished, with its path."""

    async def perform(self, item: StorageRequest) -> None:
        item.hop(self.name)
        item.on_finish(self._finished)
        if not self.below.offer(item):
            await self.below.put(item)

    def ask_now(self, op: Op, lba: int, count: int, pieces: Sequence[memoryview], id: int) -> bool:
        """Have a prompt request performed now; see :meth:`at_once`. Whoever watches is told of it as of any other."""
        if self.watcher is not None:
            return self._ask_watched(StorageRequest(id or journey.get() or next_id(), op, lba, count, hops=[]), pieces)
        began = _now()
        try:
            if not self.below.at_once(op, lba, count, pieces, None):
                return False
        except BlockError:
            self.stats.count(op, count, began, failed=True)
            raise
        self.stats.count(op, count, began)
        return True

    def _ask_watched(self, request: StorageRequest, pieces: Sequence[memoryview]) -> bool:
        request.hop(self.name)
        request.on_finish(self._finished)
        try:
            if not self.below.at_once(request.op, request.lba, request.count, pieces, request.hops):
                return False
        except BlockError as error:
            request.finish(error=error)
            raise
        request.finish()
        return True

    def _finished(self, request: StorageRequest) -> None:
        request.hop("done")
        if self.watcher is not None:
            self.watcher(request)
        self.stats.count(request.op, request.count, request.began, failed=request.error is not None)


class Disk:
    """A ``BlockDevice`` served by VM-H's stack over one backing file. ``await Disk.open(...)``, then ``close()`` or ``async with``."""

    def __init__(self, name: str, file: BackingFile, group: asyncio.TaskGroup | None = None) -> None:
        self.name = name
        self.file = file
        self.closed = False
        self.sectors = file.size // SECTOR
        """Capacity in 512-byte sectors."""
        self.read_only = file.read_only
        """Whether writes are refused."""
        self._device = FileDevice(name, file)
        self._port = PortDriver(name, self._device)
        self._class = ClassDriver(name, self._port, self.sectors, self.read_only)
        self._driver = VirtualizationDriver(name, self._class)
        self._loop = asyncio.get_running_loop()  # asking for it costs a system call
        self._pending = 0
        self._idle: asyncio.Future[None] | None = None
        for stage in self._stages:
            stage.start(group)

    @classmethod
    async def open(
        cls,
        path: str | Path,
        mode: Mode = "rw",
        overlay_path: str | Path | None = None,
        size: int | None = None,
        *,
        name: str = "disk",
        group: asyncio.TaskGroup | None = None,
    ) -> Self:
        """Open the image as :meth:`BackingFile.open` does and start the stack's tasks, in ``group`` if there is one."""
        return cls(name, await BackingFile.open(path, mode, overlay_path, size), group)

    @property
    def _stages(self) -> tuple[StorageStage, ...]:
        return (self._driver, self._class, self._port, self._device)

    @property
    def stats(self) -> DiskStats:
        """The counters; they go on counting."""
        return self._driver.stats

    @property
    def watcher(self) -> Callable[[StorageRequest], None] | None:
        """Who watches."""
        return self._driver.watcher

    def watch(self, watcher: Callable[[StorageRequest], None] | None) -> None:
        """Have ``watcher(request)`` called for each request that is finished; None for nobody. It must not raise.

        Requests that begin from now on keep their path for it.
        """
        self._driver.watcher = watcher

    async def read(self, lba: int, count: int, *, id: int = 0) -> bytes | bytearray:
        """Return ``count`` sectors from ``lba``."""
        data = (await self._ask(Op.READ, lba, count, b"", id)).data
        assert not isinstance(data, memoryview)
        return data

    async def write(self, lba: int, data: Data, *, id: int = 0) -> None:
        """Write whole sectors from ``lba``; the data are taken at once. A cancelled caller does not take the write back."""
        if len(data) % SECTOR:
            raise ValueError(f"{len(data)} bytes are not whole sectors")
        if not isinstance(data, bytes):
            self.stats.copied += len(data)
        await self._ask(Op.WRITE, lba, len(data) // SECTOR, bytes(data), id)

    async def flush(self, *, id: int = 0) -> None:
        """Return when all writes acknowledged, or given, before are on stable storage."""
        await self._ask(Op.FLUSH, 0, 0, b"", id)

    async def discard(self, lba: int, count: int, *, id: int = 0) -> None:
        """Tell that the sectors' contents no longer matter: the host may have their room. They read as zeros then, or as before."""
        await self._ask(Op.DISCARD, lba, count, b"", id)

    def read_now(self, lba: int, count: int, pieces: Sequence[memoryview], id: int = 0) -> bool:
        """Read straight into ``pieces`` if the page cache has the sectors and no request is under way; see ``PromptDevice``."""
        if self._pending or self.closed or self._driver.ended:
            return False
        return self._driver.ask_now(_READ, lba, count, pieces, id)

    def write_now(self, lba: int, count: int, pieces: Sequence[memoryview], id: int = 0) -> bool:
        """Write straight from ``pieces`` to the page cache if no request is under way; see ``PromptDevice``."""
        if self._pending or self.closed or self._driver.ended:
            return False
        return self._driver.ask_now(_WRITE, lba, count, pieces, id)

    async def _ask(self, op: Op, lba: int, count: int, data: bytes, id: int) -> StorageRequest:
        if self.closed:
            raise BlockError(BlockFault.NO_MEDIUM, lba, f"{self.name} has been closed")
        waiter: asyncio.Future[None] | None = None
        hops: Hops | None = None if self._driver.watcher is None else []
        request = StorageRequest(id or journey.get() or next_id(), op, lba, count, data, hops=hops)

        def answer(request: StorageRequest) -> None:
            self._pending -= 1
            if not self._pending and self._idle is not None and not self._idle.done():
                self._idle.set_result(None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

        request.on_finish(answer)
        self._pending += 1
        if not self._driver.offer(request):
            await self._driver.put(request)
        if not request.finished:  # the page cache did not have it
            waiter = self._loop.create_future()
            await waiter
        if request.error is not None:
            raise request.error
        return request

    async def close(self) -> None:
        """Refuse new requests, let those given finish, end the tasks, flush and unlock the file."""
        if self.closed:
            return
        self.closed = True
        cancelled: asyncio.CancelledError | None = None
        if self._pending:
            self._idle = asyncio.get_running_loop().create_future()
            try:
                await self._idle
            except asyncio.CancelledError as error:  # raised again when the file is closed
                cancelled = error
        for stage in self._stages:
            await stage.stop()
        await self.file.close()
        if cancelled is not None:
            raise cancelled

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
