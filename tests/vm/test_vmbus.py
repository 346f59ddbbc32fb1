"""A scripted guest on VMBus in a whole machine, in real and in virtual time: tasks, pause, power-off in mid-I/O."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

import avmm
from avmm.cpu.script import ScriptCpu
from avmm.vmbus.client import GuestChannel, GuestClient
from avmm.vmbus.packets import Packet, PacketKind
from avmm.vmbus.server import ChannelEnd, Offer

VECTOR = 0xF3


class Delayed:
    """Completes each packet with its payload, after work in the background."""

    def __init__(self) -> None:
        self.offer = Offer(UUID(int=1), UUID(int=2), name="delayed")
        self.channel: ChannelEnd | None = None
        self.events: list[str] = []
        self.times: list[int] = []

    def opened(self, channel: ChannelEnd) -> None:
        self.channel = channel
        self.events.append("opened")

    def received(self, packet: Packet) -> None:
        async def work() -> bytes:
            await asyncio.sleep(0)
            return packet.payload

        assert self.channel is not None
        channel = self.channel
        self.times.append(channel.board.clock.now())
        channel.board.start(work(), lambda result: self.done(channel, packet, result), 50_000)

    @staticmethod
    def done(channel: ChannelEnd, packet: Packet, result: Any) -> None:
        channel.send(PacketKind.COMPLETION, result, packet.transaction_id)

    def closed(self) -> None:
        self.events.append("closed")


class Driver:
    """The guest: sends ``count`` requests, a few at a time, and waits for interrupts."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.vm: avmm.Vm | None = None
        self.answers: dict[int, bytes] = {}
        self.interrupts = 0

    async def run(self, cpu: ScriptCpu) -> None:
        assert self.vm is not None
        vmbus = self.vm.machine.vmbus
        assert vmbus is not None
        await cpu.store(0xFEE000F0, 0x1FF)
        host = vmbus.hyperv

        class Gate:
            """Hypercalls and MSRs; each of them is in the middle of an instruction of the guest's."""

            call = staticmethod(host.call)

            @staticmethod
            def write(index: int, value: int) -> bool:
                assert self.vm is not None
                return self.vm.partition.msrs.write(index, value)

        client = GuestClient(self.vm.partition.memory, Gate())
        assert client.contact(0x50003)
        offers = client.request_offers().values()
        channel = client.open(next(one.channel_id for one in offers if one.instance == UUID(int=2).bytes_le))
        cpu.on(VECTOR, self.interrupt)
        cpu.sti()
        sent = 0
        while len(self.answers) < self.count:
            while sent < min(self.count, len(self.answers) + 8):
                channel.send(b"request " + bytes((sent % 256,)) * 8, sent)
                sent += 1
            await cpu.hlt()
            self.drain(client, channel)

    def drain(self, client: GuestClient, channel: GuestChannel) -> None:
        client.take_events()
        for packet in channel.receive():
            assert packet.transaction_id not in self.answers
            self.answers[packet.transaction_id] = packet.payload

    async def interrupt(self, cpu: ScriptCpu) -> None:
        self.interrupts += 1


async def start(host: avmm.Host, clock: str, count: int) -> tuple[avmm.Vm, Driver, Delayed]:
    driver, server = Driver(count), Delayed()
    vm = await host.create_vm(avmm.VmConfig(memory="8M", clock=clock, hyperv=True), guest=driver.run)  # type: ignore[arg-type]
    driver.vm = vm
    assert vm.machine.vmbus is not None
    vm.machine.vmbus.offer(server)
    await vm.start()
    return vm, driver, server


async def finished(driver: Driver, count: int) -> None:
    """Wait for answers."""
    assert driver.vm is not None
    await driver.vm.wait_until(lambda: len(driver.answers) >= count, 20)


@pytest.mark.asyncio
@pytest.mark.parametrize("clock", ["real", "virtual"])
async def test_requests_through_a_whole_machine(clock: str) -> None:
    async with avmm.Host() as host:
        vm, driver, server = await start(host, clock, 100)
        await finished(driver, 100)
        assert all(payload == b"request " + bytes((number,)) * 8 for number, payload in driver.answers.items())
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert ("vmbus:delayed" in names) == (clock == "real")
        await vm.partition.stop()
        await asyncio.sleep(0)
        assert server.events == ["opened", "closed"]
        assert "vmbus:delayed" not in {task.get_name() for task in asyncio.all_tasks()}


@pytest.mark.asyncio
async def test_virtual_time_repeats_itself() -> None:
    runs = []
    for _ in range(2):
        async with avmm.Host() as host:
            vm, driver, server = await start(host, "virtual", 60)
            await finished(driver, 60)
            await vm.partition.stop()
            runs.append((server.times, driver.interrupts))
    assert runs[0] == runs[1]
    assert len(runs[0][0]) == 60


@pytest.mark.asyncio
async def test_pause_and_stop_in_mid_io() -> None:
    async with avmm.Host() as host:
        vm, driver, server = await start(host, "real", 1 << 30)
        for _ in range(5):
            await finished(driver, len(driver.answers) + 50)
            await vm.pause()
            seen = (len(driver.answers), len(server.times))
            for _ in range(20):
                await asyncio.sleep(0)
            assert (len(driver.answers), len(server.times)) == seen
            await vm.resume()
        await vm.partition.stop()
        assert server.events == ["opened", "closed"]
