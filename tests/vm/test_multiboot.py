"""A kernel by the Multiboot specification: grub-invaders, a game, seen and played."""

from __future__ import annotations

import re

import pytest

import avmm
from tests import third_party
from tests.vm.pc import running

pytestmark = [pytest.mark.asyncio, pytest.mark.guests]

SHIP = "/ \\"
FORMATION = [4, 5, 4, 5, 4]
IN_LINE = re.compile(r"^ +-\*--( +-\*--){3}$", re.MULTILINE)
"""A moment in which the first row's invaders stand apart from each other."""


def ship_column(vm: avmm.Vm) -> int:
    rows = vm.screen.text().splitlines()
    assert rows[-2].strip() == "_"
    assert rows[-1].strip() == SHIP
    assert rows[-2].index("_") == rows[-1].index(SHIP) + 1
    return rows[-1].index(SHIP)


async def hit_something(vm: avmm.Vm) -> bool:
    """Whether fewer invaders than at the start are seen within a while; at times each of them is drawn twice."""
    try:
        await vm.screen.wait_for(lambda text: "-*" in text and text.count("*") < sum(FORMATION), timeout=0.4)
    except avmm.WaitTimeout:
        return False
    return True


async def test_grub_invaders() -> None:
    async with running(kernel=third_party.file("boot/invaders.exec")) as vm:
        text = await vm.screen.wait_for(IN_LINE, timeout=2)
        invaders = [line for line in text.splitlines() if "*" in line]
        assert [line.count("-*-") for line in invaders] == FORMATION
        assert len({line.index("*") for line in invaders[::2]}) == len({line.index("*") for line in invaders[1::2]}) == 1
        start = ship_column(vm)
        assert vm.machine.vga.cells()[24][start][1] & 0x0F, "in a colour that can be seen"

        vm.keyboard.press("left")
        await vm.sleep(0.3)
        vm.keyboard.release("left")
        left = ship_column(vm)
        assert left < start - 2
        vm.keyboard.press("right")
        await vm.sleep(0.6)
        vm.keyboard.release("right")
        assert ship_column(vm) > left + 5

        assert "|" not in vm.screen.text()
        await vm.keyboard.key("space", hold=0.1)
        await vm.screen.wait_for("|", timeout=1)  # a shot
        for _ in range(20):
            if await hit_something(vm):
                break
            await vm.keyboard.key("space")
        else:
            pytest.fail("no shot hit an invader")
