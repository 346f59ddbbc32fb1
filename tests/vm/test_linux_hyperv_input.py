"""Debian's unmodified Linux with its stock hyperv-keyboard module: typing goes over VMBus while the driver is there."""

from __future__ import annotations

from pathlib import Path

import pytest

import avmm
from tests.vm.linux import BOOT, Boot, Shell, trouble

pytestmark = [pytest.mark.linux, pytest.mark.guests, pytest.mark.asyncio]


async def test_typing(tmp_path: Path) -> None:
    boot = Boot(tmp_path, modules=("hv_vmbus", "hyperv-keyboard"))
    async with avmm.Host() as host:
        vm = await host.create_vm(boot.config(hyperv=True))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        keyboard, bus = vm.machine.synthetic_keyboard, vm.machine.vmbus
        assert keyboard is not None
        assert bus is not None
        await shell.run("(setsid sh </dev/tty1 >/dev/tty1 2>&1 &)")
        assert keyboard.ready
        emulated = len(vm.machine.keyboard.keyboard.queue)
        await vm.keyboard.type("echo 'Over VMBus: ~!@#$%^&*()_+{}|' >/tmp/typed\n")
        assert await shell.run("cat /tmp/typed") == "Over VMBus: ~!@#$%^&*()_+{}|"
        assert emulated == len(vm.machine.keyboard.keyboard.queue)
        channel = bus.channel(keyboard)
        assert channel is not None
        assert channel.stats.sent > 80

        # An arrow key has a prefix: the shell brings the last line back.
        await shell.run("rm /tmp/typed")
        await vm.keyboard.key("up")
        await vm.keyboard.key("ret")
        assert (await shell.run("cat /tmp/typed")).startswith("Over VMBus")

        # Without the driver the emulated keyboard takes over.
        await shell.run("rmmod hyperv_keyboard")
        assert bus.channel(keyboard) is None
        sent = channel.stats.sent
        await vm.keyboard.type("echo by 8042 >/tmp/typed\n")
        assert await shell.run("cat /tmp/typed") == "by 8042"
        assert channel.stats.sent == sent
        log = await shell.run("dmesg")
        assert [line for line in trouble(log) if not line.endswith("unstable due to running on Hyper-V")] == []
        vm.serial.write("poweroff -f\n")
        assert await vm.wait_off(BOOT) == "the guest entered ACPI S5"
