"""Enlightened guests that want to hurt, as whole machines: each loses its own channels at most, and another machine does not notice.

The attacks are made by a scripted guest on the real servers (disk, keyboard, monitor) of a machine with a disk. Beside it on the
same host the built-in guest reads and writes its files over VMBus, before, during and after.
"""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import avmm
import guests
from avmm.cpu.script import ScriptCpu
from avmm.hypervisor.hyperv.hypercall import Status
from avmm.memory import PAGE
from avmm.storage import wire as storage
from avmm.vmbus import video, wire
from avmm.vmbus.client import GuestChannel, GuestClient
from avmm.vmbus.packets import PacketKind
from avmm.vmbus.ranges import GpaRange
from avmm.vmbus.ring import READ_INDEX, WRITE_INDEX, RingError
from guests.filearea import read_area

pytestmark = pytest.mark.asyncio

SCSI, VIDEO = storage.SCSI_INTERFACE, video.INTERFACE


class Guest:
    """A scripted guest on VMBus. ``await self.rest()`` lets the host have its turn."""

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.vm: avmm.Vm | None = None
        self.done = False

    async def run(self, cpu: ScriptCpu) -> None:
        assert self.vm is not None
        vm, bus = self.vm, self.vm.machine.vmbus
        assert bus is not None
        hyperv = bus.hyperv
        await cpu.store(0xFEE000F0, 0x1FF)

        class Gate:
            """Hypercalls and MSRs."""

            call = staticmethod(hyperv.call)

            @staticmethod
            def write(index: int, value: int) -> bool:
                return vm.partition.msrs.write(index, value)

        self.client = GuestClient(vm.partition.memory, Gate())
        assert self.client.contact(0x50003)
        self.client.request_offers()
        self.cpu, self.chance, self.memory = cpu, random.Random(7), vm.partition.memory
        await self.attack(self)
        self.done = True

    async def rest(self) -> None:
        for _ in range(400):
            await self.cpu.inb(0x80)
        self.client.take_messages()

    def open(self, interface: UUID, **how: Any) -> GuestChannel:
        number = next(one.channel_id for one in self.client.offers.values() if one.interface == interface.bytes_le)
        return self.client.open(number, **how)

    async def disk(self) -> GuestChannel:
        """Open the controller and initialize it, as a driver does."""
        channel = self.open(SCSI)
        for number, (operation, value) in enumerate(((7, 0), (9, 0x0602), (10, 0), (8, 0))):
            channel.send(struct.pack("<IIIH", operation, 1, 0, value).ljust(64, b"\0"), number + 1)
            await self.rest()
            assert len(channel.receive()) == 1
        return channel

    def read(self, channel: GuestChannel, number: int, pages: tuple[int, ...], sectors: int = 8, **srb: int) -> bool:
        """Ask for sectors from the start of the disk."""
        field = {"lun": 0, "cdb_length": 10, "direction": 1, "length": 512 * sectors, "opcode": 0x28, **srb}
        cdb = struct.pack(">BBIBHB", field["opcode"], 0, 0, 0, sectors & 0xFFFF, 0).ljust(20, b"\0")
        body = struct.pack("<HBBBBBBBBBBI", 52, 0, 0, 0, 0, 0, field["lun"] & 0xFF, field["cdb_length"] & 0xFF, 20, field["direction"] & 0xFF, 0,
                           field["length"] & 0xFFFFFFFF) + cdb + bytes(16)  # fmt: skip
        packet = struct.pack("<III", 3, 1, 0) + body
        ranges = [GpaRange(PAGE * len(pages), 0, pages)]
        return channel.send(packet, number, kind=PacketKind.GPA_DIRECT, ranges=ranges)


Attack = Callable[[Guest], Any]


async def wild_indices(guest: Guest) -> None:
    for offset, value in ((WRITE_INDEX, 4), (WRITE_INDEX, 0xFFFFFFF8), (WRITE_INDEX, 1 << 20)):
        channel = await guest.disk()
        channel.outgoing.ring.set_word(offset, value)
        channel.signal()
        await guest.rest()
        channel.close()
    channel = await guest.disk()
    channel.incoming.ring.set_word(READ_INDEX, 12)
    guest.read(channel, 1, guest.client.allocate(1))
    await guest.rest()


async def memory_changed_under_the_host(guest: Guest) -> None:
    channel = await guest.disk()
    pages = guest.client.allocate(1)
    for number in range(60):
        with suppress(RingError):  # the client looks at its own ring no more trustingly than the host does
            guest.read(channel, 100 + number, pages)
        page = guest.chance.choice([channel.pfns[0], channel.pfns[4], guest.chance.choice(channel.pfns)])
        where = page * PAGE + 4 * guest.chance.randrange(guest.chance.choice([5, 1024]))
        guest.memory.pack("<I", where, guest.chance.choice([0, guest.chance.randrange(1 << 32), 8 * guest.chance.randrange(2000)]))
        channel.signal()
        await guest.rest()


async def message_flood_and_never_eom(guest: Guest) -> None:
    statuses = [guest.client.post(wire.GpadlHeader(1, 7, 24, 1, bytes(24))) for _ in range(300)]
    assert statuses[-1] is Status.INSUFFICIENT_BUFFERS
    for number in range(300):
        guest.client.post_bytes(guest.chance.randbytes(guest.chance.randrange(241)), 1 + 3 * (number & 1))


