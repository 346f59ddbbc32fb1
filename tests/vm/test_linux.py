"""Debian's unmodified Linux kernel on the whole machine: a shell that answers, disks that keep what is written, an end by ACPI."""

from __future__ import annotations

import hashlib
import lzma
import random
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop

import avmm
from avmm.control.stats import Stats
from tests import third_party
from tests.vm import initrd
from tests.vm.linux import BOOT, CD_MODULES, COMMAND_LINE, DISK_MODULES, SHELL, Boot, Shell, copies, ext4, read_file, tool, trouble

pytestmark = [pytest.mark.linux, pytest.mark.guests]

RAW_AT = 8 << 20  # where the raw disk is written, bytes


@dataclass
class Session:
    """What was seen of one session at the shell."""

    answers: dict[str, str]
    off: str
    console: bytes
    machine_ns: int
    injected: int
    blocks: int
    exits: dict[str, int]
    stats: Stats
    disks: list[Path]


async def session(folder: Path, disks: list[Path], clock: str, parameters: dict[str, str] | None = None) -> Session:
    """Boot to a shell, write to both disks, unmount and power off."""
    answers: dict[str, str] = {}
    boot = Boot(folder, modules=DISK_MODULES, parameters=parameters or {}, append=COMMAND_LINE + " avmm.colour=green colour=blue")
    async with avmm.Host() as host:
        vm = await host.create_vm(boot.config(clock=clock, disks=[avmm.Disk(disk) for disk in disks]))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        first, second = await shell.drive("0:0:0:0"), await shell.drive("0:0:1:0")
        for name, command in {
            "arithmetic": "echo $((6 * 7))",
            "uname": "uname -a",
            "command line": "cat /proc/cmdline",
            "environment": "echo $colour",
            "clock": "hwclock -u -r",
            "set clock": "date -u -s '2031-05-06 07:08:09' && hwclock -u -w && hwclock -u -r",
            "mount": f"mount -t ext4 {first} /mnt",
            "write": "dd if=/dev/urandom of=/mnt/random bs=64k count=40 && seq 1 20000 >/mnt/numbers",
            "write more": "mkdir /mnt/sub && echo hello >/mnt/sub/hello",
            "sums": "sync; sha256sum /mnt/random /mnt/numbers",
            "raw": f"dd if=/mnt/random of={second} bs=4k seek={RAW_AT >> 12} count=300 conv=fsync",
            "unmount": "umount /mnt",
            "mount again": f"echo 3 >/proc/sys/vm/drop_caches; mount -o ro -t ext4 {first} /mnt",
            "sums again": "sha256sum /mnt/random /mnt/numbers && umount /mnt",
            "interrupts": "cat /proc/interrupts",
            "log": "dmesg",
        }.items():
            answers[name] = await shell.run(command)
        vm.serial.write("poweroff -f\n")
        off = await vm.wait_off(BOOT)
        stats = vm.stats
        counters = vm.partition.processor.counters()  # type: ignore[attr-defined]
        return Session(
            answers, off, bytes(vm.serial.output), stats.machine_ns, stats.injected, counters["blocks"], stats.exits, stats, disks
        )


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """An ext4 filesystem and an empty disk, to be copied."""
    folder = tmp_path_factory.mktemp("fresh")
    raw = folder / "raw.img"
    raw.write_bytes(random.Random(5).randbytes(16 << 20))
    return [ext4(folder / "ext4.img", 24), raw]


@pytest.fixture(scope="module")
def virtual(tmp_path_factory: pytest.TempPathFactory, fresh: list[Path]) -> Session:
    """One session in virtual time, which several tests look at."""
    folder = tmp_path_factory.mktemp("virtual")
    return uvloop.run(session(folder, copies(fresh, folder / "disks"), "virtual"))


def check_disks(seen: Session, fresh: list[Path]) -> None:
    """The host finds the filesystem clean, and the bytes that the guest says it wrote, and no others changed."""
    filesystem, raw = seen.disks
    assert "clean" not in tool("e2fsck", "-f", "-n", str(filesystem)).stderr
    sums = dict(line.split()[::-1] for line in seen.answers["sums"].splitlines())
    assert seen.answers["sums"] == seen.answers["sums again"]
    data = read_file(filesystem, "/random")
    assert len(data) == 40 << 16
    assert len(set(data)) == 256
    assert hashlib.sha256(data).hexdigest() == sums["/mnt/random"]
    numbers = read_file(filesystem, "/numbers")
    assert numbers == b"".join(b"%d\n" % n for n in range(1, 20001))
    assert hashlib.sha256(numbers).hexdigest() == sums["/mnt/numbers"]
    assert read_file(filesystem, "/sub/hello") == b"hello\n"
    expected = bytearray(fresh[1].read_bytes())
    expected[RAW_AT : RAW_AT + 300 * 4096] = data[: 300 * 4096]
    assert raw.read_bytes() == expected


