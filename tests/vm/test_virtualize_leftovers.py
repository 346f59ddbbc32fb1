"""A device that was taken and given back costs exactly what it did before: counted, not timed, so that every run gives the same answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import avmm
from avmm.cpu.unicorn.processor import UnicornProcessor
from avmm.devices.device import Device, PortRange
from avmm.hypervisor.partition import Partition
from tests.vm.pc import booted
from tests.vm.test_virtualize_guests import FRAME, POLLING

CYCLES, ROUNDS = 30, 6
HOST_TIME = ("run_ns", "run_cycles", "handler_cycles")
MARK = "mov dx, 0x2f0\nout dx, al\n"
SENDING = """
    cli
    mov dx, 0x3fb           ; 115,200 bit/s
    mov al, 0x83
    out dx, al
    mov dx, 0x3f8
    mov al, 1
    out dx, al
    inc dx
    mov al, 0
    out dx, al
    mov dx, 0x3fb
    mov al, 3
    out dx, al
again:
    mov cx, 40
one:
    mov dx, 0x3fd
wait_for_room:
    in al, dx
    test al, 0x20
    jz wait_for_room
    mov dx, 0x3f8
    mov al, cl
    out dx, al
    loop one
"""
GUESTS = {
    "ata0": POLLING.replace("mov [0x7e00], bp", MARK).replace("cmp cx, 200", "cmp cx, 20"),
    "com1": SENDING + MARK + "jmp again",
    "frame0": FRAME.replace("mov [0x7e00], ebp", MARK),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one round of the guest's work cost."""

    guest: tuple[tuple[str, int], ...]
    """What the guest and its processor did: units executed, blocks, accesses of each kind."""
    exits: int
    """Accesses to the device that trapped."""
    calls: int
    """Functions that the VMM called, Python's and C's."""


class Meter(Device):
    """At port 2F0h: a write to it ends a round."""

    ports = (PortRange(0x2F0, 1),)
    name = "meter"

    def __init__(self, board: Any) -> None:
        super().__init__(board)
        self.costs: list[Cost] = []
        self.calls = 0
        self._before: tuple[dict[str, int], int, int] | None = None

    def write(self, port: int, size: int, value: int) -> None:
        partition: Partition = self.board.partition  # type: ignore[attr-defined]  # the board is a slot
        processor = partition.processor
        assert isinstance(processor, UnicornProcessor)
        guest = {name: count for name, count in processor.counters().items() if name not in HOST_TIME}
        guest["units"] = processor.executed()
        buses = (partition.ports, partition.address_space)
        tallies = [tally for bus in buses for tally in bus.every()]
        exits = sum(tally.reads + tally.writes for tally in tallies if tally.device in GUESTS and not tally.direct)
        if self._before is not None:
            before, exits_before, calls = self._before
            spent = tuple((name, count - before[name]) for name, count in guest.items())
            self.costs.append(Cost(spent, exits - exits_before, self.calls - calls))
        self._before = guest, exits, self.calls

    def read(self, port: int, size: int) -> int:
        return 0xFF

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count calls meanwhile."""

        def called(frame: FrameType, event: str, what: object) -> None:
            self.calls += event in ("call", "c_call")

        sys.setprofile(called)
        try:
            yield
        finally:
            sys.setprofile(None)


async def measure(vm: avmm.Vm, meter: Meter) -> list[Cost]:
    """Return what each of a few rounds costs."""
    first = len(meter.costs) + 2  # the one under way is not whole, and the next may translate code
    with meter.counting():
        await vm.wait_until(lambda: len(meter.costs) >= first + ROUNDS, 60, "the guest had worked enough")
    return meter.costs[first : first + ROUNDS]


@pytest.mark.asyncio
@pytest.mark.parametrize("device", GUESTS)
async def test_nothing_is_left_behind(tmp_path: Path, device: str) -> None:
    """H10, H13: after any number of cycles no access traps, and the guest, its processor and the VMM do what they did before the first."""
    async with booted(tmp_path, GUESTS[device], physical=[device], devices=[Meter]) as vm:
        meter = vm.partition.devices["meter"]
        assert isinstance(meter, Meter)
        before = await measure(vm, meter)
        for number in range(CYCLES):
            for switch in (vm.virtualize, vm.devirtualize):
                report = await switch(device, when=("between", "middle")[number % 2], on_bound="defer")
                assert report.done, report
        after = await measure(vm, meter)
    assert {cost.guest for cost in after} == {cost.guest for cost in before}
    assert {cost.exits for cost in before + after} == {0}
    calls = [sum(cost.calls for cost in costs) for costs in (before, after)]
    assert calls[1] < 1.003 * calls[0]  # where the host's turns begin and end is not the guest's to say


@pytest.mark.asyncio
async def test_a_virtualized_disk_costs_exits(tmp_path: Path) -> None:
    """The meter of the test above tells the two apart."""
    async with booted(tmp_path, GUESTS["ata0"], physical=["ata0"], devices=[Meter]) as vm:
        meter = vm.partition.devices["meter"]
        assert isinstance(meter, Meter)
        direct = await measure(vm, meter)
        assert (await vm.virtualize("ata0", on_bound="defer")).done
        virtualized = await measure(vm, meter)
    assert min(cost.exits for cost in virtualized) > 20 * 7
    assert min(cost.calls for cost in virtualized) > 1.2 * max(cost.calls for cost in direct)
