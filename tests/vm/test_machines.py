"""Machines as their users hold them: many in one process, every way to end them, wrong descriptions, and what they count."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import mmap
import os
import random
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

import avmm
from avmm import ConfigError, Disk, Host, ImageError, RunState, VmConfig
from avmm.boot.errors import BootError
from avmm.clock import MILLISECOND, WallClock
from guests import image as built_in
from tests.turns import turns, until

# A boot sector that prints a letter by int 10h and echoes keys; assembled by hand so that nothing from outside is needed.
ECHO = bytes.fromhex(
    "31c0 8ed8"  # xor ax, ax; mov ds, ax
    "b00d b40e bb0700 cd10"  # carriage return
    "b03e cd10"  # '>'
    "b400 cd16"  # wait for a key
    "b40e cd10"  # echo it
    "ebf6"  # jmp to the wait
)
COUNT = bytes.fromhex("31c0 8ed8 66ff060006 ebf9")  # inc dword [0x600], for ever
HALT = bytes.fromhex("fa f4 ebfd")  # cli; hlt
SLEEP = bytes.fromhex("fb f4 66ff060006 ebf8")  # sti; hlt; inc dword [0x600]
"""Halted except for the timer's interrupt."""


def sector(code: bytes) -> bytes:
    return code.ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    """Disk images by what their boot sector does."""
    made = {}
    for name, code in {"echo": ECHO, "count": COUNT, "halt": HALT, "sleep": SLEEP, "nothing": b""}.items():
        made[name] = tmp_path / f"{name}.img"
        made[name].write_bytes((sector(code) if code else bytes(512)) + bytes(512 * 31))
    return made


def machine(image: Path, name: str = "vm", **parts: object) -> VmConfig:
    return replace(VmConfig(name=name, memory="2M", disks=[Disk(image, "ro")]), **parts)  # type: ignore[arg-type]


def counter(vm: avmm.Vm) -> int:
    return int.from_bytes(vm.partition.memory.read(0x600, 4), "little")


