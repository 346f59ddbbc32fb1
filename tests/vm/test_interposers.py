"""Interposers under guests that go on working: mirror and switch over under load, a disk shared with a second machine, faults by rules."""

from __future__ import annotations

from pathlib import Path

import pytest

import avmm
import avmm_guests
from avmm.control.physical import VirtualizeError
from avmm.cpu.script import ScriptCpu
from tests.vm.pc import running

pytestmark = pytest.mark.asyncio

SECTORS = 256


class Writer:
    """A guest that writes a sector, reads it back, and goes on to the next; what it wrote last of each is in ``wanted``."""

    def __init__(self) -> None:
        self.wanted = {lba: bytes(512) for lba in range(SECTORS)}
        self.written = self.wrong = self.errors = 0

    async def command(self, cpu: ScriptCpu, code: int, lba: int) -> int:
        for port, value in ((0x1F6, 0xE0), (0x1F2, 1), (0x1F3, lba & 0xFF), (0x1F4, lba >> 8), (0x1F5, 0), (0x1F7, code)):
            await cpu.outb(port, value)
        while (status := await cpu.inb(0x1F7)) & 0x80:
            pass
        return status

    async def guest(self, cpu: ScriptCpu) -> None:
        await cpu.outb(0x3F6, 2)
        while True:
            lba = self.written * 7 % SECTORS
            data = self.written.to_bytes(4, "little") * 128
            if not await self.command(cpu, 0x30, lba) & 8:
                self.errors += 1
                continue
            await cpu.outsw(0x1F0, data)
            while (status := await cpu.inb(0x1F7)) & 0x80:
                pass
            self.errors += status & 1
            self.wanted[lba] = data
            if await self.command(cpu, 0x20, lba) & 8:
                self.wrong += await cpu.insw(0x1F0, 256) != data
            else:
                self.errors += 1
            self.written += 1


async def test_mirror_and_switch_over_under_load(tmp_path: Path) -> None:
    first, second = tmp_path / "first.img", tmp_path / "second.img"
    first.write_bytes(bytes(SECTORS * 512))
    writer = Writer()
    async with avmm.Host() as host:
        config = avmm.VmConfig(memory="1M", disks=[avmm.Disk(first)], physical=("ata0",))
        vm = await host.create_vm(config, writer.guest)
        await vm.start()

        async def more(count: int) -> None:
            have = writer.written
            await vm.wait_until(lambda: writer.written >= have + count, 10, "the guest wrote")

        await more(20)
        await vm.virtualize("ata0")
        await vm.interpose("ata0", "mirror", file=second)
        with pytest.raises(VirtualizeError, match="not complete yet"):
            vm.switch_over("ata0")
        await vm.wait_until(lambda: vm.interposers("ata0")["mirror"]["complete"] is True, 10, "the copy was complete")
        await more(30)
        vm.switch_over("ata0")
        at = writer.written
        await more(100)
        with pytest.raises(VirtualizeError, match="on the mirror only"):
            await vm.remove_interposer("ata0", "mirror")
        assert vm.interposers("ata0")["mirror"]["switched_over"] is True
        await vm.pause()
        written, wanted = writer.written, dict(writer.wanted)
    assert (writer.wrong, writer.errors) == (0, 0)
    image = second.read_bytes()
    differing = [lba for lba in range(SECTORS) if image[lba * 512 : lba * 512 + 512] != wanted[lba]]
    assert len(differing) <= 1  # the one that was on its way when the plug was pulled
    old = first.read_bytes()
    assert old[at * 7 % SECTORS * 512 :][:4] != (at + SECTORS).to_bytes(4, "little")
    assert sum(old[lba * 512 : lba * 512 + 512] != wanted[lba] for lba in range(SECTORS)) > 50
    assert written >= at + 100


async def test_a_second_machine_boots_from_a_disk_that_is_in_use() -> None:
    """``share``: it reads what the first one wrote, cannot write, and finds no medium when it is over."""
    async with running(name="first", disks=[avmm.Disk(avmm_guests.image(), "overlay")], physical=["ata0"]) as first:
        await first.serial.wait_for("ok> ")
        first.serial.write("write note.txt from the first machine\n")
        await first.serial.wait_for("\nok> ")
        await first.virtualize("ata0")
        shared = first.share_disk("ata0")
        async with running(name="second", disks=[avmm.Disk(shared, "ro")]) as second:
            await second.serial.wait_for("ok> ")
            second.serial.write("read note.txt\n")
            assert "from the first machine" in await second.serial.wait_for("\nok> ")
            first.serial.write("sum pattern.txt\n")  # both at once
            second.serial.write("sum pattern.txt\n")
            for vm in (first, second):
                assert "589ff6ef pattern.txt: as written." in await vm.serial.wait_for("\nok> ")
            second.serial.write("write note.txt from the second\n")
            assert "The disk reported an error." in await second.serial.wait_for("\nok> ")
            assert first.interposers("ata0")["share"]["views"] == 1
            await first.shutdown()
            second.serial.write("sum pattern.txt\n")
            assert "The disk reported an error." in await second.serial.wait_for("\nok> ")


async def test_faults_by_rule_reach_the_guest_and_go() -> None:
    """A guest retries a read that failed; a rule that comes true a few times only shows in nothing but time."""
    async with running(disks=[avmm.Disk(avmm_guests.image(), "overlay")], physical=["ata0"]) as vm:
        await vm.serial.wait_for("ok> ")
        await vm.virtualize("ata0")
        await vm.interpose("ata0", "fault", rules=["error,op=read,lba=275-402"])
        vm.serial.write("sum pattern.txt\n")
        assert "The disk reported an error." in await vm.serial.wait_for("\nok> ")
        assert vm.interposers("ata0")["fault"]["hits"] != [0]
        await vm.remove_interposer("ata0", "fault")
        await vm.interpose("ata0", "fault", rules=["delay,op=read,seconds=0.05,times=1"])
        began = vm.now
        vm.serial.write("sum pattern.txt\n")
        assert "as written." in await vm.serial.wait_for("\nok> ")
        assert vm.now - began >= 0.05
        await vm.remove_interposer("ata0", "fault")
        assert (await vm.devirtualize("ata0")).done
