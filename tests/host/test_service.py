"""The service OS: routing, order, feedback, failures, the end (MISSION I4, I9, M2)."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Awaitable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from avmm.devices.block import BlockError, BlockFault
from avmm.devices.device import Device
from avmm.host import router
from avmm.host.requests import Op, StorageRequest
from avmm.host.router import NoSuchDevice, ServiceBusy, ServiceEnded
from avmm.host.service import ServiceOs
from avmm.host.virtualization_driver import Disk
from avmm.hypervisor.irp import Irp, IrpKind
from tests.devices.bench import Bench
from tests.host.leaks import nothing_left


class Probe(Device):
    """Answers some ports at once and others when told to."""

    def __init__(self, name: str = "probe") -> None:
        super().__init__(Bench())
        self.name = name
        self.log: list[tuple[Any, ...]] = []
        self.gate = asyncio.Event()
        self.future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.disk: Disk | None = None
        self.work: Coroutine[Any, Any, int] | None = None
        self.started: asyncio.Task[Any] | None = None

    async def _later(self, value: int) -> int:
        await self.gate.wait()
        self.log.append(("later", value))
        return value

    async def _sector(self) -> int:
        assert self.disk is not None
        return (await self.disk.read(0, 1))[0]

    def read(self, port: int, size: int) -> int | Awaitable[int]:
        self.log.append(("read", port, size))
        match port:
            case 0x300:
                return 0x42
            case 0x301:
                self.work = self._later(0x43)
                return self.work
            case 0x302:
                raise KeyError("bug")
            case 0x303:
                return self.future
            case 0x304:
                return self._sector()
        return port & 0xFF

    def write(self, port: int, size: int, value: int) -> None:
        self.log.append(("write", port, size, value))
        if self.disk is not None:
            self.started = asyncio.create_task(self.disk.flush())  # as board.start() does

    def read_memory(self, address: int, size: int) -> int:
        self.log.append(("load", address, size))
        return 0xFEED

    def write_memory(self, address: int, size: int, value: int) -> None:
        self.log.append(("store", address, size, value))

    def window_done(self, port: int) -> None:
        self.log.append(("window", port))


def irp(device: Device, port: int = 0x300, kind: IrpKind = IrpKind.PORT_READ, size: int = 1, value: int = 0) -> Irp:
    return Irp(kind, device, port, size, value)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_i4_an_irp_goes_out_and_its_feedback_comes_back() -> None:
    with nothing_left():
        async with ServiceOs() as service:
            probe = Probe()
            service.add(probe)
            assert {"service-os", "device:probe"} <= {task.get_name() for task in asyncio.all_tasks()}
            packet = service.submit(irp(probe))
            assert not packet.done
            assert await packet == 0x42
            assert [name for name, _ in packet.hops] == ["service-os", "device:probe"]
            assert await service.submit(irp(probe, 0x10, IrpKind.PORT_WRITE, 2, 0xBEEF)) == 0
            assert await service.submit(irp(probe, 0xFEE00000, IrpKind.MEMORY_READ, 4)) == 0xFEED
            assert await service.submit(irp(probe, 0xFEE00010, IrpKind.MEMORY_WRITE, 8, 9)) == 0
            assert await service.submit(irp(probe, 0x1F0, IrpKind.WINDOW_DONE)) == 0
            assert probe.log == [
                ("read", 0x300, 1),
                ("write", 0x10, 2, 0xBEEF),
                ("load", 0xFEE00000, 4),
                ("store", 0xFEE00010, 8, 9),
                ("window", 0x1F0),
            ]
            stats = service.stats["probe"]
            assert (stats.irps, stats.errors) == (5, 0)
            assert stats.latency > 0


@pytest.mark.asyncio
async def test_each_device_is_fifo_and_does_not_wait_for_another() -> None:
    async with ServiceOs() as service:
        slow, quick = Probe("slow"), Probe("quick")
        service.add(slow)
        service.add(quick)
        waiting = service.submit(irp(slow, 0x301))
        behind = [service.submit(irp(slow, port)) for port in (0x310, 0x311)]
        assert await service.submit(irp(quick)) == 0x42
        await settle()
        assert slow.log == [("read", 0x301, 1)]  # the next access has to wait for the one under way
        slow.gate.set()
        assert [await packet for packet in (waiting, *behind)] == [0x43, 0x10, 0x11]
        assert slow.log == [("read", 0x301, 1), ("later", 0x43), ("read", 0x310, 1), ("read", 0x311, 1)]


@pytest.mark.asyncio
async def test_a_bug_in_a_device_model_fails_its_irp_and_stops_nothing() -> None:
    async with ServiceOs() as service:
        probe = Probe()
        service.add(probe)
        with pytest.raises(KeyError, match="bug"):
            await service.submit(irp(probe, 0x302))
        busy = service.submit(irp(probe, 0x301))
        bug = service.submit(irp(probe, 0x302))  # by way of the device's own task
        cancelled = service.submit(irp(probe, 0x303))
        probe.gate.set()
        assert await busy == 0x43
        with pytest.raises(KeyError, match="bug"):
            await bug
        await settle()
        probe.future.cancel()
        with pytest.raises(ServiceEnded, match="was cancelled"):
            await cancelled
        assert await service.submit(irp(probe)) == 0x42
        assert (service.stats["probe"].irps, service.stats["probe"].errors) == (5, 3)


@pytest.mark.asyncio
async def test_an_error_that_comes_later() -> None:
    async with ServiceOs() as service:
        probe = Probe()
        service.add(probe)
        packet = service.submit(irp(probe, 0x303))
        await settle()
        probe.future.set_exception(BlockError(BlockFault.MEDIUM))
        with pytest.raises(BlockError):
            await packet


@pytest.mark.asyncio
async def test_unknown_device_and_names() -> None:
    async with ServiceOs() as service:
        probe, twin = Probe(), Probe()
        with pytest.raises(NoSuchDevice, match="does not run probe"):
            await service.submit(irp(probe))
        service.add(probe)
        for device, name in [(probe, "again"), (twin, ""), (twin, "probe")]:
            with pytest.raises(ValueError, match="already"):
                service.add(device, name)
        service.add(twin, "vm1/probe")
        assert await service.submit(irp(twin)) == 0x42
        assert (service.stats["vm1/probe"].irps, service.stats["probe"].irps) == (1, 0)


@pytest.mark.asyncio
async def test_a_device_that_is_withdrawn_can_come_back() -> None:
    async with ServiceOs() as service:
        probe = Probe()
        outside = service.add(probe)
        assert await service.submit(irp(probe)) == 0x42
        assert service.withdraw(probe) is outside
        assert service.withdraw(probe) is None
        with pytest.raises(NoSuchDevice):
            await service.submit(irp(probe))
        await settle()
        assert "device:probe" not in {task.get_name() for task in asyncio.all_tasks()}
        service.add(probe)
        assert await service.submit(irp(probe)) == 0x42


@pytest.mark.asyncio
async def test_the_end_answers_every_irp() -> None:
    with nothing_left():
        async with ServiceOs() as service:
            probe, quiet = Probe(), Probe("quiet")
            service.add(probe)
            service.add(quiet)
            under_way = service.submit(irp(probe, 0x301))
            await settle()
            queued = service.submit(irp(probe, 0x310))
            await settle()
            unrouted = service.submit(irp(quiet))
        late = service.submit(irp(probe))
        for packet in (under_way, queued, unrouted, late):
            with pytest.raises(ServiceEnded):
                await packet
        with pytest.raises(ServiceEnded):
            service.add(quiet)
        gc.collect()  # a coroutine that was never awaited would warn here


@pytest.mark.asyncio
async def test_an_access_begun_but_not_yet_awaited_is_answered_too() -> None:
    async with ServiceOs() as service:
        probe = Probe()
        outside = service.add(probe)
        packet = irp(probe, 0x301)
        begun = outside.begin(packet)  # as the router does
        assert begun is not None
        assert outside.offer(begun)
        await outside.stop()
        with pytest.raises(ServiceEnded):
            await packet
        with pytest.raises(ServiceEnded):
            await service.submit(irp(probe))
        assert probe.work is not None
        assert inspect.getcoroutinestate(probe.work) == inspect.CORO_CLOSED
        assert probe.log == [("read", 0x301, 1)]


@pytest.mark.asyncio
async def test_the_body_s_own_exception_comes_out_as_it_is() -> None:
    async def body() -> None:
        async with ServiceOs() as service:
            service.add(Probe())
            await settle()
            raise ZeroDivisionError

    with nothing_left(), pytest.raises(ZeroDivisionError):
        await body()


@pytest.mark.asyncio
async def test_a_full_router_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "ROUTER_INBOX", 2)
    async with ServiceOs() as service:
        probe = Probe()
        service.add(probe)
        packets = [service.submit(irp(probe)) for _ in range(3)]
        assert [await packet for packet in packets[:2]] == [0x42, 0x42]
        with pytest.raises(ServiceBusy):
            await packets[2]


@pytest.mark.asyncio
async def test_i9_m2_the_service_owns_the_disks_and_one_id_goes_all_the_way(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"S" * 4096)
    with nothing_left():
        async with ServiceOs() as service:
            disk = await service.open_disk("hd0", image)
            with pytest.raises(ValueError, match="already"):
                await service.open_disk("hd0", image)
            probe = Probe()
            probe.disk = disk
            seen: list[StorageRequest] = []
            disk.watch(seen.append)
            service.add(probe)
            await service.submit(irp(probe))
            packet = service.submit(irp(probe, 0x304))
            assert await packet == ord("S")
            assert seen[-1].id == packet.id
            command = service.submit(irp(probe, 0x1F7, IrpKind.PORT_WRITE))
            await command
            assert probe.started is not None
            await probe.started
            assert (seen[-1].op, seen[-1].id) == (Op.FLUSH, command.id)
            await service.open_disk("hd1", image.with_name("other.img"), size=512)
            await service.close_disk("hd1")
            await service.close_disk("hd1")
            await service.open_disk("hd1", image.with_name("other.img"))
        assert service.disks == {}
        with pytest.raises(BlockError):
            await disk.read(0, 1)
