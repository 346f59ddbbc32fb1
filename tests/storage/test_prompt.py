"""Sectors that need no waiting go straight between the guest's memory and the medium, in real time only (M3)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from avmm.clock import WallClock
from avmm.devices.block import SECTOR, BlockError, BlockFault, journey
from avmm.storage import sense, wire
from avmm.storage.scsi_disk import ScsiDisk
from avmm.storage.wire import Direction, Operation, ScsiRequest, VstorPacket
from avmm.vmbus.packets import Packet, PacketKind
from avmm.vmbus.ranges import GpaRange, GpaRanges
from tests.devices.bench import MemoryDisk
from tests.storage.guest import BUFFER, Answer, Storvsc, read_10, write_10


class PromptDisk(MemoryDisk):
    """A medium that can answer at once, if it is ``ready``."""

    def __init__(self, sectors: int) -> None:
        super().__init__(sectors)
        self.ready = True
        self.prompt: list[str] = []
        self.ids: list[int] = []

    def _now(self, op: str, lba: int, count: int, pieces: Sequence[memoryview]) -> bool:
        self.prompt.append(op)
        assert sum(map(len, pieces)) == count * SECTOR
        if lba in self.bad:
            raise BlockError(BlockFault.MEDIUM, lba)
        return self.ready

    def read_now(self, lba: int, count: int, pieces: Sequence[memoryview], id: int = 0) -> bool:
        self.ids.append(id)
        at = lba * SECTOR
        for piece in pieces:
            piece[:] = self.data[at : at + len(piece)]
            at += len(piece)
        return self._now("read", lba, count, pieces)

    def write_now(self, lba: int, count: int, pieces: Sequence[memoryview], id: int = 0) -> bool:
        self.ids.append(id)
        if not self._now("write", lba, count, pieces):
            return False
        self.data[lba * SECTOR : (lba + count) * SECTOR] = b"".join(pieces)
        return True


class RealTime(Storvsc):
    """The same driver where time is the host's."""

    def __init__(self, *disks: ScsiDisk) -> None:
        super().__init__(*disks, init=False)
        self.clock = WallClock()  # type: ignore[assignment]
        self.under_way: list[tuple[Coroutine[Any, Any, Any], Callable[[Any], None]]] = []
        self.controller.opened(self.channel)
        self.initialize()

    def start(self, work: Coroutine[Any, Any, Any], done: Callable[[Any], None], latency: int = 0, *, inline: bool = False) -> None:
        self.under_way.append((work, done))

    def finish(self) -> None:
        """Do what is under way."""
        for work, done in self.under_way:
            with pytest.raises(StopIteration) as ended:
                work.send(None)
            done(ended.value.value)

    def now(self) -> dict[int, Answer]:
        """Return the completions that are there without anything else happening."""
        return {tid: Answer(payload) for _, payload, tid in self.channel.drain()}


def guest() -> tuple[RealTime, PromptDisk]:
    medium = PromptDisk(256)
    medium.data[:] = bytes(i * 7 & 0xFF for i in range(len(medium.data)))
    return RealTime(ScsiDisk(medium)), medium


def test_m3_scattered_pages_are_filled_and_written_before_the_guest_runs_on() -> None:
    driver, medium = guest()
    pages = GpaRanges([GpaRange(5 * 1024, 0xC00, (0x30, 0x11)), GpaRange(3 * 1024, 0x400, (0x52,))])
    for direction, cdb in ((Direction.IN, read_10(8, 16)), (Direction.OUT, write_10(64, 16))):
        request = ScsiRequest(cdb_length=10, direction=direction, transfer_length=8192, cdb=cdb)
        payload = VstorPacket(Operation.EXECUTE_SRB, 1, 0, request.pack()).pack(wire.PACKET_V2_SIZE)
        driver.controller.received(Packet(PacketKind.GPA_DIRECT, 1, 5, payload, pages))
        assert driver.now()[5].good
    expected = medium.data[8 * SECTOR : 24 * SECTOR]
    memory = driver.memory
    assert memory.read(0x30C00, 0x400) + memory.read(0x11000, 0x1000) + memory.read(0x52400, 0xC00) == expected
    assert medium.data[64 * SECTOR : 80 * SECTOR] == expected
    assert medium.prompt == ["read", "write"]
    assert (driver.controller.stats.bytes_read, driver.controller.stats.bytes_written) == (8192, 8192)


