"""Debian's unmodified Linux enlightened: hv_vmbus connects, sees what is offered, unloads, comes back, and reports its crash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random
from uuid import UUID

import pytest

import avmm
from avmm.vmbus.packets import Packet
from avmm.vmbus.server import ChannelEnd, Offer
from avmm.vmbus.wire import Version
from tests.vm.linux import BOOT, Boot, Shell, trouble

pytestmark = [pytest.mark.linux, pytest.mark.guests]

LOAD = "insmod /modules/hv_vmbus.ko"


class Dummy:
    """A channel that no driver knows."""

    def __init__(self, number: int) -> None:
        instance = UUID(int=0x66666666_7777_8888_9999_AAAAAAAAAA00 + number)
        self.offer = Offer(UUID("11111111-2222-3333-4444-555555555555"), instance, name="dummy")

    def opened(self, channel: ChannelEnd) -> None:
        raise AssertionError("nobody opens it")

    def received(self, packet: Packet) -> None:
        raise AssertionError("nobody writes to it")

    def closed(self) -> None:
        raise AssertionError("nobody closes it")


async def appears(shell: Shell, dummy: Dummy) -> None:
    """Wait until the bus has the device."""
    await shell.run(f"until ls /sys/bus/vmbus/devices/{dummy.offer.instance} >/dev/null 2>&1; do sleep 0.05; done")


async def vanishes(shell: Shell, dummy: Dummy) -> None:
    """Wait until it has not."""
    await shell.run(f"while ls /sys/bus/vmbus/devices/{dummy.offer.instance} >/dev/null 2>&1; do sleep 0.05; done")


@pytest.mark.asyncio
async def test_hv_vmbus_connects_sees_offers_unloads_and_reports_a_crash(tmp_path: Path) -> None:
    first, second = Dummy(1), Dummy(2)
    async with avmm.Host() as host:
        vm = await host.create_vm(Boot(tmp_path, modules=("hv_vmbus",)).config(hyperv=True))
        vmbus = vm.machine.vmbus
        assert vmbus is not None
        vmbus.offer(first)
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        await appears(shell, first)
        assert vmbus.version == 0x50003
        assert await shell.run(f"cat /sys/bus/vmbus/devices/{first.offer.instance}/class_id") == "{11111111-2222-3333-4444-555555555555}"
        vmbus.offer(second)  # hot add, and away again
        await appears(shell, second)
        vmbus.rescind(second)
        await vanishes(shell, second)
        for _ in range(2):
            await shell.run("rmmod hv_vmbus")
            assert not vmbus.connected
            await shell.run(LOAD)
            await appears(shell, first)
        log = await shell.run("dmesg")
        interrupts = await shell.run("cat /proc/interrupts")
        events = [event.name for event in vm.partition.trace_log.events]
        vm.serial.write("echo c >/proc/sysrq-trigger\n")
        counts = vm.partition.trace_log.counts
        await vm.wait_until(lambda: counts["guest crash"] > 0, BOOT)
        assert not vmbus.connected  # it said good-bye even so
        report = next(event for event in vm.partition.trace_log.events if event.name == "guest crash")
        assert "Kernel panic - not syncing: sysrq triggered crash" in str(report.fields["message"])
    assert "Hypervisor detected: Microsoft Hyper-V" in log
    assert log.count("Vmbus version:5.3") == 3
    assert trouble(log) == []
    assert int(next(line for line in interrupts.splitlines() if "Hypervisor callback" in line).split()[1]) > 5
    assert not [event for event in events if event.startswith("vmbus")]


@pytest.mark.asyncio
async def test_each_version_carries_a_disk(tmp_path: Path) -> None:
    """Linux' own drivers, told the newest version they may ask for, have their disk by it, and go: by 2.4 without a goodbye."""
    image = tmp_path / "disk.img"
    image.write_bytes(Random(8).randbytes(1 << 20))
    total = hashlib.sha256(image.read_bytes()).hexdigest()
    async with avmm.Host() as host:
        boot = Boot(tmp_path, modules=("hv_vmbus", "hv_storvsc", "sd_mod"))
        vm = await host.create_vm(boot.config(hyperv=True, disks=[avmm.Disk(image)]))
        vmbus, scsi = vm.machine.vmbus, vm.machine.scsi
        assert vmbus is not None
        assert scsi is not None
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        for version in Version:
            await shell.run("rmmod hv_storvsc hv_vmbus; dmesg -c >/dev/null")
            assert vmbus.version in (None, Version.WIN8)
            await shell.run(f"{LOAD} max_version={version:#x}; insmod /modules/hv_storvsc.ko")
            place = "/sys/bus/scsi/devices/*:0:0:0/block"
            await shell.run(f"until ls {place} >/dev/null 2>&1; do sleep 0.05; done")
            assert vmbus.version is version
            assert (await shell.run(f"sha256sum /dev/$(ls {place})")).split()[0] == total
            log = await shell.run("dmesg")
            assert f"Vmbus version:{version >> 16}.{version & 0xFFFF}" in log
            assert trouble(log) == []
        assert scsi.stats.errors == 0
        assert not [event for event in vm.partition.trace_log.events if event.name.startswith("vmbus")]
        vm.serial.write("poweroff -f\n")
        assert await vm.wait_off(BOOT) == "the guest entered ACPI S5"


@pytest.mark.asyncio
async def test_without_hyperv_there_is_none(tmp_path: Path) -> None:
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="1M"))
        assert vm.machine.vmbus is None
        assert vm.partition.processor.callbacks.hypercall is None
        assert vm.partition.processor.callbacks.cpuid(0x40000000, 0, (0, 0, 0, 0))[0] == 0x40000000
        assert vm.partition.msrs.read(0x40000000) is None
