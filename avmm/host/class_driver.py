"""The class driver of VM-H's storage stack: what is the same for every disk.

It refuses what lies outside the medium or would change a read-only one, and splits what is larger than the port driver
takes. It retries nothing: a device that is a file has no transient errors.

The invariant: a FLUSH goes down only after every WRITE given before it is finished, so it covers all of them, and with
them all that were acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic_ns
from typing import Final

from avmm.devices.block import SECTOR, BlockError, BlockFault
from avmm.host.requests import Hops, Op, StorageRequest, StorageStage

LARGEST: Final = (1 << 20) // SECTOR
"""Sectors in one request to the port driver, at most: 1 MiB."""


class ClassDriver(StorageStage):
    """Hands requests for a medium of ``sectors`` sectors to the ``port`` driver."""

    def __init__(self, name: str, port: StorageStage, sectors: int, read_only: bool) -> None:
        super().__init__(f"class:{name}")
        self.port = port
        self.sectors = sectors
        self.read_only = read_only
        self._writes = 0
        self._written: asyncio.Future[None] | None = None

    async def perform(self, item: StorageRequest) -> None:
        item.hop(self.name)
        op = item.op
        if op is Op.FLUSH:
            while self._writes:
                self._written = asyncio.get_running_loop().create_future()
                await self._written
        else:
            self._check(op, item.lba, item.count)
            if op is not Op.READ:
                self._writes += 1
                item.on_finish(self._write_finished)
            if item.count > LARGEST and op is not Op.DISCARD:
                await self._split(item)
                return
        if not self.port.offer(item):
            await self.port.put(item)

    def at_once(self, op: Op, lba: int, count: int, pieces: Sequence[memoryview], hops: Hops | None) -> bool:
        if hops is not None:
            hops.append((self.name, monotonic_ns()))
        if count > LARGEST:
            return False
        self._check(op, lba, count)
        return self.port.at_once(op, lba, count, pieces, hops)

    def _check(self, op: Op, lba: int, count: int) -> None:
        if self.read_only and op is not Op.READ:
            raise BlockError(BlockFault.READ_ONLY, lba)
        if not 0 <= lba <= lba + count <= self.sectors:
            raise BlockError(BlockFault.RANGE, max(lba, self.sectors) if lba >= 0 else lba)

    async def _split(self, whole: StorageRequest) -> None:
        """Send the parts; ``whole`` is finished with the last of them. Of several errors it gets that of the lowest sector."""
        buffer = bytearray(whole.count * SECTOR) if whole.op is Op.READ else None
        data = memoryview(whole.data if buffer is None else buffer)
        left = -(-whole.count // LARGEST)
        failed: list[StorageRequest] = []

        def finished(part: StorageRequest) -> None:
            nonlocal left
            left -= 1
            if part.error is not None:
                failed.append(part)
            elif part.op is Op.READ:
                start = (part.lba - whole.lba) * SECTOR
                data[start : start + len(part.data)] = part.data
            if not left:
                error = min(failed, key=lambda part: part.lba).error if failed else None
                whole.finish(buffer, error)

        for first in range(0, whole.count, LARGEST):
            count = min(LARGEST, whole.count - first)
            part_data = data[first * SECTOR : (first + count) * SECTOR] if whole.op is Op.WRITE else b""
            part = StorageRequest(whole.id, whole.op, whole.lba + first, count, part_data, hops=whole.hops)
            part.on_finish(finished)
            await self.port.put(part)

    def _write_finished(self, request: StorageRequest) -> None:
        self._writes -= 1
        if not self._writes and self._written is not None and not self._written.done():
            self._written.set_result(None)