def test_a_shell_answers(virtual: Session) -> None:
    answers = virtual.answers
    assert answers["arithmetic"] == "42"
    assert answers["uname"].startswith("Linux ")
    assert "cloud-amd64" in answers["uname"]
    assert answers["command line"] == COMMAND_LINE + " avmm.colour=green colour=blue"
    assert answers["environment"] == "blue"
    assert virtual.off == "the guest entered ACPI S5"


def test_the_real_time_clock(virtual: Session) -> None:
    assert re.match(r"Thu Jan +1 00:00:\d\d 2026", virtual.answers["clock"])
    assert re.search(r"Tue May +6 07:08:(09|1\d) 2031", virtual.answers["set clock"].splitlines()[-1])


def test_what_is_written_is_on_the_host(virtual: Session, fresh: list[Path]) -> None:
    check_disks(virtual, fresh)


def test_the_kernel_complains_about_nothing(virtual: Session) -> None:
    assert trouble(virtual.answers["log"]) == []
    assert trouble("[ 1.0] ata1.00: exception Emask 0x0 SAct 0x0\n") != []
    assert len(re.findall(r"sd 0:0:[01]:0: \[sd[ab]\] Attached SCSI disk", virtual.answers["log"])) == 2


def test_the_disks_use_ultra_dma(virtual: Session) -> None:
    log = virtual.answers["log"]
    assert re.search(r"ata1: PATA max UDMA/33 cmd 0x1f0 ctl 0x3f6 bmdma 0x[0-9a-f]+ irq 14", log)
    assert not re.search(r"configured for PIO|configured for MWDMA", log)
    ports = {(port.device, port.address & 15): port.writes for port in virtual.stats.ports}
    assert ports["bmide", 0] > 20  # a DMA engine was started
    assert virtual.stats.windowed < 4096  # nothing but IDENTIFY went through the data port
    assert int(re.search(r"14: +(\d+) .*ata_piix", virtual.answers["interrupts"])[1]) > 20  # type: ignore[index]
    assert re.search(r"ERR: +0\n *MIS: +0", virtual.answers["interrupts"])


def test_two_runs_in_virtual_time_are_identical(virtual: Session, fresh: list[Path], tmp_path: Path) -> None:
    again = uvloop.run(session(tmp_path, copies(fresh, tmp_path / "disks"), "virtual"))
    assert again.console == virtual.console
    assert again.machine_ns == virtual.machine_ns
    assert again.injected == virtual.injected
    assert again.blocks == virtual.blocks
    assert again.exits == virtual.exits
    for mine, theirs in zip(again.disks, virtual.disks, strict=True):
        assert mine.read_bytes() == theirs.read_bytes()


def test_by_programmed_io(fresh: list[Path], tmp_path: Path) -> None:
    seen = uvloop.run(session(tmp_path, copies(fresh, tmp_path / "disks"), "virtual", {"libata": "dma=0"}))
    check_disks(seen, fresh)
    assert trouble(seen.answers["log"]) == []
    ports = {(port.device, port.address & 15): port.writes for port in seen.stats.ports}
    assert ports.get(("bmide", 0), 0) == 0
    assert seen.stats.windowed > 1 << 20  # the data went through the port, by the window


def test_in_real_time(fresh: list[Path], tmp_path: Path) -> None:
    seen = uvloop.run(session(tmp_path, copies(fresh, tmp_path / "disks"), "real"))
    check_disks(seen, fresh)
    assert trouble(seen.answers["log"]) == []
    assert "Marking TSC unstable" not in seen.answers["log"]  # whatever else the host does
    assert seen.off == "the guest entered ACPI S5"


