"""One trap of real code: handled inside the hypervisor by a function call, or sent outside as a packet."""

from __future__ import annotations

from pathlib import Path

import pytest

import avmm
from avmm.hypervisor.irp import Irp

COUNTER_2 = bytes.fromhex("b9e803 e442 e2fc faf4")  # mov cx, 1000 / in al, 42h / loop / cli / hlt
SECTORS = bytes.fromhex("baf201 b96400 ec e2fd faf4")  # mov dx, 1f2h / mov cx, 100 / in al, dx / loop / cli / hlt


async def executed(code: bytes, folder: Path, **fields: object) -> tuple[avmm.Vm, list[Irp]]:
    """Boot ``code`` from a disk and wait until it has halted for good; also return the packets that left the hypervisor."""
    image = folder / "boot.img"
    image.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(512 * 63))
    packets: list[Irp] = []
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="1M", disks=[avmm.Disk(image, "ro")], **fields))  # type: ignore[arg-type]
        vm.partition.on_irp.append(packets.append)
        await vm.start()
        await vm.wait_until(lambda: vm.partition.processor.register("rip") == 0x7C00 + len(code), what="the code was done")
        await vm.pause()
    return vm, packets


@pytest.mark.asyncio
async def test_i1_i2_i3_an_access_inside_traps_and_is_answered_with_no_trip_outside(tmp_path: Path) -> None:
    vm, packets = await executed(COUNTER_2, tmp_path)
    (port,) = (port for port in vm.stats.ports if port.address == 0x42)
    assert (port.device, port.inside, port.reads) == ("pit", True, 1000)
    assert vm.stats.exits["in"] >= 1000
    assert vm.stats.inside >= 1000
    assert [irp for irp in packets if irp.device.name == "pit"] == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("code", "address", "count", "fields"),
    [(SECTORS, 0x1F2, 100, {}), (COUNTER_2, 0x42, 1000, {"placement": {"pit": "service"}})],
    ids=["disk", "timer outside"],
)
async def test_i2_i4_what_nobody_inside_has_goes_outside_access_by_access(
    tmp_path: Path, code: bytes, address: int, count: int, fields: dict[str, object]
) -> None:
    vm, packets = await executed(code, tmp_path, **fields)
    (port,) = (port for port in vm.stats.ports if port.address == address)
    assert (port.inside, port.reads) == (False, count)
    sent = [irp for irp in packets if irp.address == address]
    assert len(sent) == count
    assert all(irp.done and irp.hops[0][0] == "service-os" for irp in sent)
