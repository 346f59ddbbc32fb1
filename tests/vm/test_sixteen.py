"""Sixteen different machines at once (I10): other people's systems, our own, boot loaders, scripts and loops, in one process."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest

import avmm
import avmm_guests
from avmm.cpu.script import Guest, ScriptCpu
from avmm.hypervisor.schedule import LAG, jain
from tests import third_party
from tests.control.panels import BUSY, ECHO, image
from tests.vm.linux import PROMPT, Boot, Shell
from tests.vm.scripted import end_of_interrupt, start_pic, start_pit
from tests.vm.test_bootloaders import syslinux_disk

pytestmark = [pytest.mark.asyncio, pytest.mark.guests, pytest.mark.linux]

MINUTE = 60
WINDOW = 1_000_000
"""Units of work between two looks at how the busy machines share."""


async def ticking(cpu: ScriptCpu) -> None:
    """Count a timer's interrupts."""

    async def tick(cpu: ScriptCpu) -> None:
        await cpu.store(0x9000, await cpu.load(0x9000) + 1)
        await end_of_interrupt(cpu)

    cpu.on(0x20, tick)
    await start_pic(cpu)
    await start_pit(cpu, 100)
    cpu.sti()
    while True:
        await cpu.hlt()


async def polling(cpu: ScriptCpu) -> None:
    """Never halt."""
    while True:
        await cpu.inb(0x40)


class House:
    """Sixteen machines; ``busy`` are those that never halt."""

    def __init__(self, host: avmm.Host, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.busy: list[avmm.Vm] = []
        self.halting: list[avmm.Vm] = []

    async def make(self, name: str, shows: str = "", *, busy: bool = False, script: Guest | None = None, **parts: object) -> avmm.Vm:
        """Make a machine, let it come alone to where it ``shows`` something, and have it wait for the others."""
        config = avmm.VmConfig(name=name, slice_us=25, **{"memory": "4M", **parts})  # type: ignore[arg-type]
        vm = await self.host.create_vm(config, script)
        (self.busy if busy else self.halting).append(vm)
        await vm.start()
        if shows:
            await (vm.serial if name == "linux" else vm.screen).wait_for(shows, timeout=60)
        await vm.pause()
        return vm

    async def fill(self) -> None:
        floppy = {name: [avmm.Disk(image(self.folder, name, code), "ro")] for name, code in (("echo", ECHO), ("loop", BUSY))}
        grub = third_party.file("usr/lib/grub-rescue/grub-rescue-floppy.img")
        syslinux = syslinux_disk(self.folder / "syslinux.img", "PROMPT 1\nDEFAULT nothing\n", {})
        memtest = third_party.file("boot/memtest86+x64.bin")
        for n in range(4):
            await self.make(f"guest{n}", "ok>", memory="16M", disks=[avmm.Disk(avmm_guests.image(), "overlay")])
        for n in range(3):
            await self.make(f"ticking{n}", script=ticking)
            await self.make(f"echo{n}", "ready>", floppies=floppy["echo"])
        await self.make("polling", busy=True, script=polling)
        await self.make("loop", busy=True, floppies=floppy["loop"])
        await self.make("memtest", "to start testing", busy=True, memory="16M", kernel=memtest, append="nobench")
        await self.make("grub", "GNU GRUB", busy=True, memory="16M", floppies=[avmm.Disk(grub, "ro")])
        await self.make("syslinux", "boot:", busy=True, memory="16M", floppies=[avmm.Disk(syslinux, "ro")])

    def work(self) -> list[int]:
        return [vm.partition.vcpu.share.work for vm in self.busy if vm.partition.vcpu.share is not None]


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.long)])
async def test_sixteen_different_machines_for_a_minute(tmp_path: Path, threads: int) -> None:
    """A minute of guest time for each that halts, all others busy meanwhile: all alive, none starved, memory bounded."""
    async with avmm.Host(threads=threads) as host:
        house = House(host, tmp_path)
        boot = Boot(tmp_path).config()
        linux = await house.make("linux", PROMPT, memory=boot.memory, kernel=boot.kernel, initrd=boot.initrd, append=boot.append)
        await house.fill()
        assert len(host.vms) == 16
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for vm in host.vms.values():
            await vm.resume()
        fair: list[float] = []
        done: list[str] = []

        async def minute(vm: avmm.Vm) -> None:
            await vm.sleep(MINUTE)
            done.append(vm.name)

        async def watch() -> None:
            begin = last = house.work()
            while min(b - a for a, b in zip(begin, last, strict=True)) < LAG:  # who has just come may be so far behind
                await asyncio.sleep(0.001)
                last = house.work()
            while len(done) < len(house.halting):
                await asyncio.sleep(0.001)
                now = house.work()
                if max(now) - max(last) >= WINDOW:
                    fair.append(jain(b - a for a, b in zip(last, now, strict=True)))
                    last = now

        await asyncio.gather(watch(), *map(minute, house.halting))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert {vm.name: vm.state for vm in host.vms.values() if vm.state is not avmm.RunState.RUNNING} == {}
        assert fair
        assert min(fair) >= 0.95
        assert await Shell(linux).run("echo alive $((6 * 7))") == "alive 42"
        for vm in house.halting:
            if vm.name.startswith("ticking"):
                assert vm.partition.memory.unpack("<I", 0x9000)[0] >= 100 * MINUTE
            elif vm.name.startswith("guest"):
                await vm.keyboard.type("echo alive\n")
                await vm.screen.wait_for("\nalive", timeout=5)
            elif vm.name.startswith("echo"):
                await vm.keyboard.type("alive")
                await vm.screen.wait_for("ready> alive", timeout=5)
        assert grown < 256 << 10  # KiB
