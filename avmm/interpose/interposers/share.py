"""``share``: a read-only view of a virtualized disk for others than its guest, for instance another machine.

The invariant: it reads what the guest's disk holds now, the guest's requests and these taking turns at the driver; closed, or with
the guest's machine gone, every read fails and none waits.
"""

from __future__ import annotations

import asyncio
from typing import Any

from avmm.devices.block import BlockDevice, BlockError, BlockFault
from avmm.interpose.interposers.stack import Request, perform
from avmm.interpose.strand import Strand


class SharedDisk:
    """The view, as a ``BlockDevice``."""

    read_only = True

    def __init__(self, disk: BlockDevice, name: str) -> None:
        self._disk = disk
        self.name = name
        """Whose disk it is."""
        self.closed = False
        self.requests = 0
        self._waiting: set[asyncio.Future[Any]] = set()

    @property
    def sectors(self) -> int:
        """Capacity."""
        return self._disk.sectors

    async def read(self, lba: int, count: int) -> bytes:
        """Return sectors."""
        if self.closed:
            raise self._gone(lba)
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(result: Any) -> None:
            if ended.done():
                return
            if isinstance(result, BaseException):
                ended.set_exception(result)
            else:
                ended.set_result(result)

        self.requests += 1
        self._waiting.add(ended)
        try:
            Strand(perform(self._disk, Request("read", 0, lba, count)), done)
            return bytes(await ended)
        finally:
            self._waiting.discard(ended)

    async def write(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        """Refuse."""
        raise BlockError(BlockFault.READ_ONLY, lba)

    async def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Let nobody read any more."""
        self.closed = True
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(self._gone(0))

    def _gone(self, lba: int) -> BlockError:
        return BlockError(BlockFault.NO_MEDIUM, lba, f"{self.name} is not shared any more")