async def huge_torn_and_overlapping_gpadls(guest: Guest) -> None:
    for number in range(200):
        ranges, count = guest.chance.choice([(0xFFFF, 0xFFFF), (8, 0), (24, 1), (0xFFF8, 1), (24, 0xFFFF)])
        guest.client.post(wire.GpadlHeader(1, number + 1, ranges, count, guest.chance.randbytes(8 * guest.chance.randrange(1, 20))))
        guest.client.post(wire.GpadlBody(number, guest.chance.randrange(250), guest.chance.randbytes(200)))
        guest.client.take_messages()
    guest.client.unload()
    guest.client.messages.clear()
    assert guest.client.contact(0x50003)
    guest.client.request_offers()
    pages = guest.client.allocate(8)
    first, second = guest.open(SCSI, pfns=pages), guest.open(VIDEO, pfns=pages)
    for number in range(30):
        first.send(bytes(64), number)
        second.signal()
        await guest.rest()


async def close_in_the_midst_of_input_and_output(guest: Guest) -> None:
    for number in range(10):
        channel = await guest.disk()
        pages = guest.client.allocate(16)
        for request in range(20):
            guest.read(channel, request + 1, pages, 128)
        if number & 1:
            await guest.rest()
        channel.close()
        before = guest.memory.read(channel.pfns[0] * PAGE, len(channel.pfns) * PAGE)
        await guest.rest()
        assert guest.memory.read(channel.pfns[0] * PAGE, len(channel.pfns) * PAGE) == before
    guest.read(await guest.disk(), 1, guest.client.allocate(1))
    guest.client.unload()


async def bad_srbs(guest: Guest) -> None:
    channel = await guest.disk()
    pages = guest.client.allocate(2)
    answered = 0
    for number in range(120):
        field = guest.chance.choice(["lun", "cdb_length", "direction", "length", "opcode"])
        guest.read(channel, number + 1, pages, guest.chance.choice([0, 1, 16, 17, 0xFFFF]), **{field: guest.chance.randrange(1 << 32) & 0xFF})
        if number % 8 == 7:
            await guest.rest()
            answered += len(channel.receive())
    await guest.rest()
    assert answered + len(channel.receive()) == 120, "each is answered, whatever it asked"
    channel.send(struct.pack("<III", 99, 1, 0).ljust(64, b"\0"), 1)
    await guest.rest()


async def a_monitor_that_is_lied_to(guest: Guest) -> None:
    for _ in range(40):
        channel = guest.open(VIDEO)
        channel.send(struct.pack("<IIIIHH", 1, 12, 1, 12, 3, 5), 1, completion=False)
        for _ in range(10):
            kind, body = guest.chance.randrange(17), guest.chance.randbytes(guest.chance.randrange(60))
            channel.send(struct.pack("<IIII", 1, 8 + len(body), kind, 8 + len(body)) + body, 1, completion=False)
        await guest.rest()
        channel.close()


ATTACKS = (
    wild_indices, memory_changed_under_the_host, message_flood_and_never_eom, huge_torn_and_overlapping_gpadls,
    close_in_the_midst_of_input_and_output, bad_srbs, a_monitor_that_is_lied_to,
)  # fmt: skip


async def say(vm: avmm.Vm, line: str) -> str:
    vm.serial.write(line + "\n")
    return (await vm.serial.wait_for("\nok> ")).partition("\n")[2].removesuffix("ok> ").replace("\r", "")


@pytest.mark.parametrize("attack", ATTACKS)
async def test_other_machines_go_on(tmp_path: Path, attack: Attack) -> None:
    good_disk, bad_disk = (Path(shutil.copy(guests.image(), tmp_path / f"{name}.img")) for name in ("good", "bad"))
    async with avmm.Host() as host:
        good = await host.create_vm(avmm.VmConfig(name="good", memory="8M", disks=[avmm.Disk(good_disk)], hyperv=True))
        await good.start()
        await good.serial.wait_for("ok> ")
        await good.set_mode("enlightened")
        guest = Guest(attack)
        config = avmm.VmConfig(name="bad", memory="8M", disks=[avmm.Disk(bad_disk)], hyperv=True)
        bad = guest.vm = await host.create_vm(config, guest=guest.run)  # type: ignore[arg-type]
        await bad.start()
        await say(good, "copy pattern.txt during")
        await bad.wait_until(lambda: guest.done, 60)
        assert bad.state is avmm.RunState.RUNNING, bad.partition.failure
        assert "as written" in await say(good, "sum during")
        assert bad_disk.read_bytes() == guests.image().read_bytes(), "nobody wrote"
        events = {event.name for event in bad.partition.trace_log.events}
        ended = {wild_indices, memory_changed_under_the_host, huge_torn_and_overlapping_gpadls, bad_srbs, a_monitor_that_is_lied_to}
        assert ("vmbus channel ended" in events) == (attack in ended)
        await bad.shutdown()
        assert "as written" in await say(good, "sum pattern.txt")
        good.serial.write("halt\n")
        assert await good.wait_off() == "the guest entered ACPI S5"
    assert {file.name for file in read_area(good_disk.read_bytes()) if file.intact} >= {"during", "pattern.txt"}
