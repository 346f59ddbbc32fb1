"""Memtest86+ by the Linux boot protocol, both word sizes: it tests all of a small memory, and finds an error when there is one."""

from __future__ import annotations

import re

import pytest

import avmm
from tests import third_party
from tests.vm.pc import running

pytestmark = [pytest.mark.asyncio, pytest.mark.guests]

TESTS_DONE = re.compile(r"Test #[5-9]")


def image(bits: str) -> str:
    return str(third_party.file(f"boot/memtest86+{bits}.bin"))


async def started(vm: avmm.Vm) -> None:
    banner = await vm.screen.wait_for("to start testing")
    assert "Memtest86+ v" in banner
    assert re.search(r"Memory  : +16MB", banner)
    await vm.keyboard.key("enter")
    await vm.screen.wait_for("Status: Testing")


@pytest.mark.parametrize("bits", ["ia32", "x64"])
async def test_finds_no_errors(bits: str) -> None:
    async with running(kernel=image(bits), append="nobench") as vm:
        await started(vm)
        text = await vm.screen.wait_for(TESTS_DONE)  # tests 0 to 4 are through
        assert re.search(r"Pass:  0 +Errors: 0\n", text)
        assert re.search(r"Pass *[1-9]\d*% #", text), "the first pass has come some way"
        assert {"ia32": "unknown.x32", "x64": "unknown.x64"}[bits] in text


async def test_finds_a_flipped_bit() -> None:
    """That it really looks at the guest's memory: one byte changed behind its back is reported, with its address."""
    async with running(kernel=image("x64"), append="nobench") as vm:
        await started(vm)
        victim = 0x800120
        while "Errors: 0" in vm.screen.text() and vm.now < 3:  # until it happens between a write and the read that checks it
            await vm.sleep(0.005)
            byte = vm.partition.memory.read(victim, 1)[0]
            vm.partition.memory.write(victim, bytes((byte ^ 0x10,)))
        text = await vm.screen.wait_for(re.compile(r"Errors: [1-9]"), timeout=1)
        assert f"{victim:012x}" in text.lower()
