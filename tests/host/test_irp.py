"""The I/O request packet."""

from __future__ import annotations

import asyncio

import pytest

from avmm.devices.device import Device
from avmm.hypervisor.irp import Irp, IrpKind
from tests.devices.bench import Bench


def make(kind: IrpKind = IrpKind.PORT_READ) -> Irp:
    return Irp(kind, Device(Bench()), 0x1F7, 2, 0x55, partition="vm0")


@pytest.mark.asyncio
async def test_complete_once() -> None:
    irp = make()
    assert (irp.kind, irp.address, irp.size, irp.value, irp.partition) == (IrpKind.PORT_READ, 0x1F7, 2, 0x55, "vm0")
    before = irp.done
    asyncio.get_running_loop().call_soon(irp.complete, 0x1234)
    assert await irp == 0x1234
    irp.complete(1)
    irp.fail(ValueError())
    assert (before, irp.done) == (False, True)
    assert (await irp, irp.value) == (0x1234, 0x1234)


@pytest.mark.asyncio
async def test_a_write_keeps_its_value() -> None:
    irp = make(IrpKind.PORT_WRITE)
    irp.complete()
    assert (await irp, irp.value) == (0, 0x55)


@pytest.mark.asyncio
async def test_failure_is_raised_where_it_is_awaited() -> None:
    irp = make()
    irp.fail(ValueError("bug"))
    irp.complete(3)
    with pytest.raises(ValueError, match="bug"):
        await irp


@pytest.mark.asyncio
async def test_given_up_by_a_cancelled_vcpu() -> None:
    irp = make()

    async def vcpu() -> int:
        return await irp

    task = asyncio.create_task(vcpu())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert irp.done
    irp.complete(1)
    irp.fail(ValueError())


@pytest.mark.asyncio
async def test_ids_hops_and_slots() -> None:
    first, second = make(), make()
    assert second.id == first.id + 1
    assert Irp(IrpKind.PORT_READ, first.device, 0, id=5).id == 5
    first.hop("service-os")
    (name, when), = first.hops
    assert name == "service-os"
    assert when >= first.created
    assert not hasattr(first, "__dict__")
    assert repr(first) == f"<Irp {first.id} port read device:0x1f7 size 2>"
