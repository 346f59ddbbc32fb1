"""Running backwards: each instruction again in reverse, breakpoints from the last to the first, and forward again to the same moments."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import pytest

import avmm
from avmm.control.reverse import Position
from avmm.cpu.unicorn.processor import UnicornProcessor
from avmm.debug.debugger import DebugError, Stop
from avmm.debug.packets import encode
from avmm.hypervisor.advance import run_to
from tests.debug.client import connected, wait_for
from tests.debug.machines import COUNT, label, machine

pytestmark = pytest.mark.asyncio
AGAIN = label("again")


def here(vm: avmm.Vm) -> tuple[Position, list[int], int]:
    """Return everything that tells one moment from another."""
    processor = vm.partition.processor
    position = Position(processor.units, vm.debugger.unit.in_block, vm.debugger.pc)
    return position, [processor.register(name) for name in ("rax", "rcx", "rsp", "rflags")], vm.partition.memory.unpack("<H", COUNT)[0]


async def stopped(vm: avmm.Vm, going: Awaitable[object]) -> Stop:
    stopping = asyncio.ensure_future(vm.debugger.next_stop())
    await asyncio.sleep(0)
    await going
    return await stopping


async def test_backwards_step_by_step(tmp_path: Path) -> None:
    async with machine(tmp_path, gdb_reverse=True) as vm:
        reverse, debugger = vm.reverse, vm.debugger
        await debugger.add("code", AGAIN)
        for _ in range(2):
            await stopped(vm, debugger.resume())
        forward = [here(vm)]
        for _ in range(30):  # through int 10h and back
            await stopped(vm, debugger.step(interrupts=True))
            forward.append(here(vm))
        for moment in reversed(forward[:-1]):
            assert (await reverse.step()).cause == "step"
            assert here(vm) == moment
        for moment in forward[1:]:
            await stopped(vm, debugger.step(interrupts=True))
            assert here(vm) == moment


async def test_backwards_from_breakpoint_to_breakpoint(tmp_path: Path) -> None:
    async with machine(tmp_path, gdb_reverse=True) as vm:
        reverse, debugger = vm.reverse, vm.debugger
        point = await debugger.add("code", AGAIN)
        moments = []
        for _ in range(5):
            await stopped(vm, debugger.resume())
            moments.append(here(vm))
        assert len({moment[0] for moment in moments}) == 5
        for moment in reversed(moments[:-1]):
            assert await reverse.resume() == Stop("breakpoint", AGAIN, point)
            assert here(vm) == moment
        assert await reverse.resume() == Stop("begin", 0xFFFF0)
        assert (await reverse.step()).cause == "begin"
        for moment in moments:
            assert (await stopped(vm, debugger.resume())).cause == "breakpoint"
            assert here(vm) == moment
        await debugger.remove(point.number)
        await debugger.add("write", COUNT, 2)
        counted = [here(vm)[2]]
        while (stop := await reverse.resume()).cause == "watchpoint":
            counted.append(here(vm)[2])
        assert stop.cause == "begin"
        assert counted[1:] == list(range(counted[0] - 1, -1, -1))


async def test_backwards_by_packets(tmp_path: Path) -> None:
    async with machine(tmp_path, gdb_reverse=True) as vm, connected(vm) as client:
        assert "ReverseStep+;ReverseContinue+" in await client.ask("qSupported")
        await client.ask(f"Z0,{AGAIN:x},1")
        for _ in range(3):
            await client.ask("c")
        before = here(vm)
        await client.ask("s")
        assert await client.ask("bs") == "T05thread:1;"
        assert here(vm) == before
        assert await client.ask("bc") == "T05thread:1;"
        assert vm.debugger.pc == AGAIN
        assert await client.ask("bc") == "T05thread:1;"
        assert await client.ask("bc") == "T05thread:1;replaylog:begin;"


NOWHERE = 0x9000
"""Nobody touches it: a search for that goes back to the beginning, an instruction at a time."""


async def far_from_the_beginning(vm: avmm.Vm) -> None:
    history = await vm.keep_history(0.002)
    await vm.resume()
    await vm.wait_until(lambda: len(history.moments) > 3)
    await vm.sleep(0.001)
    await vm.pause()
    await vm.debugger.add("write", NOWHERE, 2)


async def test_a_search_backwards_that_is_called_off_ends_where_it_has_come_to(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm:
        await far_from_the_beginning(vm)
        assert vm.history is not None
        began = here(vm)
        going = asyncio.ensure_future(vm.reverse.resume())
        await wait_for(lambda: vm.reverse._searching)
        await vm.pause()  # nothing was searched to its end
        assert (await going).cause == "pause"
        assert here(vm) == began
        last, before = vm.history.moments[-1].units, vm.history.moments[-2].units
        going = asyncio.ensure_future(vm.reverse.resume())
        await wait_for(lambda: vm.reverse._searching and vm.partition.processor.units in range(before, last), 10**7)
        await vm.pause()  # the part behind the last snapshot was
        assert (await going).cause == "pause"
        assert vm.partition.processor.units == last
        assert vm.state is avmm.RunState.PAUSED
        await vm.debugger.remove_all("console")
        await vm.resume()
        await vm.sleep(0.01)
        assert not await vm.reverse.call_off()


async def test_gdbs_interrupt_calls_a_search_backwards_off(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm:
        await far_from_the_beginning(vm)
        async with connected(vm) as client:
            client.send(encode(b"bc"))
            await wait_for(lambda: vm.reverse._searching)
            client.send(b"\x03")
            assert (await client.receive()).decode() == "T02thread:1;"
            assert await client.ask("m7dfe,2") == "55aa"  # and it is answered as before
            client.send(encode(b"bc"))
            await wait_for(lambda: vm.reverse._searching)
        await wait_for(lambda: vm.state is avmm.RunState.RUNNING, 10**7)  # gone in the midst of it: the machine goes on


async def test_without_a_history(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm, connected(vm) as client:
        assert "Reverse" not in await client.ask("qSupported")
        assert await client.ask("bs") == ""
        with pytest.raises(DebugError, match="no history"):
            await vm.reverse.step()
        assert "no history" in await vm.monitor("reverse-step")
        assert "kept since" in await vm.monitor("history")
        assert "beginning of the history" in await vm.monitor("reverse-continue")
    with pytest.raises(avmm.ConfigError, match="virtual clock"):
        avmm.VmConfig(gdb_reverse=True, clock="real")


async def test_a_snapshot_in_the_middle_of_a_block_goes_on_exactly(tmp_path: Path) -> None:
    """Its clone, and the machine itself put back, do what the machine did."""
    async with machine(tmp_path) as vm:
        await vm.debugger.add("code", label("print"))
        await stopped(vm, vm.debugger.resume())
        assert vm.debugger.unit.in_block
        snapshot = await vm.snapshot()
        clone = await vm.host.clone(snapshot, paused=True)
        assert here(clone) == here(vm)
        await vm.debugger.remove_all("console")

        async def onwards(one: avmm.Vm) -> list[object]:
            found: list[object] = []
            processor = one.partition.processor
            assert isinstance(processor, UnicornProcessor)
            for units in (1, 50, 20_000):
                await run_to(one.partition, units=processor.units + units)
                found.append((here(one), one.now, processor.counters()["blocks"], one.screen.text()))
            return found

        did = await onwards(vm)
        assert await onwards(clone) == did
        await vm.restore(snapshot)
        assert await onwards(vm) == did