def test_the_packets_id_goes_along_whether_the_medium_waits_or_not() -> None:
    driver, medium = guest()
    driver.post(read_10(0, 1), Direction.IN, SECTOR, id=77)
    driver.post(write_10(0, 1), Direction.OUT, SECTOR, id=78)
    assert medium.ids == [77, 78]
    medium.ready = False
    started: list[int] = []

    def start(work: Coroutine[Any, Any, Any], *more: object, **how: object) -> None:
        work.close()
        started.append(journey.get())

    driver.start = start  # type: ignore[method-assign, assignment]
    driver.post(read_10(0, 1), Direction.IN, SECTOR, id=79)
    assert started == [79]
    assert journey.get() != 79


def test_the_processor_hears_of_pages_that_changed() -> None:
    driver, _ = guest()
    told: list[tuple[int, int]] = []
    driver.memory.on_write = lambda address, length: told.append((address, length))
    driver.post(read_10(0, 16), Direction.IN, 8192, at=0x20800)
    assert driver.now()
    assert told == [(0x20800, 8192)]


def test_errors_of_the_medium_are_sense_data() -> None:
    driver, medium = guest()
    medium.bad.add(3)
    for cdb, direction in ((read_10(3, 1), Direction.IN), (write_10(3, 1), Direction.OUT)):
        tid = driver.post(cdb, direction, SECTOR)
        answer = driver.now()[tid]
        assert not answer.good
        assert answer.why[0] == 3, "MEDIUM ERROR"


@pytest.mark.parametrize(
    ("how", "why"),
    [("attention", (6, 0x2A, 9)), ("beyond the end", (5, 0x21, 0)), ("read-only", (7, 0x27, 0)), ("wrong way", (5, 0x24, 0)), ("flush", (0, 0, 0))],
)
def test_what_is_not_plain_is_not_done_at_once(how: str, why: tuple[int, int, int]) -> None:
    driver, medium = guest()
    before = bytes(medium.data)
    direction, cdb = Direction.OUT, write_10(5, 1)
    match how:
        case "attention":
            driver.controller.luns[0, 0, 0].notify(sense.CAPACITY_CHANGED)
        case "beyond the end":
            direction, cdb = Direction.IN, read_10(255, 2)
        case "read-only":
            medium.read_only = True
        case "wrong way":
            cdb = read_10(5, 1)
        case "flush":
            cdb = write_10(5, 1, 8)  # forced unit access
    tid = driver.post(cdb, direction, 1024 if how == "beyond the end" else SECTOR)
    driver.finish()
    answer = driver.now()[tid]
    assert (answer.good, answer.why) == (how == "flush", why)
    assert not medium.prompt
    assert medium.log == ([("write", 5, 1), ("flush", 0, 0)] if how == "flush" else [])
    assert (medium.data == before) == (how != "flush")


@pytest.mark.parametrize("how", ["not ready", "fault injection", "more room than data", "beyond RAM"])
def test_what_has_to_wait_is_awaited(how: str) -> None:
    driver, medium = guest()
    medium.ready = how != "not ready"
    length, at = 512, BUFFER
    if how == "fault injection":
        driver.controller.luns[0, 0, 0].inject = lambda op, lba, count: None
    elif how == "more room than data":
        length = 1024
    elif how == "beyond RAM":
        at = 64 << 20
    reading = driver.post(read_10(7, 1), Direction.IN, length, at=at)
    assert driver.now() == {}
    driver.finish()
    assert driver.now()[reading].good
    assert medium.prompt == (["read"] if how == "not ready" else [])
    if at == BUFFER:
        assert driver.memory.read(at, SECTOR) == medium.data[7 * SECTOR : 8 * SECTOR]


def test_in_virtual_time_nothing_is_there_before_its_time() -> None:
    medium = PromptDisk(256)
    medium.data[:512] = b"d" * 512
    driver = Storvsc(ScsiDisk(medium))
    driver.post(read_10(0, 1), Direction.IN, 512)
    assert driver.memory.read(BUFFER, 512) == bytes(512)
    assert all(answer.good for answer in driver.answers().values())
    assert driver.memory.read(BUFFER, 512) == b"d" * 512
    assert not medium.prompt
