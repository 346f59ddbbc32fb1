"""VM-H's storage stack, from the virtualization driver to the file (MISSION M1)."""
# ruff: noqa: ASYNC240 - a test may block its own loop

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from avmm.devices.block import BlockDevice, BlockError, BlockFault, PromptDevice, journey
from avmm.host import backing
from avmm.host.class_driver import LARGEST, ClassDriver
from avmm.host.port_driver import PortDriver
from avmm.host.requests import Op, Stage, StageEnded, StorageRequest, StorageStage
from avmm.host.virtualization_driver import Disk
from tests.host.leaks import nothing_left

SECTOR = 512


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(5 << 20))
    return path


class Bottom(StorageStage):
    """A stage that only collects what reaches it."""

    def __init__(self) -> None:
        super().__init__("bottom")
        self.got: list[StorageRequest] = []

    async def perform(self, item: StorageRequest) -> None:
        self.got.append(item)

    def start_all(self, *stages: StorageStage) -> None:
        for stage in (self, *stages):
            stage.start()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def request(op: Op, lba: int = 0, count: int = 1, done: Callable[[StorageRequest], None] | None = None) -> StorageRequest:
    made = StorageRequest(1, op, lba, count, bytes(count * SECTOR) if op is Op.WRITE else b"")
    if done is not None:
        made.on_finish(done)
    return made


@pytest.mark.asyncio
async def test_m1_a_disk_reads_and_writes_through_every_stage(image: Path) -> None:
    before = image.read_bytes()
    with nothing_left():
        async with await Disk.open(image, name="hd0") as disk:
            device: BlockDevice = disk
            assert (device.sectors, device.read_only) == (10240, False)
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert names >= {"virtualization:hd0", "class:hd0", "port:hd0", "file:hd0"}
            seen: list[StorageRequest] = []
            disk.watch(seen.append)
            assert await device.read(7, 3) == before[7 * SECTOR : 10 * SECTOR]
            hops = seen[0].hops
            assert hops is not None
            assert [name for name, _ in hops] == ["virtualization:hd0", "class:hd0", "port:hd0", "file:hd0", "done"]
            times = [ns for _, ns in hops]
            assert times == sorted(times)
            data = bytearray(b"n" * SECTOR)
            writing = asyncio.ensure_future(device.write(8, data))
            await asyncio.sleep(0)
            data[:] = bytes(SECTOR)  # the disk has taken the data already
            await writing
            await device.flush()
            await disk.discard(16, 8)
            assert await device.read(8, 1) == b"n" * SECTOR
            assert await device.read(8, 0) == b""
            stats = disk.stats
            assert (stats.requests, stats.bytes_read, stats.bytes_written, stats.flushes, stats.errors) == (6, 4 * SECTOR, SECTOR, 1, 0)
            assert stats.latency > 0
    assert image.read_bytes() == before[: 8 * SECTOR] + b"n" * SECTOR + before[9 * SECTOR : 16 * SECTOR] + bytes(4096) + before[24 * SECTOR :]


@pytest.mark.asyncio
async def test_requests_carry_the_id_of_their_journey(image: Path) -> None:
    async with await Disk.open(image) as disk:
        seen: list[int] = []
        disk.watch(lambda request: seen.append(request.id))
        await disk.read(0, 1, id=77)
        token = journey.set(4711)
        await asyncio.create_task(disk.flush())
        journey.reset(token)
        await disk.read(0, 1)
        assert seen[:2] == [77, 4711]
        assert seen[2] not in (0, 77, 4711)


@pytest.mark.asyncio
async def test_m1_a_prompt_request_passes_every_stage_in_one_call(image: Path) -> None:
    before = image.read_bytes()
    async with await Disk.open(image, name="hd0") as disk:
        await asyncio.sleep(0)
        device: PromptDevice = disk
        buffer = bytearray(3 * SECTOR)
        pieces = [memoryview(buffer)[:100], memoryview(buffer)[100:]]
        seen: list[StorageRequest] = []
        disk.watch(seen.append)
        token = journey.set(4711)
        assert device.read_now(7, 3, pieces)
        journey.reset(token)
        assert device.read_now(7, 3, pieces, id=77)
        assert buffer == before[7 * SECTOR : 10 * SECTOR]
        assert [one.id for one in seen] == [4711, 77]
        assert [name for name, _ in seen[0].hops or ()] == ["virtualization:hd0", "class:hd0", "port:hd0", "file:hd0", "done"]
        with pytest.raises(BlockError):
            device.read_now(10239, 3, pieces)
        assert isinstance(seen[2].error, BlockError)
        disk.watch(None)
        assert device.write_now(20, 3, pieces)
        assert await disk.read(20, 3) == buffer
        assert (disk.stats.requests, disk.stats.bytes_read, disk.stats.bytes_written) == (5, 9 * SECTOR, 3 * SECTOR)
        with pytest.raises(BlockError) as caught:
            device.read_now(10239, 3, pieces)
        assert (caught.value.fault, caught.value.lba, disk.stats.errors) == (BlockFault.RANGE, 10240, 2)
        assert not device.read_now(0, 2 * LARGEST, [memoryview(bytearray(2 * LARGEST * SECTOR))])
        assert disk.stats.requests == 6, "what was not done is not counted"
    assert not device.read_now(0, 3, pieces), "closed"


