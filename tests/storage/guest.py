"""A storvsc driver in a few lines, for tests: a bench, a channel whose ring has as much room as a test says, and requests."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from typing import Any
from uuid import UUID

from avmm.devices.block import SECTOR
from avmm.devices.device import Board
from avmm.memory import PAGE, GuestMemory
from avmm.storage import wire
from avmm.storage.controller import ScsiController
from avmm.storage.scsi_disk import ScsiDisk
from avmm.storage.wire import Direction, Operation, ScsiRequest, Version, VstorPacket
from avmm.vmbus.packets import Packet, PacketKind
from avmm.vmbus.ranges import GpaRange, GpaRanges
from tests.devices.bench import Bench, MemoryDisk

BUFFER = 0x10000
SECOND = 1_000_000_000
INSTANCE = UUID("00000000-0000-8899-0000-000000000001")


class FakeChannel:
    """A ``ChannelEnd`` whose ring holds ``room`` packets until :meth:`drain`."""

    channel_id = 7
    open_data = bytes(120)

    def __init__(self, board: Board, room: int = 1 << 30) -> None:
        self.board = board
        self.room = room
        self.on_room: Callable[[], None] | None = None
        self.sent: list[tuple[PacketKind, bytes, int]] = []
        self.is_open = True
        self.failure = ""
        self.limits = (0, 0)

    @property
    def memory(self) -> GuestMemory:
        return self.board.memory

    def can_send(self, length: int) -> bool:
        return self.is_open and len(self.sent) < self.room

    def send(self, kind: PacketKind, payload: bytes, transaction_id: int, *, completion_requested: bool = False) -> bool:
        if not self.can_send(len(payload)):
            return False
        self.sent.append((kind, payload, transaction_id))
        return True

    def limit(self, requests: int, reply_bytes: int) -> None:
        self.limits = (requests, reply_bytes)

    def fail(self, reason: str) -> None:
        self.failure = reason
        self.is_open = False

    def drain(self) -> list[tuple[PacketKind, bytes, int]]:
        """Take everything out of the ring, as the guest does."""
        taken, self.sent = self.sent, []
        if self.on_room is not None:
            self.on_room()
        return taken


class Answer:
    """A completion taken apart."""

    def __init__(self, payload: bytes, data: bytes = b"") -> None:
        packet = VstorPacket.parse(payload)
        request = ScsiRequest.parse(packet.body)
        self.operation, self.nt_status = packet.operation, packet.status
        self.srb, self.scsi, self.moved, self.cdb_field = request.srb_status, request.scsi_status, request.transfer_length, request.cdb
        self.sense = request.cdb if request.srb_status & wire.AUTOSENSE_VALID else b""
        self.data = data[: self.moved]

    @property
    def good(self) -> bool:
        return (self.nt_status, self.srb, self.scsi) == (0, 1, 0)

    @property
    def why(self) -> tuple[int, int, int]:
        """Sense key, ASC, ASCQ."""
        return (self.sense[2] & 0xF, self.sense[12], self.sense[13]) if self.sense else (0, 0, 0)


def ranges(address: int, length: int) -> GpaRanges:
    """Return one range over contiguous guest memory, as a driver makes it."""
    if not length:
        return GpaRanges()
    first = address // PAGE
    return GpaRanges([GpaRange(length, address % PAGE, tuple(range(first, (address + length - 1) // PAGE + 1)))])


class Storvsc(Bench):
    """A guest with a driver that has initialized the controller."""

    def __init__(self, *disks: ScsiDisk, version: int = Version.WIN8_1, room: int = 1 << 30, ram: int = 4 << 20, init: bool = True) -> None:
        super().__init__(ram)
        self.controller = ScsiController(INSTANCE, disks)
        self.channel = FakeChannel(self, room)
        self.version = version
        self.ids = itertools.count(1)
        self.controller.opened(self.channel)
        if init:
            self.initialize()

    def initialize(self) -> None:
        for operation, body in (
            (Operation.BEGIN_INITIALIZATION, b""),
            (Operation.QUERY_PROTOCOL_VERSION, struct.pack("<HH", self.version, 0)),
            (Operation.QUERY_PROPERTIES, b""),
            (Operation.END_INITIALIZATION, b""),
        ):
            assert self.operate(operation, body).status == 0

    def operate(self, operation: int, body: bytes = b"", flags: int = 1, size: int = 64) -> VstorPacket:
        """Send a packet that is answered at once."""
        tid = next(self.ids)
        payload = VstorPacket(operation, 1, 0, body).pack(size)
        self.controller.received(Packet(PacketKind.IN_BAND, flags, tid, payload))
        [answer] = [payload for kind, payload, to in self.channel.drain() if (kind, to) == (PacketKind.COMPLETION, tid)]
        return VstorPacket.parse(answer)

    def post(self, cdb: bytes, direction: int = Direction.NONE, length: int = 0, **more: Any) -> int:
        """Put an SRB into the ring; its data buffer is at ``at`` (BUFFER). Returns the transaction id."""
        tid = next(self.ids)
        at, given, id = more.pop("at", BUFFER), more.pop("given", length), more.pop("id", 0)
        request = ScsiRequest(cdb_length=more.pop("cdb_length", len(cdb)), direction=direction, transfer_length=length, cdb=cdb, **more)
        payload = VstorPacket(Operation.EXECUTE_SRB, 1, 0, request.pack()).pack(wire.packet_size(self.version))
        kind = PacketKind.GPA_DIRECT if given else PacketKind.IN_BAND
        self.controller.received(Packet(kind, 1, tid, payload, ranges(at, given), request_id=id))
        return tid

    def answers(self) -> dict[int, Answer]:
        """Let a second pass and return the completions, in their order."""
        self.pass_time(SECOND)
        return {tid: Answer(payload) for kind, payload, tid in self.channel.drain() if kind is PacketKind.COMPLETION}

    def run(self, cdb: bytes, direction: int = Direction.NONE, length: int = 0, data: bytes = b"", **more: Any) -> Answer:
        """Send one SRB and wait for its end."""
        if data:
            self.memory.write(more.get("at", BUFFER), data)
        tid = self.post(cdb, direction, length or len(data), **more)
        answer = self.answers()[tid]
        if direction == Direction.IN:
            answer.data = self.memory.read(more.get("at", BUFFER), answer.moved)
        return answer

    def inp(self, cdb: bytes, length: int, **more: Any) -> Answer:
        return self.run(cdb, Direction.IN, length, **more)

    def out(self, cdb: bytes, data: bytes, **more: Any) -> Answer:
        return self.run(cdb, Direction.OUT, len(data), data, **more)

    def read_sectors(self, lba: int, count: int, **more: Any) -> Answer:
        return self.inp(read_10(lba, count), count * SECTOR, **more)

    def write_sectors(self, lba: int, data: bytes, **more: Any) -> Answer:
        return self.out(write_10(lba, len(data) // SECTOR), data, **more)


class ThinDisk(MemoryDisk):
    """A medium that hears of unused sectors."""

    async def discard(self, lba: int, count: int) -> None:
        self.log.append(("discard", lba, count))
        self._check(lba, count)


def read_10(lba: int, count: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, count, 0)


def write_10(lba: int, count: int, flags: int = 0) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, flags, lba, 0, count, 0)
