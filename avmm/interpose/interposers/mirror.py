"""``mirror``: a second disk that becomes, and stays, a copy of the first while the guest writes.

The invariant: what has been copied is the same on both disks whenever no write is under way; a second disk that fails is left out, and
the guest does not hear of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from avmm.clock import MICROSECOND
from avmm.devices.block import BlockDevice, BlockError
from avmm.devices.device import Board
from avmm.interpose.front import nothing
from avmm.interpose.interposers.stack import Below, Request, perform
from avmm.interpose.strand import Resume, Strand, Suspend


class MirrorLayer:
    """Copies one drive to a second disk while it is used, then writes to both; :meth:`switch_over` leaves the first one behind."""

    CHUNK = 64

    def __init__(self, board: Board, drive: int, target: BlockDevice, source: BlockDevice) -> None:
        if target.sectors < source.sectors:
            raise ValueError(f"a mirror of {source.sectors} sectors does not fit into {target.sectors}")
        self._board = board
        self.drive = drive
        self._target = target
        self._source = source
        self.copied = 0
        """Sectors copied so far, from the first on."""
        self.failed: BaseException | None = None
        self.switched_over = False
        self._closed = self._held = False
        self._queue: deque[Resume] = deque()
        self.on_copied: Callable[[], None] = nothing
        Strand(self._copy(), self._copied)

    @property
    def complete(self) -> bool:
        """Whether both disks hold the same."""
        return self.copied >= self._source.sectors

    def switch_over(self) -> None:
        """Use only the second disk from now on."""
        if not self.complete or self.failed is not None:
            raise ValueError("the mirror is not complete yet")
        self.switched_over = True

    def _outside(self, request: Request) -> Suspend:
        """Make a request to the second disk, which is not the driver's, in the background."""
        latency = 20 * MICROSECOND + request.count * MICROSECOND
        return Suspend(lambda resume: self._board.start(perform(self._target, request), resume, latency))

    async def perform(self, request: Request, below: Below) -> bytes:
        """Reads from the first disk, writes to both, or all to the second one after the switch."""
        if request.drive != self.drive or self.failed is not None:
            return await below(request)
        if self.switched_over:
            data: bytes = await self._outside(request)
            return data
        if request.op == "read":
            return await below(request)
        await self._acquire()
        try:
            await below(request)
            await self._follow(request)
        finally:
            self._release()
        return b""

    async def _follow(self, request: Request) -> None:
        """Make a write to the second disk too; from the first that fails on it is not a mirror any more."""
        try:
            if not self._closed:
                await self._outside(request)
        except BlockError as error:
            self.failed = error

    async def _copy(self) -> None:
        while not self.complete and not self._closed:
            count = min(self.CHUNK, self._source.sectors - self.copied)
            await self._acquire()
            try:
                data = await perform(self._source, Request("read", self.drive, self.copied, count))
                await self._outside(Request("write", self.drive, self.copied, count, data))
            finally:
                self._release()
            self.copied += count

    def _copied(self, result: Any) -> None:
        if isinstance(result, BaseException):
            self.failed = result
        self.on_copied()

    async def _acquire(self) -> None:
        if self._held:
            await Suspend(self._queue.append)
        self._held = True

    def _release(self) -> None:
        self._held = bool(self._queue)
        if self._queue:
            self._queue.popleft()(None)

    def status(self) -> dict[str, object]:
        """What it has done so far."""
        return {
            "copied": self.copied, "sectors": self._source.sectors, "complete": self.complete, "switched_over": self.switched_over,
            **({"failed": str(self.failed)} if self.failed is not None else {}),
        }  # fmt: skip

    def close(self) -> None:
        """Stop copying."""
        if self.switched_over:
            raise ValueError("the guest's data are on the mirror only: it cannot be removed any more")
        self._closed = True

    def end(self) -> None:
        """Stop copying."""
        self._closed = True