@pytest.mark.asyncio
async def test_a_prompt_request_does_not_overtake(image: Path) -> None:
    async with await Disk.open(image) as disk:
        pieces = [memoryview(bytearray(SECTOR))]
        for other in (disk.flush(), disk.write(5, bytes(backing.WRITE_NOW + SECTOR))):
            assert disk.write_now(5, 1, pieces)
            under_way = asyncio.create_task(other)
            await asyncio.sleep(0)
            assert not under_way.done()
            assert not disk.read_now(5, 1, pieces)
            assert not disk.write_now(5, 1, pieces)
            await under_way
        assert disk.read_now(5, 1, pieces)


@pytest.mark.asyncio
@pytest.mark.parametrize("op", ["read", "write", "discard"])
async def test_range_and_read_only(image: Path, op: str) -> None:
    async def go(disk: Disk, lba: int, count: int) -> None:
        if op == "read":
            await disk.read(lba, count)
        elif op == "write":
            await disk.write(lba, bytes(count * SECTOR))
        else:
            await disk.discard(lba, count)

    async with await Disk.open(image) as disk:
        for lba, count, first in [(10240, 1, 10240), (10239, 2, 10240), (99999, 1, 99999), (-1, 1, -1)]:
            with pytest.raises(BlockError) as caught:
                await go(disk, lba, count)
            assert (caught.value.fault, caught.value.lba) == (BlockFault.RANGE, first)
        assert disk.stats.errors == 4
        with pytest.raises(ValueError, match="not whole sectors"):
            await disk.write(0, b"x")
    async with await Disk.open(image, "ro") as disk:
        assert disk.read_only
        if op == "read":
            await go(disk, 0, 1)
        else:
            with pytest.raises(BlockError) as caught:
                await go(disk, 3, 1)
            assert (caught.value.fault, caught.value.lba) == (BlockFault.READ_ONLY, 3)


@pytest.mark.asyncio
async def test_large_requests_are_split(image: Path) -> None:
    before = image.read_bytes()
    async with await Disk.open(image) as disk:
        seen: list[StorageRequest] = []
        disk.watch(seen.append)
        assert await disk.read(1, 10239) == before[SECTOR:]
        assert [name for name, _ in seen[0].hops or ()].count("port:disk") == 5
        data = random.Random(2).randbytes(3 * LARGEST * SECTOR)
        await disk.write(5, data)
        assert await disk.read(5, 3 * LARGEST) == data
        assert disk.stats.requests == 3
    assert image.read_bytes()[5 * SECTOR :][: len(data)] == data


@pytest.mark.asyncio
async def test_the_class_driver_splits_at_1_mib_and_reports_the_lowest_error() -> None:
    bottom = Bottom()
    driver = ClassDriver("t", bottom, 1 << 20, read_only=False)
    bottom.start_all(driver)
    whole = request(Op.READ, 10, 2 * LARGEST + 5)
    await driver.put(whole)
    await settle()
    parts = [(part.id, part.lba, part.count) for part in bottom.got]
    assert parts == [(1, 10, LARGEST), (1, 10 + LARGEST, LARGEST), (1, 10 + 2 * LARGEST, 5)]
    bottom.got[2].finish(error=BlockError(BlockFault.MEDIUM, 10 + 2 * LARGEST))
    bottom.got[1].finish(error=BlockError(BlockFault.MEDIUM, 10 + LARGEST))
    finished = [whole.finished]
    bottom.got[0].finish(bytearray(LARGEST * SECTOR))
    assert [*finished, whole.finished] == [False, True]
    assert isinstance(whole.error, BlockError)
    assert whole.error.lba == 10 + LARGEST
    await driver.stop()
    await bottom.stop()


