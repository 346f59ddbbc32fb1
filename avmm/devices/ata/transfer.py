"""One command's data on their way between the medium and the host, and the request that is with the medium.

No protocol here: :class:`Transfer` says which sectors are in the buffer and which part of it is the current DRQ block;
:class:`Pending` says what was asked of the medium and when its answer is due, so that it can be asked again after a
restore. Data of a DMA command that go straight between a prompt medium and memory are never in the buffer.

The invariant: the sectors of a command are [done][buffer][remaining], in that order and without gaps.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Protocol

from mypy_extensions import mypyc_attr

from avmm.clock import MICROSECOND
from avmm.devices.ata.drive import CD_RATIO
from avmm.devices.ata.registers import CHS, IDLE, Address, Phase
from avmm.devices.block import SECTOR, BlockDevice, BlockError
from avmm.memory import Segment

CHUNK: Final = 128 * 1024 // SECTOR
"""Sectors in one request to the medium, at most."""
AT_ONCE: Final = 1024 * 1024 // SECTOR
"""Sectors that are moved in the middle of one guest access, at most: 1 MiB from the page cache takes 50 us."""
BEFORE_MEDIUM: Final = -1
"""Where a sector is that is the drive's own: behind it comes sector 0, so none was passed whose address would be reported."""
COMMAND_TIME: Final = 20 * MICROSECOND
"""Machine time that any request to the medium takes in virtual time ..."""
SECTOR_TIME: Final = 1 * MICROSECOND
"""... and what each of its sectors adds."""


class Work(enum.Enum):
    """What can be asked of the medium."""

    READ = "read"
    VERIFY = "read and discard"
    WRITE = "write the buffer"
    FLUSH = "flush"


@dataclass(frozen=True, slots=True)
@mypyc_attr(native_class=False)
class Pending:
    """A request that is with the medium; the data of a write are the transfer's buffer."""

    work: Work
    lba: int
    count: int
    due: int
    """Machine time (ns) at which it completes in virtual time."""


class Transfer:
    """The data phase of one command."""

    __slots__ = ("address", "block", "buffer", "end", "flow", "lba", "pad", "remaining", "start")

    def __init__(
        self,
        flow: Phase = IDLE,
        address: Address = CHS,
        lba: int = 0,
        remaining: int = 0,
        block: int = SECTOR,
        *,
        buffer: bytes | bytearray = b"",
        start: int = 0,
        end: int = 0,
        pad: int = 0,
    ) -> None:
        self.flow = flow
        """DATA_IN, DATA_OUT, DMA_IN, DMA_OUT or PACKET; IDLE for commands without data for the host."""
        self.address = address
        self.lba = lba
        """512-byte sector at the buffer's first byte."""
        self.remaining = remaining
        """Sectors behind the buffer."""
        self.block = block
        """Bytes per DRQ block."""
        self.buffer = buffer
        self.start = start
        """Where the current DRQ block starts; for DMA, how far the bus master got."""
        self.end = end
        self.pad = pad
        """1 when the last byte of the buffer only fills up the last word."""

    @property
    def next_lba(self) -> int:
        """The first sector behind the buffer."""
        return self.lba + len(self.buffer) // SECTOR

    @property
    def grain(self) -> int:
        """Sectors that can only be delivered together."""
        if self.address is Address.PACKET:
            return CD_RATIO
        return self.block // SECTOR if self.flow is Phase.DATA_IN else 1


class Stretch:
    """The memory that a bus master moves the next bytes to or from, by a copy of its table, and where it stands behind them."""

    __slots__ = ("address", "entry", "last", "left", "segments")

    def __init__(self, segments: list[Segment], entry: int, address: int, left: int, last: bool) -> None:
        self.segments = segments
        self.entry = entry
        self.address = address
        self.left = left
        self.last = last


class DmaEngine(Protocol):
    """A bus master as a channel sees it."""

    def store(self, data: memoryview) -> int:
        """Move bytes from the drive to memory; return how many it took: 0 when it is not started that way."""

    def fetch(self, count: int) -> bytes:
        """Return up to ``count`` bytes from memory for the drive; none when it is not started that way."""

    def runs(self, *, to_memory: bool) -> bool:
        """Whether it is started that way."""

    def ahead(self, count: int) -> Stretch | None:
        """Return where the next ``count`` bytes lie; None when the table does not say it of all of them, or not in a few words."""

    def passed(self, stretch: Stretch) -> None:
        """Its bytes have been moved, by someone else."""

    def interrupt(self) -> None:
        """INTRQ rose."""


class NoEngine:
    """A cable with no bus master on its other end."""

    def store(self, data: memoryview) -> int:
        """Take nothing."""
        return 0

    def fetch(self, count: int) -> bytes:
        """Give nothing."""
        return b""

    def runs(self, *, to_memory: bool) -> bool:
        """Never."""
        return False

    def ahead(self, count: int) -> Stretch | None:
        """Know no memory."""
        return None

    def passed(self, stretch: Stretch) -> None:
        """There is no such stretch."""

    def interrupt(self) -> None:
        """Nobody latches it."""


async def read_good(disk: BlockDevice, lba: int, count: int, grain: int) -> bytes | bytearray:
    """Read ``count`` sectors; when one fails, those before it in whole grains, so that the next request starts with the bad grain."""
    try:
        return await disk.read(lba, count)
    except BlockError as error:
        good = (error.lba - lba) // grain * grain
        if not 0 < good < count:
            raise
    return await disk.read(lba, good)


async def write_good(disk: BlockDevice, lba: int, data: bytes | bytearray) -> None:
    """Write all of ``data``; when a sector fails, those before it are written and the error is raised."""
    try:
        await disk.write(lba, data)
    except BlockError as error:
        failed = error
    else:
        return
    good = (failed.lba - lba) * SECTOR
    if 0 < good < len(data):
        await disk.write(lba, memoryview(data)[:good])
    raise failed
