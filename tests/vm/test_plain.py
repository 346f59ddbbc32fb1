"""Index registers outside: what they point to is a packet, they are none."""

from __future__ import annotations

import pytest

import avmm
from avmm.cpu.script import ScriptCpu

PLACES = dict.fromkeys(("rtc", "pci", "video"), "service")


@pytest.mark.asyncio
async def test_an_index_takes_no_packet_and_what_it_points_to_does() -> None:
    """I2: decided for each access, between two registers of one device."""
    seen: list[tuple[int, ...]] = []

    async def guest(cpu: ScriptCpu) -> None:
        await cpu.outb(0x70, 0x0D)
        valid = await cpu.inb(0x71)
        await cpu.outl(0xCF8, 0x80000800)
        ids = await cpu.inl(0xCFC)
        await cpu.outb(0x3D4, 0x0E)
        await cpu.outb(0x3D5, 3)
        await cpu.outb(0x3D4, 0x0F)
        await cpu.outb(0x3D5, 0x41)
        seen.append((valid, ids, await cpu.inb(0x3D5), await cpu.inb(0x3D4), await cpu.inl(0xCF8)))
        await cpu.outw(0xB004, 0x2000)

    packets: list[list[int]] = []
    for places in ({}, PLACES):
        sent: list[int] = []
        async with avmm.Host() as host:
            vm = await host.create_vm(avmm.VmConfig(memory="1M", placement=places), guest)
            vm.partition.on_irp.append(lambda irp, sent=sent: sent.append(irp.address))  # type: ignore[misc]
            await vm.start()
            await vm.wait_off()
            assert vm.stats.plain == (4 if places else 0)
            packets.append(sent)
    assert packets == [[], [0x71, 0xCFC, 0x3D5, 0x3D5, 0x3D5, 0x3D4, 0xCF8]]
    assert seen == [(0x80, 0x70008086, 0x41, 0x0F, 0x80000800)] * 2