@pytest.mark.asyncio
async def test_four_drives_on_two_channels(tmp_path: Path) -> None:
    iso = third_party.file("usr/lib/grub-rescue/grub-rescue-cdrom.iso")
    images = []
    for i in range(3):
        image = tmp_path / f"disk{i}.img"
        image.write_bytes(random.Random(i).randbytes(3 << 20))
        images.append(image)
    sums = [hashlib.sha256(image.read_bytes()).hexdigest() for image in [*images, iso]]
    async with avmm.Host() as host:
        boot = Boot(tmp_path, modules=DISK_MODULES + CD_MODULES)
        vm = await host.create_vm(boot.config(disks=[avmm.Disk(image) for image in images], cdrom=iso))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        log = await shell.run("dmesg")
        assert trouble(log) == []
        drives = [await shell.drive(place) for place in ("0:0:0:0", "0:0:1:0", "1:0:0:0", "1:0:1:0")]
        assert sorted(drives) == ["/dev/sda", "/dev/sdb", "/dev/sdc", "/dev/sr0"]
        assert re.search(r"sr 1:0:1:0: .*(Attached|scsi)", log)
        for drive, total in zip(drives, sums, strict=True):
            assert (await shell.run(f"sha256sum {drive}")).split()[0] == total
        await shell.run("mount -t iso9660 -o ro /dev/sr0 /mnt")
        files = await shell.run("find /mnt -type f | head -40")
        assert "/mnt/boot/grub" in files
        listing = await shell.run("ls -l /mnt")
        assert "boot" in listing
        await shell.run("umount /mnt")
        for i, drive in enumerate(drives[:3]):  # all at once, on both channels
            vm.serial.write(f"(echo disk {i} | dd of={drive} conv=fsync,notrunc 2>/dev/null) &\n")
        await shell.run("wait; sync")
        assert trouble(await shell.run("dmesg")) == []
        vm.serial.write("poweroff -f\n")
        assert await vm.wait_off(BOOT) == "the guest entered ACPI S5"
    for i, image in enumerate(images):
        text = b"disk %d\n" % i
        assert image.read_bytes()[:7] == text
        assert image.read_bytes()[512:] == random.Random(i).randbytes(3 << 20)[512:]


@pytest.mark.asyncio
async def test_an_overlay_leaves_the_image_alone(tmp_path: Path, fresh: list[Path]) -> None:
    image = fresh[0]
    before = image.read_bytes()
    async with avmm.Host() as host:
        boot = Boot(tmp_path, modules=DISK_MODULES)
        vm = await host.create_vm(boot.config(disks=[avmm.Disk(image, "overlay"), avmm.Disk(fresh[1], "ro")]))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        drive = await shell.drive("0:0:0:0")
        await shell.run(f"mount -t ext4 {drive} /mnt && seq 1 30000 >/mnt/n && sync && umount /mnt")
        await shell.run(f"echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 {drive} /mnt && [ $(wc -l </mnt/n) = 30000 ] && umount /mnt")
        assert image.read_bytes() == before
    assert image.read_bytes() == before


@pytest.mark.asyncio
async def test_without_an_initrd_the_kernel_panics(tmp_path: Path) -> None:
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="128M", kernel=initrd.kernel(), append="console=ttyS0 panic=0 quiet"))
        await vm.start()
        said = await vm.serial.wait_for(re.compile(r"Kernel panic - not syncing: (.*)\r\n"), BOOT)
        assert "Unable to mount root fs" in said
        await vm.sleep(0.2)
        assert vm.state is avmm.RunState.RUNNING  # it stands there with panic=0, and does not reboot
        assert vm.stats.resets == 0


@pytest.mark.asyncio
async def test_a_panic_reboots_when_told_so(tmp_path: Path) -> None:
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="128M", kernel=initrd.kernel(), append="console=ttyS0 panic=-1 quiet"))
        await vm.start()
        await vm.wait_until(lambda: vm.stats.resets == 1, BOOT, "the kernel rebooted")
        assert vm.state is avmm.RunState.RUNNING


@pytest.mark.asyncio
async def test_reboot_boots_again(tmp_path: Path) -> None:
    await reboot(tmp_path, "")


@pytest.mark.asyncio
@pytest.mark.long
@pytest.mark.parametrize("way", ["reboot=k", "reboot=t", "reboot=p", "reboot=a"])
async def test_reboot_in_every_way(tmp_path: Path, way: str) -> None:
    await reboot(tmp_path, way)


async def reboot(folder: Path, way: str) -> None:
    async with avmm.Host() as host:
        boot = Boot(folder, append=f"{COMMAND_LINE} {way}")
        vm = await host.create_vm(boot.config())
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        await shell.run("echo left >/tmp/left")
        vm.serial.write("reboot -f\n")
        await shell.ready()
        assert vm.stats.resets == 1
        assert await shell.run("ls /tmp") == ""
        assert trouble(await shell.run("dmesg")) == []
        await shell.run("echo kbd >/sys/kernel/reboot/type")  # now by the keyboard controller's port 64h
        vm.serial.write("reboot -f\n")
        await vm.wait_until(lambda: vm.stats.resets == 2, BOOT, "the kernel rebooted again")
        reasons = [str(event) for event in vm.partition.trace_log.events if " reset reason=" in str(event)]
        assert len(reasons) == 2
        assert "keyboard controller" in reasons[1]


