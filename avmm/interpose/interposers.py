"""Interposers: what can be put between an emulated disk and the VMM's driver, under a guest that does not notice.

``trace`` writes every request down, ``fault`` makes requests fail, come late or be torn by rules, ``limit`` is a token bucket,
``mirror`` copies the disk to a second one and can switch over to it, and :class:`SharedDisk` lets somebody else read along.

The invariant: a request passes the layers from the newest to the oldest, exactly once each, unless one of them ends it; layers may be
added and removed while requests are under way, which end in the layers that they began in.
"""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from avmm.clock import MICROSECOND, SECOND, Clock
from avmm.devices.block import SECTOR, BlockDevice, BlockError, BlockFault
from avmm.devices.device import Board
from avmm.interpose.strand import Resume, Strand, Suspend


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

    def close(self) -> None:
        """It has been removed."""


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


class TraceLayer:
    """Writes each request to a file, one JSON object a line: when it came, what it was, how long it took and how it ended."""

    def __init__(self, clock: Clock, path: str | Path) -> None:
        self._clock = clock
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by close()
        self.requests = 0

    async def perform(self, request: Request, below: Below) -> bytes:
        """Pass it on and write it down."""
        begin, error, data = self._clock.now(), "", b""
        try:
            data = await below(request)
            return data
        except BlockError as failure:
            error = failure.fault.name
            raise
        finally:
            self.requests += 1
            line = {
                "t": begin, "op": request.op, "drive": request.drive, "lba": request.lba, "count": request.count,
                "ns": self._clock.now() - begin, "crc32": zlib.crc32(request.data or data), "error": error,
            }  # fmt: skip
            if not self._file.closed:
                self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """End the file."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class Rule:
    """What goes wrong, and for which requests."""

    action: str
    """``error``; ``delay``, by ``seconds``; ``torn``: the first half of a write is done, then it fails."""
    op: str = ""
    """``read``, ``write`` or ``flush``; empty for all."""
    first: int = 0
    last: int = (1 << 48) - 1
    probability: float = 1.0
    times: int = 0
    """How often at most; 0 for no limit."""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.action not in ("error", "delay", "torn"):
            raise ValueError(f"there is no fault {self.action!r}: choose error, delay or torn")

    def concerns(self, request: Request) -> bool:
        """Whether the rule is about this request."""
        if self.op and self.op != request.op:
            return False
        return request.lba <= self.last and request.lba + max(request.count, 1) > self.first


class FaultLayer:
    """Makes requests fail by rules; the same seed fails the same requests."""

    def __init__(self, clock: Clock, rules: list[Rule], seed: int = 0) -> None:
        self._clock = clock
        self._rules = rules
        self._random = random.Random(seed)
        self.hits = [0] * len(rules)

    async def perform(self, request: Request, below: Below) -> bytes:
        """Pass it on, late or not at all."""
        for number, rule in enumerate(self._rules):
            if not rule.concerns(request) or (rule.times and self.hits[number] >= rule.times):
                continue
            if rule.probability < 1 and self._random.random() >= rule.probability:
                continue
            self.hits[number] += 1
            if rule.action == "delay":
                await pause(self._clock, int(rule.seconds * SECOND))
                continue
            bad = max(request.lba, rule.first)
            if rule.action == "torn" and request.op == "write":
                half = request.count // 2
                bad = request.lba + half
                if half:
                    await below(Request("write", request.drive, request.lba, half, request.data[: half * SECTOR]))
            raise BlockError(BlockFault.MEDIUM, bad)
        return await below(request)

    def close(self) -> None:
        """Nothing is kept."""


class LimitLayer:
    """A token bucket in machine time for bytes, and one for requests."""

    def __init__(self, clock: Clock, bytes_per_s: float = 0, requests_per_s: float = 0, burst: float = 0.01) -> None:
        if bytes_per_s < 0 or requests_per_s < 0 or burst <= 0 or not (bytes_per_s or requests_per_s):
            raise ValueError("a limit needs bytes or requests per second, and a burst of more than no seconds")
        self._clock = clock
        self._rates = bytes_per_s, requests_per_s
        self._burst = int(burst * SECOND)
        self._free_at = [0, 0]
        """When the bucket would be full again."""
        self.waited = 0
        """Machine time that requests waited, ns."""

    async def perform(self, request: Request, below: Below) -> bytes:
        """Pass it on when it may."""
        now = self._clock.now()
        wait = 0
        for i, amount in enumerate((request.count * SECTOR, 1)):
            if self._rates[i]:
                self._free_at[i] = max(self._free_at[i], now) + int(amount * SECOND / self._rates[i])
                wait = max(wait, self._free_at[i] - self._burst - now)
        if wait > 0:
            self.waited += wait
            await pause(self._clock, wait)
        return await below(request)

    def close(self) -> None:
        """Nothing is kept."""


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
        self.on_copied: Callable[[], None] = _nothing
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
            await self._outside(request)
        finally:
            self._release()
        return b""

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

    def close(self) -> None:
        """Stop copying."""
        if self.switched_over:
            raise ValueError("the guest's data are on the mirror only: it cannot be removed any more")
        self._closed = True


class SharedDisk:
    """A read-only ``BlockDevice`` for others than the guest, for instance another machine: reads what the guest's disk holds now."""

    read_only = True

    def __init__(self, disk: BlockDevice) -> None:
        self._disk = disk

    @property
    def sectors(self) -> int:
        """Capacity."""
        return self._disk.sectors

    async def read(self, lba: int, count: int) -> bytes:
        """Return sectors; the guest's requests and ours take turns at the driver."""
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(result: Any) -> None:
            if ended.done():
                return
            if isinstance(result, BaseException):
                ended.set_exception(result)
            else:
                ended.set_result(result)

        Strand(perform(self._disk, Request("read", 0, lba, count)), done)
        return bytes(await ended)

    async def write(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        """Refuse."""
        raise BlockError(BlockFault.READ_ONLY, lba)

    async def flush(self) -> None:
        """Nothing to do."""


def _nothing() -> None:
    pass
