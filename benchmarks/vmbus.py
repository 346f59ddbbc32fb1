"""A storage request over VMBus as VM-H sees it: from the write into the ring to the interrupt for its completion, without a guest.

Everything is the machine's own (worker, channel, controller, disk, file) but the guest and the board's clock wheel.
"""

from __future__ import annotations

import asyncio
import statistics
import struct
import tempfile
from pathlib import Path
from time import perf_counter_ns
from typing import cast
from uuid import UUID

import uvloop

from avmm.clock import WallClock
from avmm.devices.device import Board
from avmm.host.virtualization_driver import Disk
from avmm.hypervisor.work import Work
from avmm.memory import PAGE, GuestMemory
from avmm.storage import wire
from avmm.storage.controller import ScsiController
from avmm.storage.scsi_disk import ScsiDisk
from avmm.storage.wire import Direction, Operation, ScsiRequest, Version, VstorPacket
from avmm.vmbus.channel import Channel, OpenRequest
from avmm.vmbus.packets import PacketKind, pack_packet
from avmm.vmbus.ranges import GpaRange
from avmm.vmbus.ring import Incoming, Outgoing, RingMemory
from avmm.vmbus.worker import Worker
from benchmarks.measure import Result, median_of

REQUESTS = 2000
SIZE = 4096
RING = 16  # pages of data
MEGABYTES = 8


class _Board:
    """What a channel and a controller need of a machine in real time."""

    def __init__(self) -> None:
        self.clock = WallClock()
        self.memory = GuestMemory(memoryview(bytearray(4 << 20)))
        self.name = "bench"
        self.start = Work("bench", self.clock, lambda busy: None, self._failed).start

    def _failed(self, error: Exception) -> None:
        raise error

    def trace(self, event: str, **fields: object) -> None:
        """A trace of such a machine would be a failure."""
        raise AssertionError((event, fields))


class _Guest:
    """A driver that has the channel open and keeps ``depth`` reads in it."""

    def __init__(self, disk: Disk) -> None:
        self.board = _Board()
        memory = self.board.memory
        pages = tuple(range(16, 16 + 2 * (RING + 1)))
        down = RING + 1
        self.out, self.into = Outgoing(RingMemory(memory, pages[:down])), Incoming(RingMemory(memory, pages[down:]))
        controller = ScsiController(UUID(int=1), [ScsiDisk(disk)])
        self.worker = Worker("vmbus:bench", self.board.clock, self._failed)
        self.interrupted = asyncio.Event()
        self.channel = Channel(
            cast("Board", self.board), controller, OpenRequest(1, pages, down),
            interrupt=self._interrupt, again=self.worker.ring, ended=self._ended,
        )  # fmt: skip
        controller.opened(self.channel)
        self.worker.start(self.channel.service)

    def _failed(self, error: Exception) -> None:
        raise error

    def _ended(self, reason: str) -> None:
        raise AssertionError(reason)

    def _interrupt(self) -> None:
        self.interrupted.set()

    def _send(self, packets: list[bytes]) -> None:
        """Write them all, then signal, as the ring's rule says: once, if it was empty before."""
        signals = [self.out.write(packet) for packet in packets]
        if any(signals):
            self.worker.attend()

    async def _receive(self, count: int) -> int:
        """Take ``count`` completions and return when the guest could take the interrupt for the last of them."""
        last = 0
        while count:
            await self.interrupted.wait()
            last = perf_counter_ns()
            self.interrupted.clear()
            while (raw := self.into.take()) is not None:
                count -= 1
                assert raw[16 + 8 : 16 + 12] == bytes(4), raw.hex()
            self.into.commit()
        return last

    async def initialize(self) -> None:
        """Bring the controller to where it takes requests."""
        for operation, body in (
            (Operation.BEGIN_INITIALIZATION, b""),
            (Operation.QUERY_PROTOCOL_VERSION, struct.pack("<HH", Version.WIN10, 0)),
            (Operation.QUERY_PROPERTIES, b""),
            (Operation.END_INITIALIZATION, b""),
        ):
            self._send([pack_packet(PacketKind.IN_BAND, VstorPacket(operation, 1, 0, body).pack(64), 1, flags=1)])
            await self._receive(1)

    async def reads(self, requests: int, depth: int) -> float:
        """Return us per request: written to the ring ``depth`` at a time, until the interrupt that tells of the last.

        The median of all times: the mean would tell what else the host had to do.
        """
        spent = []
        packets = []
        for i in range(depth):
            cdb = struct.pack(">BBIBHB", 0x28, 0, i * 8 * 16, 0, SIZE // 512, 0)
            request = ScsiRequest(cdb_length=10, direction=Direction.IN, transfer_length=SIZE, cdb=cdb)
            payload = VstorPacket(Operation.EXECUTE_SRB, 1, 0, request.pack()).pack(wire.PACKET_V2_SIZE)
            ranges = [GpaRange(SIZE, 0, (256 + i,))]
            packets.append(pack_packet(PacketKind.GPA_DIRECT, payload, i + 2, flags=1, ranges=ranges))
        for _ in range(requests // depth):
            begin = perf_counter_ns()
            self._send(packets)
            spent.append(await self._receive(depth) - begin)
        return statistics.median(spent) / depth / 1000

    async def close(self) -> None:
        """End the worker."""
        self.channel.close()
        self.worker.close()


async def measure(depth: int, requests: int = REQUESTS) -> float:
    """Return us per 4 KiB read from the page cache."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "disk.img"
        image.write_bytes(bytes(range(256)) * (MEGABYTES << 12))
        async with await Disk.open(image, "ro") as disk:
            guest = _Guest(disk)
            await guest.initialize()
            await guest.reads(requests // 4, depth)
            assert guest.board.memory.read(256 * PAGE, 512) == bytes(range(256)) * 2
            spent = await guest.reads(requests, depth)
            await guest.close()
    return spent


def run(runs: int) -> list[Result]:
    """Measure one request alone, and eight that are written before one signal."""
    return [
        median_of(
            f"4 KiB over VMBus, ring to interrupt, {depth} at a time", "us", [uvloop.run(measure(depth)) for _ in range(runs)], limit=limit
        )
        for depth, limit in ((1, 40.0), (8, 15.0))
    ]
