"""A disk with layers: the emulated disk on top, the VMM's driver at the bottom, interposers between.

The invariant: a request passes the layers from the newest to the oldest, exactly once each, unless one of them ends it; layers may be
added and removed while requests are under way, which end in the layers that they began in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from avmm.clock import Clock
from avmm.devices.block import SECTOR, BlockDevice
from avmm.interpose.strand import Resume, Suspend


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the emulated disk."""

    op: str
    """``read``, ``write`` or ``flush``."""
    drive: int
    lba: int = 0
    count: int = 0
    data: bytes = b""


Below = Callable[[Request], Awaitable[bytes]]


class Interposer(Protocol):
    """A layer. ``perform`` runs in a strand; it may call ``below`` any number of times."""

    async def perform(self, request: Request, below: Below) -> bytes:
        """Return what was read, or nothing; raises BlockError."""

    def status(self) -> dict[str, object]:
        """What it has done so far."""

    def close(self) -> None:
        """It has been removed. ValueError when that cannot be."""

    def end(self) -> None:
        """The machine has ended."""


class Interposed:
    """A ``BlockDevice`` with layers above another one."""

    def __init__(self, drive: int, base: BlockDevice, layers: list[Interposer]) -> None:
        self.drive = drive
        self.base = base
        self.layers = layers
        """Newest last; shared by the drives of a channel."""

    @property
    def sectors(self) -> int:
        """Capacity."""
        return self.base.sectors

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self.base.read_only

    async def read(self, lba: int, count: int) -> bytes:
        """Return sectors."""
        return await self._pass(Request("read", self.drive, lba, count), tuple(self.layers))

    async def write(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        """Write sectors."""
        await self._pass(Request("write", self.drive, lba, len(data) // SECTOR, bytes(data)), tuple(self.layers))

    async def flush(self) -> None:
        """Make what was written stable."""
        await self._pass(Request("flush", self.drive), tuple(self.layers))

    async def _pass(self, request: Request, layers: tuple[Interposer, ...]) -> bytes:
        if layers:
            return await layers[-1].perform(request, lambda again: self._pass(again, layers[:-1]))
        return await perform(self.base, request)


async def perform(disk: BlockDevice, request: Request) -> bytes:
    """Make a request to a disk."""
    if request.op == "read":
        return bytes(await disk.read(request.lba, request.count))
    if request.op == "write":
        await disk.write(request.lba, request.data)
    else:
        await disk.flush()
    return b""


def pause(clock: Clock, ns: int) -> Suspend:
    """Wait for machine time, in a strand."""

    def begin(resume: Resume) -> None:
        clock.timer(lambda: resume(None)).arm(clock.now() + ns)

    return Suspend(begin)
