"""The backing file device: the bottom of VM-H's storage stack, a task that performs requests on a :class:`BackingFile`.

What the page cache can answer is finished before the next request is looked at; the rest runs in the file's threads,
several at once, and is finished in whatever order the host does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from time import monotonic_ns
from typing import Any, Final

from avmm.devices.block import SECTOR
from avmm.host.backing import BackingFile
from avmm.host.requests import Hops, Op, StorageRequest, StorageStage

_READ: Final = Op.READ
_SECTOR: Final = SECTOR  # of an imported name the module's table would be asked each time


class FileDevice(StorageStage):
    """Reads, writes, flushes and discards sectors of ``file``."""

    def __init__(self, name: str, file: BackingFile) -> None:
        super().__init__(f"file:{name}")
        self.file = file

    async def perform(self, item: StorageRequest) -> None:
        item.hop(self.name)
        answer: bytearray | asyncio.Future[Any] | None
        match item.op:
            case Op.READ:
                answer = self.file.start_read(item.lba * SECTOR, item.count * SECTOR)
            case Op.WRITE:
                answer = self.file.start_write(item.lba * SECTOR, item.data)
            case Op.FLUSH:
                answer = self.file.start_flush()
            case Op.DISCARD:
                answer = self.file.start_discard(item.lba * SECTOR, item.count * SECTOR)
        if isinstance(answer, asyncio.Future):
            answer.add_done_callback(partial(_finish, item))
        else:
            item.finish(answer)

    def at_once(self, op: Op, lba: int, count: int, pieces: Sequence[memoryview], hops: Hops | None) -> bool:
        if hops is not None:
            hops.append((self.name, monotonic_ns()))
        if op is _READ:
            return self.file.read_now(lba * _SECTOR, count * _SECTOR, pieces)
        return self.file.write_now(lba * _SECTOR, count * _SECTOR, pieces)


def _finish(request: StorageRequest, answer: asyncio.Future[Any]) -> None:
    if (error := answer.exception()) is not None:
        request.finish(error=error)
    else:
        request.finish(answer.result())
