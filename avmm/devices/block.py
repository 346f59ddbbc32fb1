"""What a storage device model, a BIOS service or a StorVSP server needs from VM-H: a block device of 512-byte sectors."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Protocol, runtime_checkable

SECTOR = 512
journey: ContextVar[int] = ContextVar("avmm_journey", default=0)
"""The id of the access or packet being served. Work that a device starts inherits it, so its requests to the medium carry that id."""


class BlockFault(enum.Enum):
    """What went wrong with a block request, in the terms that a register or sense model needs."""

    RANGE = "beyond the end of the medium"
    MEDIUM = "the medium failed"
    READ_ONLY = "the medium is read-only"
    NO_MEDIUM = "no medium"


class BlockError(Exception):
    """A block request failed; ``lba`` is the first sector that did."""

    def __init__(self, fault: BlockFault, lba: int = 0, detail: str = "") -> None:
        super().__init__(detail or f"sector {lba}: {fault.value}")
        self.fault = fault
        self.lba = lba


class BlockDevice(Protocol):
    """Sectors that can be read and written. Requests may be in flight together; each raises BlockError or completes whole."""

    @property
    def sectors(self) -> int:
        """Capacity in 512-byte sectors; 0 with no medium."""

    @property
    def read_only(self) -> bool:
        """Whether writes are refused with BlockFault.READ_ONLY."""

    async def read(self, lba: int, count: int) -> bytes | bytearray:
        """Return ``count`` sectors from ``lba``; a new buffer that the caller may keep."""

    async def write(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        """Write whole sectors from ``lba``; the data are taken before this first suspends."""

    async def flush(self) -> None:
        """Return when everything written before is on stable storage."""


@runtime_checkable
class PromptDevice(Protocol):
    """A BlockDevice that moves sectors straight between the medium and a guest's memory, where that needs no waiting.

    ``pieces`` are as long as the sectors together. True: done. False: it would have had to wait, ask again by the awaited form;
    what a read has left in the pieces by then means nothing. The pieces are not kept: a guest may do with its memory what it
    likes as soon as it runs again.
    """

    def read_now(self, lba: int, count: int, pieces: Sequence[memoryview], id: int = 0) -> bool:
        """Read ``count`` sectors from ``lba`` into ``pieces``. Raises BlockError. ``id`` names the request's journey in traces."""

    def write_now(self, lba: int, count: int, pieces: Sequence[memoryview], id: int = 0) -> bool:
        """Write ``pieces`` to ``count`` sectors from ``lba``. Raises BlockError."""


@runtime_checkable
class Trimmable(Protocol):
    """A BlockDevice that wants to know which sectors are no longer used."""

    async def discard(self, lba: int, count: int) -> None:
        """Take note that the sectors' contents no longer matter."""