@pytest.mark.asyncio
async def test_the_power_button(tmp_path: Path) -> None:
    init = "dd if=/dev/input/$(grep -A4 'Power Button' /proc/bus/input/devices | grep -o 'event[0-9]*') of=/tmp/event bs=24 count=1 &\n"
    async with avmm.Host() as host:
        boot = Boot(tmp_path, init=init + SHELL, modules=("button", "evdev"))
        vm = await host.create_vm(boot.config())
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        assert "Power Button" in await shell.run("cat /proc/bus/input/devices")
        count = re.compile(r" 9: +(\d+)")
        before = int(count.search(await shell.run("cat /proc/interrupts"))[1])  # type: ignore[index]
        await vm.power_button()
        await shell.run("while [ ! -s /tmp/event ]; do sleep 0.1; done")
        after = int(count.search(await shell.run("cat /proc/interrupts"))[1])  # type: ignore[index]
        assert after == before + 1
        event = bytes.fromhex(await shell.run("hexdump -v -e '1/1 \"%02x\"' /tmp/event"))
        assert struct.unpack_from("<HHi", event, 16) == (1, 116, 1)  # EV_KEY, KEY_POWER, down


@pytest.mark.asyncio
async def test_screen_and_keyboard(tmp_path: Path) -> None:
    async with avmm.Host() as host:
        boot = Boot(tmp_path, init="exec sh </dev/tty1 >/dev/tty1 2>&1", append="console=ttyS0 console=tty0 panic=0")
        vm = await host.create_vm(boot.config())
        await vm.start()
        await vm.screen.wait_for("Run /init as init process", BOOT)
        await vm.screen.wait_for(re.compile(r"/ #$"), BOOT)
        assert "Linux version" in vm.serial.text()
        await vm.keyboard.type("clear; echo $((6 * 7)) is The_Answer 'UPPER lower; ~!@{}|<>?'\n")
        await vm.screen.wait_for("42 is The_Answer UPPER lower; ~!@{}|<>?", 10)
        await vm.keyboard.key("ctrl", "c")
        await vm.keyboard.type("printf '\\033[31;44mred\\033[0m\\n'; tty\n")
        await vm.screen.wait_for("/dev/tty1", 10)
        await vm.screen.wait_for(re.compile(r"(?m)^red$"), 10)
        await vm.keyboard.type("grep -c i8042 /proc/interrupts; cat /proc/bus/input/devices | grep -i 'at translated'\n")
        await vm.screen.wait_for("AT Translated Set 2 keyboard", 10)
        assert vm.keyboard.queued == 0


def extract_vmlinux(image: bytes) -> bytes:
    """Return the ELF kernel out of a bzImage (boot.rst, payload_offset and payload_length)."""
    setup = 512 * (image[0x1F1] + 1)
    at, length = struct.unpack_from("<II", image, 0x248)
    payload = image[setup + at : setup + at + length - 4]  # without the size behind it
    return lzma.decompress(payload) if payload[:6] == b"\xfd7zXZ\0" else unpack_lz4(payload)


def unpack_lz4(data: bytes) -> bytes:
    """Return the content of an LZ4 "legacy frame": a magic number, then blocks of 8 MiB, each with its packed size before it."""
    assert data[:4] == b"\x02\x21\x4c\x18"
    out, at = bytearray(), 4

    def length(start: int) -> int:
        nonlocal at
        while start >= 15:
            more = data[at]
            at += 1
            start += more
            if more != 255:
                break
        return start

    while at + 4 <= len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        at += 4
        while at < end:
            token = data[at]
            at += 1
            literals = length(token >> 4)
            out += data[at : at + literals]
            at += literals
            if at >= end:
                break  # the last sequence has no match
            distance = data[at] | data[at + 1] << 8
            at += 2
            count = length(token & 15) + 4
            begin = len(out) - distance
            if distance >= count:
                out += out[begin : begin + count]
            else:
                out += (bytes(out[begin:]) * (count // distance + 1))[:count]
    return bytes(out)


@pytest.mark.asyncio
async def test_an_elf_kernel(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(extract_vmlinux(initrd.kernel().read_bytes()))
    assert kernel.read_bytes()[:4] == b"\x7fELF"
    async with avmm.Host() as host:
        vm = await host.create_vm(Boot(tmp_path).config(kernel=kernel))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        assert await shell.run("cat /proc/cmdline") == COMMAND_LINE
        assert trouble(await shell.run("dmesg")) == []


@pytest.mark.asyncio
async def test_without_acpi_and_without_apics(tmp_path: Path) -> None:
    async with avmm.Host() as host:
        boot = Boot(tmp_path, modules=DISK_MODULES, append=COMMAND_LINE + " noapic nolapic acpi=off")
        image = tmp_path / "disk.img"
        image.write_bytes(bytes(1 << 20))
        vm = await host.create_vm(boot.config(acpi=False, disks=[avmm.Disk(image)]))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        assert "XT-PIC" in await shell.run("cat /proc/interrupts")
        assert await shell.run("echo pic | dd of=/dev/sda conv=fsync") is not None
        assert trouble(await shell.run("dmesg")) == []
    assert image.read_bytes()[:4] == b"pic\n"
