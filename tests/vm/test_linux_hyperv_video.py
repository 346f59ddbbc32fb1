"""Debian's unmodified Linux with its stock hyperv_fb: the console it draws into its frame buffer is what the monitor shows."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

import pytest
from PIL import Image
from prompt_toolkit.output import ColorDepth

import avmm
from avmm.control.seat.picture import look
from console.screen_view import ScreenView
from tests.vm.linux import BOOT, Boot, Shell, trouble

pytestmark = [pytest.mark.linux, pytest.mark.guests, pytest.mark.asyncio]

CELL = (8, 16)
FB = "/sys/class/graphics/fb0"


def row(vm: avmm.Vm, y: int, length: int) -> list[bytes]:
    """Return the pictures of the first characters of a row."""
    width, height, rgb = vm.screen.pixels()
    picture = Image.frombytes("RGB", (width, height), rgb)
    across, down = CELL
    return [picture.crop((x * across, y * down, (x + 1) * across, (y + 1) * down)).tobytes() for x in range(length)]


async def change_mode(shell: Shell, width: int, height: int) -> None:
    """Give the frame buffer driver a mode (``struct fb_videomode``: a pointer, the refresh rate, width, height, and more) and choose it."""
    raw = "".join(f"\\{byte:03o}" for byte in struct.pack("<II", width, height))
    await shell.run(f"{{ head -c 12 /dev/zero; printf '{raw}'; head -c 44 /dev/zero; }} >/tmp/mode; cat /tmp/mode >{FB}/modes")
    await shell.run(f"echo U:{width}x{height}p-0 >{FB}/mode")


async def test_m11_the_console_works_on_synthetic_keyboard_and_video(tmp_path: Path) -> None:
    boot = Boot(tmp_path, modules=("hv_vmbus", "hyperv-keyboard", "hyperv_fb"))
    async with avmm.Host() as host:
        vm = await host.create_vm(boot.config(hyperv=True, resolution="800x600"))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        video, bus = vm.machine.synthetic_video, vm.machine.vmbus
        assert video is not None
        assert bus is not None
        assert (vm.screen.display, video.size, video.location) == (video, (800, 600), 0xF8000000)
        assert vm.screen.text() == ""
        assert await shell.run(f"cat {FB}/name {FB}/virtual_size") == "hyperv_fb\n800,600"
        assert "f8000000-f87fffff : 5620e0c7-8062-4dce-aeb7-520c7ef76171" in await shell.run("cat /proc/iomem")

        # What is typed on one channel is drawn on the other.
        await shell.run("(setsid sh -c 'printf \"\\033[2J\\033[H\\033[?25l\"; cat >/tmp/typed' </dev/tty1 >/dev/tty1 2>&1 &)")
        await vm.sleep(0.3)
        before = vm.screen.generation
        await vm.keyboard.type("xyxz")
        await vm.sleep(0.3)
        assert vm.screen.generation != before
        x, y, again, z, blank = row(vm, 0, 5)
        assert x == again
        assert len({x, y, z, blank}) == 4
        assert not any(blank)
        drawn = await shell.run("sha256sum </dev/fb0")
        assert drawn.split()[0] == hashlib.sha256(bytes(video.vram[: 800 * 600 * 4])).hexdigest()
        vm.screen.save_png(tmp_path / "screen.png")
        with Image.open(tmp_path / "screen.png") as picture:
            assert picture.size == (800, 600)
            assert picture.convert("RGB").crop((0, 0, *CELL)).tobytes() == x
        frame = ScreenView(ColorDepth.DEPTH_24_BIT).frame(look(vm.screen), 80, 30)
        assert len({code for line in frame.rows for code in re.findall(r"\x1b\[[\d;]+m", line)}) > 2, "the console's view of it has more than one colour"

        # The guest changes its resolution, and then its mind.
        for width, height in ((640, 480), (800, 600)):
            await change_mode(shell, width, height)
            await vm.sleep(0.1)
            assert vm.screen.pixels()[:2] == (width, height)

        # Without the driver the VGA is there again, and what the host wants then is what the next one shows.
        video.resolution = (1024, 768)
        await shell.run("echo 0 >/sys/class/vtconsole/vtcon1/bind; rmmod hyperv_fb")
        assert vm.screen.display is vm.screen.vga
        assert bus.channel(video) is None
        await shell.run("insmod /modules/hyperv_fb.ko")
        assert video.size == (1024, 768)
        log = await shell.run("dmesg")
        assert "hyperv_fb: Synthvid Version major 3, minor 5" in log
        assert [line for line in trouble(log) if not line.endswith("unstable due to running on Hyper-V")] == []
        assert not [event for event in vm.partition.trace_log.events if "video" in event.name]
        vm.serial.write("poweroff -f\n")
        assert await vm.wait_off(BOOT) == "the guest entered ACPI S5"