@pytest.mark.asyncio
async def test_a_flush_waits_for_the_writes_given_before() -> None:
    bottom = Bottom()
    driver = ClassDriver("t", bottom, 1 << 20, read_only=False)
    bottom.start_all(driver)
    for op in (Op.WRITE, Op.WRITE, Op.READ, Op.FLUSH, Op.READ):
        await driver.put(request(op))
    await settle()
    assert [item.op for item in bottom.got] == [Op.WRITE, Op.WRITE, Op.READ]
    bottom.got[1].finish()
    await settle()
    assert len(bottom.got) == 3
    bottom.got[0].finish(error=BlockError(BlockFault.MEDIUM))  # finished is finished, failed or not
    await settle()
    assert [item.op for item in bottom.got[3:]] == [Op.FLUSH, Op.READ]
    await driver.stop()
    await bottom.stop()


@pytest.mark.asyncio
async def test_the_port_driver_keeps_32_in_flight_in_any_order() -> None:
    bottom = Bottom()
    port = PortDriver("t", bottom)
    bottom.start_all(port)
    finished: list[int] = []
    for lba in range(40):
        await port.put(request(Op.READ, lba, done=lambda item: finished.append(item.lba)))
    await settle()
    assert len(bottom.got) == len(port.in_flight) == 32
    bottom.got[31].finish()
    bottom.got[3].finish()
    assert finished == [31, 3]
    await settle()
    assert len(bottom.got) == 34
    await port.stop()
    await bottom.stop()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("first", "second", "waits"),
    [
        ((Op.WRITE, 4, 4), (Op.READ, 7, 1), True),
        ((Op.READ, 4, 4), (Op.WRITE, 0, 5), True),
        ((Op.WRITE, 4, 4), (Op.WRITE, 4, 4), True),
        ((Op.WRITE, 4, 4), (Op.WRITE, 8, 4), False),
        ((Op.READ, 4, 4), (Op.READ, 4, 4), False),
    ],
)
async def test_overlapping_requests_keep_their_order(first: tuple[Op, int, int], second: tuple[Op, int, int], waits: bool) -> None:
    bottom = Bottom()
    port = PortDriver("t", bottom)
    bottom.start_all(port)
    await port.put(request(*first))
    await port.put(request(*second))
    await settle()
    assert len(bottom.got) == (1 if waits else 2)
    bottom.got[0].finish()
    await settle()
    assert len(bottom.got) == 2
    await port.stop()
    await bottom.stop()


