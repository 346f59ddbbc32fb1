"""Virtualizing and devirtualizing the disk of a running machine: Debian's Linux under load, and what the API refuses (H1, H5, H6, H13)."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

import avmm
from avmm.control.physical import VirtualizeError
from avmm.cpu.script import ScriptCpu
from avmm.interpose.ata.driver import AtaDriver
from avmm.interpose.switch import Outcome, SwitchReport
from tests.vm.linux import COMMAND_LINE, DISK_MODULES, Boot, Shell, ext4, tool, trouble

LOAD = """(i=0; while [ ! -e /tmp/stop ]; do mkdir /mnt/d; cp /mnt/r /mnt/d/a; mv /mnt/d/a /mnt/d/b; sync;
echo 3 >/proc/sys/vm/drop_caches; cmp /mnt/r /mnt/d/b || touch /tmp/different; rm -r /mnt/d; i=$((i+1)); echo $i >/tmp/rounds; done) &"""


async def torture(folder: Path, cycles: int, clock: str) -> list[SwitchReport]:
    """Let Linux work on its disk while it changes hands; nothing must show. Return how each switch went."""
    image = ext4(folder / "disk.img", 24)
    rng = random.Random(cycles)
    async with avmm.Host() as host:
        boot = Boot(folder, modules=DISK_MODULES, append=f"{COMMAND_LINE} tsc=reliable")  # ticks may be late on a busy host
        vm = await host.create_vm(boot.config(clock=clock, disks=[avmm.Disk(image)], physical=("ata0",)))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        assert vm.physical == {"ata0": "direct"}
        await shell.run("mount -t ext4 /dev/sda /mnt && dd if=/dev/urandom of=/mnt/r bs=64k count=16")
        before = await shell.run("sync; sha256sum /mnt/r")
        exits = {port.address for port in vm.stats.ports}
        assert not exits & {0x1F0, 0x1F2, 0x1F7, 0x3F6}  # nobody but the device has seen an access
        assert vm.stats.direct > 500
        vm.serial.write(LOAD.replace("\n", " ").replace("done) &", "done) >/dev/null 2>&1 &") + "\n")
        reports: list[SwitchReport] = []
        for _ in range(cycles):
            for switch in (vm.virtualize, vm.devirtualize):
                await vm.sleep(rng.random() * 0.01)
                for _ in range(10):
                    reports.append(await switch("ata0", when=rng.choice(("between", "middle")), on_bound=rng.choice(("rollback", "defer"))))
                    if reports[-1].done:
                        break
                assert reports[-1].done, reports[-1]
        assert {report.when for report in reports if report.done} == {"between", "middle"}
        assert len({report.stage for report in reports}) > 1
        assert max(report.machine_pause_ns for report in reports if report.outcome is not Outcome.DEFERRED) <= 2_000_000
        await shell.run("touch /tmp/stop; wait")  # for the round that is under way
        assert int(await shell.run("cat /tmp/rounds")) > 0
        assert await shell.run("ls -1 /tmp") == "rounds\nstop"
        assert await shell.run("echo 3 >/proc/sys/vm/drop_caches; sha256sum /mnt/r") == before
        await shell.run("umount /mnt")
        assert trouble(await shell.run("dmesg")) == []
        vm.serial.write("poweroff -f\n")
        await vm.wait_off(60)
    tool("e2fsck", "-f", "-n", str(image))
    return reports


@pytest.mark.linux
@pytest.mark.guests
@pytest.mark.asyncio
async def test_linux_does_not_notice(tmp_path: Path) -> None:
    """H1, H2, H13: Linux keeps its driver and its files."""
    await torture(tmp_path, 30, "virtual")


@pytest.mark.linux
@pytest.mark.guests
@pytest.mark.long
@pytest.mark.asyncio
@pytest.mark.parametrize("clock", ["virtual", "real"])
async def test_linux_does_not_notice_a_thousand_times(tmp_path: Path, clock: str) -> None:
    await torture(tmp_path, 1000, clock)


def image(folder: Path) -> Path:
    path = folder / "disk.img"
    path.write_bytes(b"".join(n.to_bytes(2, "little") * 256 for n in range(256)))
    return path


async def reader(cpu: ScriptCpu, lba: int) -> bytes:
    """Read a sector by polling, nIEN set."""
    await cpu.outb(0x3F6, 2)
    for port, value in ((0x1F6, 0xE0), (0x1F2, 1), (0x1F3, lba), (0x1F4, 0), (0x1F5, 0), (0x1F7, 0x20)):
        await cpu.outb(port, value)
    while await cpu.inb(0x1F7) & 0x88 != 8:
        pass
    words = [await cpu.inw(0x1F0) for _ in range(256)]
    return b"".join(word.to_bytes(2, "little") for word in words)


@pytest.mark.asyncio
@pytest.mark.parametrize("clock", ["virtual", "real"])
async def test_a_polling_guest(tmp_path: Path, clock: str) -> None:
    seen: list[bool] = []

    async def guest(cpu: ScriptCpu) -> None:
        while True:
            lba = len(seen) % 256
            seen.append(await reader(cpu, lba) == lba.to_bytes(2, "little") * 256)

    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="1M", disks=[avmm.Disk(image(tmp_path))], physical=("ata0",), clock=clock), guest)  # type: ignore[arg-type]
        await vm.start()
        for number in range(20):
            for switch in (vm.virtualize, vm.devirtualize):
                have = len(seen)
                await vm.wait_until(lambda have=have: len(seen) > have, 10, "the guest went on")  # type: ignore[misc]
                report = await switch("ata0", when=("between", "middle")[number % 2], on_bound="defer")
                assert report.done, report
        assert all(seen)


@pytest.mark.asyncio
async def test_what_is_refused(tmp_path: Path) -> None:
    async def guest(cpu: ScriptCpu) -> None:
        await cpu.outb(0x1F6, 0xE0)
        await cpu.outb(0x3F6, 4)  # held in reset: there is no place to switch at
        while True:
            await cpu.inb(0x3F6)

    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="1M", disks=[avmm.Disk(image(tmp_path))], physical=("ata0",)), guest)
        await vm.start()
        await vm.sleep(0.001)
        for arguments, words in (
            (("nothing",), "no device called nothing"),
            (("ata1",), "ata1 is no physical device"),
            (("ata0", "never"), "choose between or middle"),
            (("ata0", "between", 0.0), "more than none"),
            (("ata0", "between", 0.002, "explode"), "choose rollback or defer"),
        ):
            with pytest.raises(VirtualizeError, match=words):
                await vm.virtualize(*arguments)
        with pytest.raises(VirtualizeError, match="direct already"):
            await vm.devirtualize("ata0")
        with pytest.raises(VirtualizeError, match="virtualize it first"):
            await vm.interpose("ata0", "trace", path=tmp_path / "trace")
        with pytest.raises(avmm.ConfigError, match="no disk"):
            await host.create_vm(avmm.VmConfig(name="b", memory="1M", physical=("ata0",)))
        with pytest.raises(avmm.ConfigError, match="choose ata0, ata1, com1, frame0"):
            avmm.VmConfig(physical=("pit",))
        first = asyncio.create_task(vm.virtualize("ata0", patience=5.0))
        await vm.sleep(0.001)
        with pytest.raises(VirtualizeError, match="being switched already"):
            await vm.virtualize("ata0")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert vm.physical == {"ata0": "direct"}
        second = asyncio.create_task(vm.virtualize("ata0", patience=500.0))
        await vm.sleep(0.001)
        await vm.shutdown()
        with pytest.raises(VirtualizeError, match="went off"):
            await second


@pytest.mark.asyncio
async def test_interposers_come_and_go(tmp_path: Path) -> None:
    good: list[bool] = []

    async def guest(cpu: ScriptCpu) -> None:
        while True:
            lba = len(good) % 256
            good.append(await reader(cpu, lba) == lba.to_bytes(2, "little") * 256)

    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="1M", disks=[avmm.Disk(image(tmp_path))], physical=("ata0",)), guest)
        await vm.start()
        await vm.virtualize("ata0")
        await vm.interpose("ata0", "trace", path=tmp_path / "trace")
        mirror_file = tmp_path / "mirror.img"
        mirror_file.write_bytes(bytes(256 * 512))
        mirror = await vm.interpose("ata0", "mirror", target=await host.service.open_disk("mirror", mirror_file))
        await vm.wait_until(lambda: mirror.complete, 10, "the copy is complete")  # type: ignore[attr-defined]
        assert await vm.share_disk("ata0").read(5, 2) == b"\5\0" * 256 + b"\6\0" * 256
        with pytest.raises(VirtualizeError, match=r"\(trace, mirror, share\): remove them first"):
            await vm.devirtualize("ata0")
        await vm.remove_interposer("ata0", "share")
        with pytest.raises(VirtualizeError, match="trace interposer already"):
            await vm.interpose("ata0", "trace", path=tmp_path / "trace")
        with pytest.raises(VirtualizeError, match="no fault 'odd'"):
            await vm.interpose("ata0", "fault", rules=[{"action": "odd"}])
        await vm.remove_interposer("ata0", "mirror")
        await vm.remove_interposer("ata0", "trace")
        assert (await vm.devirtualize("ata0")).done
        await vm.sleep(0.01)
        assert all(good)
    assert mirror_file.read_bytes() == image(tmp_path).read_bytes()
    assert len((tmp_path / "trace").read_text().splitlines()) > 5


@pytest.mark.asyncio
@pytest.mark.parametrize("on_bound", ["rollback", "defer"])
async def test_what_the_host_takes_in_a_pause_is_no_time_of_the_guests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_bound: str
) -> None:
    """H11: the host runs somebody else for 50 ms in the middle of each pause, and the guest's clock stands still at the bound."""
    seen: list[bool] = []
    taken, monotonic_ns, attach = 0, time.monotonic_ns, AtaDriver.attach

    def slow_attach(driver: AtaDriver) -> None:
        nonlocal taken
        taken += 50_000_000
        attach(driver)

    async def guest(cpu: ScriptCpu) -> None:
        while True:
            lba = len(seen) % 256
            seen.append(await reader(cpu, lba) == lba.to_bytes(2, "little") * 256)

    monkeypatch.setattr(time, "monotonic_ns", lambda: monotonic_ns() + taken)
    monkeypatch.setattr(AtaDriver, "attach", slow_attach)
    async with avmm.Host() as host:
        config = avmm.VmConfig(memory="1M", disks=[avmm.Disk(image(tmp_path))], physical=("ata0",), clock="real")
        vm = await host.create_vm(config, guest)
        await vm.start()
        for _ in range(5):
            have = len(seen)
            await vm.wait_until(lambda have=have: len(seen) > have, 10, "the guest went on")  # type: ignore[misc]
            report = await vm.virtualize("ata0", on_bound=on_bound)
            assert (report.outcome, report.machine_pause_ns) == (Outcome.DONE, report.bound_ns)
            assert report.pause_ns > 50_000_000
            assert (await vm.devirtualize("ata0", on_bound=on_bound)).done
        assert all(seen)


@pytest.mark.asyncio
async def test_a_switch_that_waits_for_the_device_is_rolled_back_at_the_bound(tmp_path: Path) -> None:
    """H11: and not past it, as far as the guest can tell, however late the host lets us look."""

    async def guest(cpu: ScriptCpu) -> None:
        await cpu.outb(0x3F6, 2)
        while True:
            for port, value in ((0x1F6, 0xE0), (0x1F2, 0), (0x1F3, 0), (0x1F4, 0), (0x1F5, 0), (0x1F7, 0x40)):  # VERIFY takes its time
                await cpu.outb(port, value)
            while await cpu.inb(0x1F7) & 0x80:
                pass

    async with avmm.Host() as host:
        config = avmm.VmConfig(memory="1M", disks=[avmm.Disk(image(tmp_path))], physical=("ata0",), clock="real")
        vm = await host.create_vm(config, guest)
        await vm.start()
        reports = [await vm.virtualize("ata0", when="middle", bound=1e-6) for _ in range(10)]
        assert {report.outcome for report in reports} == {Outcome.ROLLED_BACK}
        assert {report.machine_pause_ns for report in reports} == {1000}
