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
from typing import Self

from avmm.devices.block import SECTOR, BlockError, BlockFault
from avmm.host.backing import BackingFile
from avmm.host.class_driver import LARGEST, ClassDriver
from avmm.host.file_device import FileDevice
from avmm.host.opening import Mode
from avmm.host.port_driver import PortDriver
from avmm.host.requests import Data, Op, StorageRequest, StorageStage
from avmm.hypervisor.irp import journey, next_id


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


class VirtualizationDriver(StorageStage):
    """Receives the requests of a VM-C and hands them to the kernel-mode stack, ``below``."""

    def __init__(self, name: str, below: StorageStage) -> None:
        super().__init__(f"virtualization:{name}")
        self.below = below
        self.stats = DiskStats()
        self.last: StorageRequest | None = None
        """The request finished last, with its path, for the trace."""
        self.watcher: Callable[[StorageRequest], None] | None = None

    async def perform(self, item: StorageRequest) -> None:
        item.hop(self.name)
        item.on_finish(self._finished)
        if not self.below.offer(item):
            await self.below.put(item)

    def at_once(self, item: StorageRequest) -> bool:
        item.hops.append((self.name, monotonic_ns()))
        try:
            if not self.below.at_once(item):
                return False
        except BlockError as error:
            item.error = error
        item.finished = True
        self._finished(item)
        return True

    def _finished(self, request: StorageRequest) -> None:
        stats = self.stats
        hops = request.hops
        hops.append(("done", now := monotonic_ns()))
        stats.requests += 1
        stats.latency += now - hops[0][1]
        self.last = request
        if self.watcher is not None:
            self.watcher(request)
        if request.op is Op.READ or request.op is Op.WRITE:
            joined = request.op is Op.READ and request.count > LARGEST  # the parts of a large one
            stats.copied += request.count * SECTOR * (2 if joined else 1)
        if request.error is not None:
            stats.errors += 1
        elif request.op is Op.READ:
            stats.bytes_read += request.count * SECTOR
        elif request.op is Op.WRITE:
            stats.bytes_written += request.count * SECTOR
        elif request.op is Op.FLUSH:
            stats.flushes += 1


class Disk:
    """A ``BlockDevice`` served by VM-H's stack over one backing file. ``await Disk.open(...)``, then ``close()`` or ``async with``."""

    def __init__(self, name: str, file: BackingFile, group: asyncio.TaskGroup | None = None) -> None:
        self.name = name
        self.file = file
        self.closed = False
        self._device = FileDevice(name, file)
        self._port = PortDriver(name, self._device)
        self._class = ClassDriver(name, self._port, file.size // SECTOR, file.read_only)
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
    def sectors(self) -> int:
        """Capacity in 512-byte sectors."""
        return self.file.size // SECTOR

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self.file.read_only

    @property
    def stats(self) -> DiskStats:
        """The counters; they go on counting."""
        return self._driver.stats

    @property
    def last_request(self) -> StorageRequest | None:
        """The request finished last, with the path it took."""
        return self._driver.last

    @property
    def watcher(self) -> Callable[[StorageRequest], None] | None:
        """Who watches."""
        return self._driver.watcher

    def watch(self, watcher: Callable[[StorageRequest], None] | None) -> None:
        """Have ``watcher(request)`` called for each request that is finished; None for nobody. It must not raise."""
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
        """Tell that the sectors' contents no longer matter. A hint: they keep them."""
        await self._ask(Op.DISCARD, lba, count, b"", id)

    def read_now(self, lba: int, count: int, pieces: Sequence[memoryview], *, id: int = 0) -> bool:
        """Read straight into ``pieces`` if the page cache has the sectors and no request is under way; see ``PromptDevice``."""
        return self._ask_now(Op.READ, lba, count, pieces, id)

    def write_now(self, lba: int, count: int, pieces: Sequence[memoryview], *, id: int = 0) -> bool:
        """Write straight from ``pieces`` to the page cache if no request is under way; see ``PromptDevice``."""
        return self._ask_now(Op.WRITE, lba, count, pieces, id)

    def _ask_now(self, op: Op, lba: int, count: int, pieces: Sequence[memoryview], id: int) -> bool:
        if self._pending or self.closed or self._driver.ended:
            return False
        request = StorageRequest(id or journey.get() or next_id(), op, lba, count, pieces=pieces)
        if not self._driver.at_once(request):
            return False
        if request.error is not None:
            raise request.error
        return True

    async def _ask(self, op: Op, lba: int, count: int, data: bytes, id: int) -> StorageRequest:
        if self.closed:
            raise BlockError(BlockFault.NO_MEDIUM, lba, f"{self.name} has been closed")
        waiter: asyncio.Future[None] | None = None
        request = StorageRequest(id or journey.get() or next_id(), op, lba, count, data)

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
        try:
            if self._pending:
                self._idle = asyncio.get_running_loop().create_future()
                await self._idle
        finally:
            for stage in self._stages:
                await stage.stop()
            await self.file.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