@pytest.mark.asyncio
async def test_requests_in_flight_together_complete_out_of_order(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        held.wait()
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    async with await Disk.open(image) as disk:
        await disk.write(0, b"1" * SECTOR)
        flush = asyncio.create_task(disk.flush())
        assert await disk.read(0, 1) == b"1" * SECTOR  # while the flush is under way
        assert not flush.done()
        held.set()
        await flush


@pytest.mark.asyncio
async def test_random_concurrent_requests(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backing, "WRITE_NOW", 8 * SECTOR)  # both ways, mixed
    chance = random.Random(3)
    model = bytearray(image.read_bytes())
    async with await Disk.open(image) as disk:

        async def check(lba: int, count: int, expected: bytes) -> None:
            assert await disk.read(lba, count) == expected

        for _ in range(10):
            jobs = []
            for _ in range(40):  # each task's request enters in the order of making: the model may assume just that
                lba, count = chance.randrange(100), chance.randrange(1, 20)
                place = slice(lba * SECTOR, (lba + count) * SECTOR)
                if chance.random() < 0.5:
                    model[place] = chance.randbytes(count * SECTOR)
                    jobs.append(asyncio.create_task(disk.write(lba, bytes(model[place]))))
                else:
                    jobs.append(asyncio.create_task(check(lba, count, bytes(model[place]))))
            await asyncio.gather(*jobs)
            await disk.flush()
    assert image.read_bytes() == model


@pytest.mark.asyncio
async def test_a_cancelled_caller_does_not_take_its_write_back(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backing, "WRITE_NOW", 0)
    with nothing_left():
        disk = await Disk.open(image)
        for value in (b"1", b"2"):
            writer = asyncio.create_task(disk.write(0, value * SECTOR))
            await asyncio.sleep(0)
            writer.cancel()
            await asyncio.wait({writer})
        late = asyncio.create_task(disk.write(1, b"3" * SECTOR))
        await asyncio.sleep(0)
        await disk.close()  # all three are still on their way
        await late
        with pytest.raises(BlockError) as caught:
            await disk.read(0, 1)
    assert caught.value.fault is BlockFault.NO_MEDIUM
    assert image.read_bytes()[: 2 * SECTOR] == b"2" * SECTOR + b"3" * SECTOR


@pytest.mark.asyncio
@pytest.mark.parametrize("victim", ["virtualization:disk", "class:disk", "port:disk", "file:disk"])
async def test_a_cancelled_stage_loses_no_request(image: Path, victim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    real = backing.BackingFile._read_blocking
    monkeypatch.setattr(backing, "READ_NOW", 0)
    monkeypatch.setattr(backing.BackingFile, "_read_blocking", lambda *arguments: held.wait() and real(*arguments))
    with nothing_left():
        disk = await Disk.open(image)
        # More than the device has at once and an inbox holds, so each stage has some.
        jobs = [asyncio.create_task(disk.read(lba, 1)) for lba in range(200)]
        await settle()
        asyncio.get_running_loop().call_soon(held.set)
        next(task for task in asyncio.all_tasks() if task.get_name() == victim).cancel()
        answers = await asyncio.gather(*jobs, return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        assert errors
        assert all(isinstance(error, BlockError) and error.fault is BlockFault.NO_MEDIUM for error in errors)
        assert victim in str(errors[0])
        with pytest.raises(BlockError):
            await disk.read(0, 1)
        await disk.close()


@pytest.mark.asyncio
async def test_a_host_error_reaches_the_caller_and_nothing_else(image: Path) -> None:
    async with await Disk.open(image) as disk:
        os.truncate(image, SECTOR)
        with pytest.raises(BlockError) as caught:
            await disk.read(100, 1)
        assert (caught.value.fault, caught.value.lba) == (BlockFault.MEDIUM, 100)
        await disk.read(0, 1)
        assert (disk.stats.requests, disk.stats.errors) == (2, 1)


class Echo(Stage[str]):
    """A stage that notes what it performed and rejected."""

    def __init__(self, limit: int) -> None:
        super().__init__("echo", limit)
        self.log: list[str] = []
        self.gate = asyncio.Event()

    async def perform(self, item: str) -> None:
        if item == "bug":
            raise KeyError(item)
        await self.gate.wait()
        self.log.append(item)

    def reject(self, item: str, error: Exception) -> None:
        self.log.append(f"{item}: {type(error).__name__}")


@pytest.mark.asyncio
async def test_a_stage_is_bounded_and_answers_everything() -> None:
    with nothing_left():
        stage = Echo(2)
        stage.start()
        await stage.put("bug")
        await settle()
        assert stage.log == ["bug: KeyError"]
        await stage.put("a")
        await settle()
        assert [stage.offer("b"), stage.offer("c"), stage.offer("d")] == [True, True, False]
        late = asyncio.create_task(stage.put("e"))
        await settle()
        assert not late.done()
        await stage.stop()
        await late
        await stage.put("f")
        assert stage.offer("g")
    assert stage.log[1:] == [f"{item}: {StageEnded.__name__}" for item in "abcefg"]


@pytest.mark.asyncio
async def test_a_stage_cancelled_before_its_first_step_answers_too() -> None:
    stage = Echo(2)
    stage.start()
    assert stage.offer("a")
    await stage.stop()
    assert stage.log == ["a: StageEnded"]


class Gated(StorageStage):
    """A stage that notes what it began and in which task it went on."""

    def __init__(self) -> None:
        super().__init__("gated")
        self.log: list[tuple[int, str]] = []
        self.gate = asyncio.Event()

    async def perform(self, item: StorageRequest) -> None:
        self.log.append((item.lba, "began"))
        await self.gate.wait()
        task = asyncio.current_task()
        self.log.append((item.lba, task.get_name() if task is not None else ""))
        item.finish()


@pytest.mark.asyncio
async def test_an_idle_stage_begins_at_once_and_waits_in_its_own_task() -> None:
    stage = Gated()
    stage.start()
    await settle()
    requests = [request(Op.READ, lba) for lba in range(3)]
    assert all(map(stage.offer, requests))
    assert stage.log == [(0, "began")], "the others wait in the inbox, behind it"
    await settle()
    assert stage.log == [(0, "began")]
    stage.gate.set()
    await settle()
    assert stage.log == [(lba, what) for lba in range(3) for what in ("began", "gated")]
    assert all(one.finished and one.error is None for one in requests)
    await stage.stop()


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", [0, 10])
async def test_what_an_idle_stage_began_is_rejected_when_its_task_ends(turns: int) -> None:
    stage = Gated()
    stage.start()
    await settle()
    held, queued = request(Op.READ, 0), request(Op.READ, 1)
    assert stage.offer(held)
    assert stage.offer(queued)
    for _ in range(turns):  # before the task has taken it over, and after
        await asyncio.sleep(0)
    await stage.stop()
    assert [(one.finished, type(one.error)) for one in (held, queued)] == [(True, BlockError)] * 2
    assert stage.log == [(0, "began")]