def state_of(vm: avmm.Vm) -> RunState:
    return vm.state


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(params=["real", "virtual"])
def clock(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- many at once


@pytest.mark.asyncio
async def test_several_machines_at_once(images: dict[str, Path]) -> None:
    """I10."""
    async with Host() as host:
        vms = []
        for i, clock in enumerate(("real", "virtual", "real", "virtual")):
            vms.append(await host.create_vm(machine(images["echo"], f"vm{i}", clock=clock)))
        busy = await host.create_vm(machine(images["count"], "busy", clock="real"))
        await asyncio.gather(*(vm.start() for vm in [*vms, busy]))

        async def use(vm: avmm.Vm) -> str:
            await vm.screen.wait_for(">", 30)
            await vm.keyboard.type(f"this is {vm.name}")
            return await vm.screen.wait_for(f">this is {vm.name}", 30)

        shown = await asyncio.gather(*(use(vm) for vm in vms))
        for i, text in enumerate(shown):
            assert f"this is vm{i}" in text
            assert not any(f"this is vm{j}" in text for j in range(4) if j != i)
        assert counter(busy) > 1000
        assert all(vm.state is RunState.RUNNING for vm in vms)


@pytest.mark.asyncio
async def test_a_crash_stays_where_it_is(images: dict[str, Path]) -> None:
    async def broken(cpu: avmm.ScriptCpu) -> None:
        await cpu.inb(0x40)
        raise RuntimeError("the VMM has a bug")

    async with Host() as host:
        healthy = await host.create_vm(machine(images["echo"], "healthy"))
        crashing = await host.create_vm(VmConfig(name="crashing", memory="1M"), guest=broken)
        await healthy.start()
        await crashing.start()
        with pytest.raises(avmm.GuestFailure, match="the VMM has a bug"):
            await crashing.wait_off()
        assert crashing.state is RunState.FAILED
        await healthy.screen.wait_for(">", 10)
        await healthy.keyboard.type("well")
        await healthy.screen.wait_for(">well", 10)
        await host.remove_vm(crashing)
        again = await host.create_vm(VmConfig(name="crashing", memory="1M"))
        assert again.state is RunState.CREATED
    assert healthy.state is RunState.OFF


@pytest.mark.asyncio
async def test_machines_leave_nothing(images: dict[str, Path]) -> None:
    async def some(count: int) -> list[weakref.ref[object]]:
        gone: list[weakref.ref[object]] = []
        async with Host() as host:
            for i in range(count):
                clock = ("real", "virtual")[i & 1]
                vm = await host.create_vm(machine(images[("echo", "count", "sleep", "halt")[i % 4]], f"vm{i}", clock=clock))
                gone += [weakref.ref(vm), weakref.ref(vm.partition), weakref.ref(vm.partition.processor)]
                if i % 5:
                    await vm.start()
                    await turns(5)
                if i % 3 == 0:
                    await host.remove_vm(vm)
        return gone

    await some(2)
    before, threads, tasks = descriptors(), threading.active_count(), len(asyncio.all_tasks())
    gone = await some(20)
    gc.collect()
    assert (descriptors(), threading.active_count(), len(asyncio.all_tasks())) == (before, threads, tasks)
    assert sum(reference() is not None for reference in gone) == 0


@pytest.mark.asyncio
async def test_memory_is_given_back(images: dict[str, Path]) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    async def turn() -> None:
        async with Host() as host:
            vm = await host.create_vm(machine(images["count"], memory="64M"))
            await vm.start()
            vm.partition.memory.write(1 << 20, bytes(range(256)) * (40 << 12))  # 40 MiB become resident
            await vm.sleep(0.001)

    for _ in range(3):
        await turn()
    gc.collect()
    before = resident()
    for _ in range(8):
        await turn()
    gc.collect()
    assert resident() - before < 24 << 20  # the memory of less than one of the eight


# -- lifecycle


async def time_passes(vm: avmm.Vm) -> None:
    """Let two ticks of the timer pass for the host, and everything have its turn."""
    if isinstance(vm.partition.clock, WallClock):
        vm.partition.clock.origin -= 120 * MILLISECOND
    await turns(200)


@pytest.mark.asyncio
async def test_pause_and_resume(images: dict[str, Path], clock: str) -> None:
    async with Host() as host:
        vm = await host.create_vm(machine(images["count"], clock=clock))
        await vm.start()
        await vm.wait_until(lambda: counter(vm) > 1000)
        await vm.pause()
        assert vm.state is RunState.PAUSED
        at, now = counter(vm), vm.now
        await time_passes(vm)
        assert (counter(vm), vm.now) == (at, now)
        await vm.pause()  # once more does nothing
        await vm.resume()
        await vm.wait_until(lambda: counter(vm) > at + 1000)
        await vm.resume()
        assert state_of(vm) is RunState.RUNNING


@pytest.mark.asyncio
async def test_a_halted_machine_pauses(images: dict[str, Path], clock: str) -> None:
    async with Host() as host:
        vm = await host.create_vm(machine(images["sleep"], clock=clock))
        await vm.start()
        await vm.wait_until(lambda: counter(vm) >= 2)
        await vm.pause()
        at = counter(vm)
        await time_passes(vm)
        assert counter(vm) == at
        await vm.resume()
        await vm.wait_until(lambda: counter(vm) > at)


@pytest.mark.asyncio
async def test_memory_that_the_host_does_not_give_is_one_sentence(images: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    async with Host() as host:
        with monkeypatch.context() as patch:
            patch.setattr(mmap, "mmap", refuse)
            with pytest.raises(ConfigError, match="2M of memory is more than this host gives us now: Cannot allocate memory"):
                await host.create_vm(machine(images["echo"], disks=[Disk(images["echo"])]))
        await host.create_vm(machine(images["echo"], disks=[Disk(images["echo"])]))  # the image is free, and so is the name


@pytest.mark.asyncio
@pytest.mark.parametrize("what", ["count", "halt", "sleep", "echo"])
async def test_the_reset_button(images: dict[str, Path], clock: str, what: str) -> None:
    async with Host() as host:
        vm = await host.create_vm(machine(images[what], clock=clock))
        await vm.start()
        await vm.sleep(0.02)
        vm.partition.memory.write(0x7C00, bytes(512))
        await vm.reset()
        await vm.wait_until(lambda: vm.stats.resets == 1)
        await vm.sleep(0.02)
        assert vm.partition.memory.read(0x7C00, 512) == images[what].read_bytes()[:512]  # booted again
        assert vm.state is RunState.RUNNING
        if what == "echo":
            await vm.keyboard.type("again")
            await vm.screen.wait_for(">again")


@pytest.mark.asyncio
async def test_reset_while_paused_happens_on_resume(images: dict[str, Path], clock: str) -> None:
    async with Host() as host:
        vm = await host.create_vm(machine(images["echo"], clock=clock))
        await vm.start()
        await vm.screen.wait_for(">")
        await vm.pause()
        await vm.reset()
        await turns()
        assert (vm.state, vm.stats.resets) == (RunState.PAUSED, 0)
        await vm.resume()
        await vm.wait_until(lambda: vm.stats.resets == 1)
        await vm.screen.wait_for(">")


@pytest.mark.asyncio
@pytest.mark.parametrize("state", ["created", "running", "halted", "paused", "off", "failed"])
async def test_shutdown_in_every_state(images: dict[str, Path], clock: str, state: str) -> None:
    async def broken(cpu: avmm.ScriptCpu) -> None:
        raise RuntimeError("broken")

    async with Host() as host:
        config = machine(images["halt" if state == "halted" else "count"], clock=clock)
        vm = await host.create_vm(config, guest=broken if state == "failed" else None)
        if state != "created":
            await vm.start()
            await (until(lambda: vm.state is RunState.FAILED) if state == "failed" else turns())
        if state == "paused":
            await vm.pause()
        elif state == "off":
            vm.partition.power_off("by the test")
            assert await vm.wait_off() == "by the test"
        wanted = {"halted": RunState.RUNNING}.get(state) or RunState(state)
        assert vm.state is wanted
        await vm.shutdown()
        assert vm.state is (RunState.FAILED if state == "failed" else RunState.OFF)
        await vm.shutdown()  # again does nothing
        assert vm.stats.machine_ns >= 0
        other = await host.create_vm(replace(config, name="other", disks=[Disk(config.disks[0].path)]))  # the image is free again
        assert other.state is RunState.CREATED


@pytest.mark.asyncio
async def test_waiting_for_a_machine_that_ends(images: dict[str, Path]) -> None:
    async with Host() as host:
        vm = await host.create_vm(machine(images["echo"]))
        await vm.start()
        waits = [
            asyncio.ensure_future(vm.screen.wait_for("never")),
            asyncio.ensure_future(vm.serial.wait_for("never")),
            asyncio.ensure_future(vm.wait_until(lambda: False)),
        ]
        await asyncio.sleep(0)
        vm.partition.power_off("pulled")
        for wait in waits:
            with pytest.raises(avmm.MachineEnded, match="pulled"):
                await wait
        await vm.sleep(1)  # returns at once
        with pytest.raises(avmm.MachineEnded):
            await vm.screen.wait_for("never")


@pytest.mark.asyncio
async def test_a_timeout_shows_what_there_was(images: dict[str, Path]) -> None:
    async with Host() as host:
        vm = await host.create_vm(machine(images["echo"]))
        await vm.start()
        await vm.screen.wait_for(">")
        with pytest.raises(avmm.WaitTimeout, match=r"(?s)0\.2 s of machine time passed .*'no such text'.*>"):
            await vm.screen.wait_for("no such text", timeout=0.2)
        with pytest.raises(avmm.WaitTimeout, match="serial line"):
            await vm.serial.wait_for("hello", timeout=0.1)
        assert vm.state is RunState.RUNNING


@pytest.mark.asyncio
async def test_an_error_in_the_body_goes_on_and_everything_is_closed(images: dict[str, Path]) -> None:
    before = descriptors()
    vms: list[avmm.Vm] = []

    async def scenario() -> None:
        async with Host() as host:
            for clock in ("real", "virtual"):
                vms.append(await host.create_vm(machine(images["count"], clock, clock=clock)))
                await vms[-1].start()
            await turns()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await scenario()
    assert [vm.state for vm in vms] == [RunState.OFF, RunState.OFF]
    assert descriptors() == before


@pytest.mark.asyncio
async def test_cancelled_while_waiting(images: dict[str, Path]) -> None:
    async def scenario() -> None:
        async with Host() as host:
            vm = await host.create_vm(machine(images["count"]))
            await vm.start()
            await vm.screen.wait_for("never", timeout=3600)

    task = asyncio.ensure_future(scenario())
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- descriptions that are wrong


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"memory": "512K"}, "512K of memory is too little: a PC needs at least 1M"),
        ({"memory": "0"}, "too little"),
        ({"memory": "64G"}, "64G of memory is too much"),
        ({"memory": "lots"}, "cannot read 'lots' as a size"),
        ({"memory": "-5M"}, "cannot read '-5M' as a size"),
        ({"clock": "sundial"}, "there is no clock 'sundial'"),
        ({"initrd": "x"}, "an initrd needs a kernel"),
        ({"append": "x"}, "a kernel command line needs a kernel"),
        ({"disks": [Disk("x")] * 5}, "takes four drives"),
        ({"disks": [Disk("x")] * 4, "cdrom": "y"}, "takes four drives"),
        ({"floppies": [Disk("x")] * 3}, "two floppies"),
    ],
)
def test_wrong_at_once(parts: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(VmConfig(), **parts)  # type: ignore[arg-type]
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.asyncio
async def test_wrong_when_made(images: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.img").write_bytes(b"")
    (tmp_path / "short.img").write_bytes(b"short")
    (tmp_path / "text").write_text("this is not a kernel " * 1000)
    os.mkfifo(tmp_path / "fifo")
    good = Disk(images["echo"])
    wrong: list[tuple[VmConfig, type[Exception], str]] = [
        (VmConfig(disks=[Disk(tmp_path / "missing.img")]), ImageError, "does not exist"),
        (VmConfig(disks=[Disk(tmp_path)]), ImageError, "is a directory"),
        (VmConfig(disks=[Disk(tmp_path / "empty.img")]), ImageError, "too short"),
        (VmConfig(disks=[Disk(tmp_path / "short.img")]), ImageError, "too short"),
        (VmConfig(disks=[Disk(tmp_path / "fifo", "ro")]), ImageError, "not a file"),
        (VmConfig(disks=[good, good]), ImageError, "in use"),
        (VmConfig(disks=[good, Disk(tmp_path / "missing.img")]), ImageError, "does not exist"),
        (VmConfig(disks=[good], cdrom=tmp_path / "missing.iso"), ImageError, "does not exist"),
        (VmConfig(floppies=[Disk(tmp_path / "missing.img")]), ImageError, "does not exist"),
        (VmConfig(disks=[good], kernel=tmp_path / "missing"), ConfigError, "cannot read the kernel"),
        (VmConfig(disks=[good], kernel=tmp_path / "text"), BootError, "is no kernel"),
        (VmConfig(disks=[good], kernel=tmp_path), ConfigError, "cannot read the kernel"),
        (VmConfig(kernel=tmp_path / "text", initrd=tmp_path / "missing"), ConfigError, "cannot read the initrd"),
        (VmConfig(disks=[good], bios=tmp_path / "missing"), ConfigError, "cannot read the firmware"),
        (VmConfig(disks=[good], boot="xyz"), ConfigError, "boot order"),
        (VmConfig(disks=[good], placement={"pit": "moon"}), ConfigError, "pit"),
    ]
    async with Host() as host:
        running = await host.create_vm(machine(images["sleep"], "running", disks=[Disk(images["sleep"])]))
        await running.start()
        files, tasks = descriptors(), len(asyncio.all_tasks())
        wrong.append((VmConfig(disks=[Disk(images["sleep"])]), ImageError, "another machine has locked it"))
        for config, kind, text in wrong:
            with pytest.raises(kind) as caught:
                await host.create_vm(config)
            assert text in str(caught.value), config
            assert "\n" not in str(caught.value)
            assert (descriptors(), len(asyncio.all_tasks())) == (files, tasks), config
        with pytest.raises(ConfigError, match="a machine called running already"):
            await host.create_vm(machine(images["echo"], "running"))
        assert running.state is RunState.RUNNING
        assert (await host.create_vm(VmConfig(disks=[good]))).state is RunState.CREATED  # what was refused holds nothing


@pytest.mark.asyncio
async def test_an_image_without_a_boot_sector(images: dict[str, Path]) -> None:
    async with Host() as host:
        vm = await host.create_vm(machine(images["nothing"]))
        await vm.start()
        await vm.wait_until(lambda: vm.boot_failure != "", what="the BIOS gave up")
        assert "\n" not in vm.boot_failure
        assert vm.screen.text() != ""
        empty = await host.create_vm(VmConfig(name="empty", memory="1M"))
        await empty.start()
        await empty.wait_until(lambda: empty.boot_failure != "")


# -- what a user holds


@pytest.mark.asyncio
async def test_screen_keyboard_serial(clock: str) -> None:
    async with Host() as host:
        vm = await host.create_vm(machine(built_in(), memory="8M", clock=clock, disks=[Disk(built_in(), "overlay")]))
        heard: list[bytes] = []
        vm.serial.listeners.append(heard.append)
        await vm.start()
        await vm.screen.wait_for("ok>", 20)
        await vm.keyboard.type("help\n")
        text = await vm.screen.wait_for(lambda text: "dir" in text and text.endswith("ok>"), 20)
        assert "halt" in text
        vm.keyboard.feed("mem\n")
        await vm.screen.wait_for("KiB", 20)
        with pytest.raises(ValueError, match="'€' cannot be typed"):
            await vm.keyboard.type("€")
        vm.mouse.move(5, -3)
        vm.mouse.button(0, True)
        vm.mouse.button(0, False)
        width, height, pixels = vm.screen.pixels()
        assert len(pixels) == 3 * width * height
        assert b"".join(heard) == bytes(vm.serial.output)


@pytest.mark.asyncio
async def test_the_counters_agree(images: dict[str, Path]) -> None:
    async with Host() as host:
        vm = await host.create_vm(VmConfig(memory="8M", clock="real", disks=[Disk(built_in(), "overlay")]))
        await vm.start()
        await vm.screen.wait_for("ok>", 20)
        await vm.keyboard.type("dir\n")
        await vm.screen.wait_for("dir", 20)
        await vm.sleep(0.1)
        await vm.pause()
        stats = vm.stats
        again = vm.stats
        assert (again.exits, again.injected) == (stats.exits, stats.injected)
        answered = sum(port.reads + port.writes for port in (*stats.ports, *stats.memory))
        assert answered + stats.floating <= 4 * sum(stats.exits.values())
        ports = [port for port in stats.ports if port.device == "ata0"]
        assert ports
        assert all(not port.inside for port in ports)
        assert sum(port.reads + port.writes for port in stats.ports if not port.inside) <= stats.outside + stats.plain
        assert 0 < stats.injected <= stats.exits["interrupt"] <= stats.exceptions + stats.injected
        assert stats.longest_slice_ns > 0
        assert stats.slices > 5
        assert min(stats.guest_ns, stats.inside_ns, stats.outside_ns, stats.idle_ns) > 0
        assert stats.guest_ns + stats.inside_ns + stats.outside_ns + stats.idle_ns <= 1.5 * stats.machine_ns
        assert json.loads(json.dumps(stats.as_dict()))["injected"] == stats.injected
        assert "handled inside" in str(stats)


@pytest.mark.asyncio
async def test_an_overlay_that_stays(images: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base.img"
    base.write_bytes(random.Random(4).randbytes(1 << 16))
    before = base.read_bytes()

    async def write(cpu: avmm.ScriptCpu) -> None:
        for port, value in ((0x1F6, 0xE0), (0x1F2, 1), (0x1F3, 9), (0x1F4, 0), (0x1F5, 0), (0x1F7, 0x30)):
            await cpu.outb(port, value)
        while await cpu.inb(0x3F6) & 0x88 != 0x08:
            pass
        await cpu.outsw(0x1F0, b"overlaid" * 64)
        while await cpu.inb(0x3F6) & 0x80:
            pass
        done.set()

    for _ in range(2):
        done = asyncio.Event()
        async with Host() as host:
            config = VmConfig(memory="1M", disks=[Disk(base, "overlay", tmp_path / "changes")])
            vm = await host.create_vm(config, guest=write)
            await vm.start()
            await vm.wait_until(done.is_set)
            disk = vm.machine.disks[0]
            assert await disk.read(9, 1) == b"overlaid" * 64
            assert await disk.read(8, 1) == before[8 * 512 : 9 * 512]
        assert base.read_bytes() == before
    async with Host() as host:
        vm = await host.create_vm(VmConfig(memory="1M", disks=[Disk(base, "overlay", tmp_path / "changes")]))
        assert await vm.machine.disks[0].read(9, 1) == b"overlaid" * 64  # kept from the run before


@pytest.mark.asyncio
async def test_requests_of_a_busy_guest_are_served_soon() -> None:
    """A guest that polls instead of halting gets its disk's answer within one short slice, not when a whole slice is over."""
    spins: list[int] = []

    async def poll(cpu: avmm.ScriptCpu) -> None:
        for _ in range(20):
            for port, value in ((0x1F6, 0xE0), (0x1F2, 1), (0x1F3, 1), (0x1F4, 0), (0x1F5, 0), (0x1F7, 0x20)):
                await cpu.outb(port, value)
            count = 0
            while await cpu.load(0x500, 1) == 0 and count < 1_000_000:  # RAM only: nothing that lets the event loop run
                count += 1
                if vm.machine.channels()[0].sequencer.pending is None:
                    break
            spins.append(count)
            await cpu.insw(0x1F0, 256)

    async with Host() as host:
        vm = await host.create_vm(VmConfig(memory="1M", clock="real", slice_us=100_000, disks=[Disk(built_in(), "ro")]), guest=poll)
        await vm.start()
        await vm.wait_until(lambda: len(spins) == 20, 20)
    assert sorted(spins)[10] < 5_000  # a slice of 100 ms would be some 50,000


@pytest.mark.asyncio
async def test_an_io_bar_moved_onto_another_device_and_away_takes_nothing_along() -> None:
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="1M"))
        ports = vm.partition.ports

        def configure(offset: int, value: int) -> None:
            ports.write(0xCF8, 4, 0x80000900 | offset)  # 00:01.1, the IDE function
            ports.write(0xCFC, 4, value)

        configure(0x04, 1)
        for base in (0xC000, 0x20, 0xC010):
            configure(0x20, base)
            assert ports.owner(0x21) == "pic"
        assert (ports.owner(0xC000), ports.owner(0xC010)) == (None, "bmide")
