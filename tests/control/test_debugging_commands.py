"""The monitor's debugging commands, said as the console and `avmm ctl hmp` say them."""

from __future__ import annotations

from pathlib import Path

import pytest

import avmm
from avmm.control.commands.monitor import usages
from avmm.cpu.script import ScriptCpu
from tests.debug.client import wait_for
from tests.debug.machines import COUNT, LOAD, label, machine

pytestmark = pytest.mark.asyncio


async def at_the_sector(vm: avmm.Vm) -> None:
    """Go on to the boot sector's first instruction."""
    assert await vm.monitor(f"break {LOAD:#x}") == f"breakpoint 1 at {LOAD:#x}\n"
    assert await vm.monitor("continue") == ""
    await wait_for(lambda: vm.debugger.last is not None and vm.debugger.last.cause == "breakpoint")


async def test_registers_memory_and_instructions(tmp_path: Path) -> None:
    async with machine(tmp_path, gdb="127.0.0.1:0") as vm:
        first = await vm.monitor("registers")
        assert "rip 0000fff0" in first
        assert "cs f000" in first
        await at_the_sector(vm)
        assert await vm.monitor(f"disassemble {LOAD:#x} 3") == (
            "=>*0x00007c00  31c0                  xor ax, ax\n"
            "   0x00007c02  8ed8                  mov ds, ax\n"
            "   0x00007c04  8ed0                  mov ss, ax\n"
        )
        dump = await vm.monitor("memory 0x7dfe 2")
        assert dump == f"{'0000000000007dfe'}  {'55 aa':<48}  |U.|\n"
        for same in ("memory -p 0x7dfe 2", "memory 07c0:01fe 2", "memory $pc+0x1fe 2"):
            assert await vm.monitor(same) == dump
        assert "0x200000 is not mapped, or no RAM" in await vm.monitor("memory 0x1ffff0 32")
        assert "no instruction" in await vm.monitor("disassemble 0xfec00000")


async def test_steps_breakpoints_and_watchpoints(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm:
        await at_the_sector(vm)
        assert await vm.monitor("step") == "=> 0x00007c02  8ed8                  mov ds, ax\n"
        assert f"{label('next'):#010x}" in await vm.monitor("step 4")
        assert await vm.monitor(f"watch {COUNT:#x} 2") == f"watchpoint 2 at {COUNT:#x}\n"
        assert await vm.monitor("breakpoints") == (
            "  #  kind    address             length  set by\n"
            f"  1  code    {LOAD:#018x}       1  console\n"
            f"  2  write   {COUNT:#018x}       2  console\n"
        )
        assert (await vm.monitor("step 10000")).startswith(f"watchpoint 2\n=> {label('counted'):#010x}")
        assert await vm.monitor("delete 2") == ""
        assert await vm.monitor("delete 2") == "Error: there is no breakpoint 2\n"
        assert await vm.monitor("delete all") == ""
        assert await vm.monitor("breakpoints") == "there are none\n"
        assert await vm.monitor("continue") == ""
        assert vm.state is avmm.RunState.RUNNING
        assert await vm.monitor("step") == "Error: vm runs: stop it first\n"
        await vm.monitor(f"break {label('again'):#x}")  # also while it runs
        await wait_for(lambda: vm.state is avmm.RunState.PAUSED)
        assert (await vm.monitor("disassemble $pc 1")).startswith(f"=>*{label('again'):#010x}")


async def test_mistakes_are_answered(tmp_path: Path) -> None:
    async with machine(tmp_path) as vm:
        for line in ("break", "break nowhere", "break $nothing", "memory", "memory 0x0 9999", "watch 0 0x99999", "delete", "delete x", "step -1",
                     "step 99999", "registers all", "disassemble 0 1000", "breakpoints 1", "continue now", "gdbserver here", "memory -1"):  # fmt: skip
            answer = await vm.monitor(line)
            assert answer.startswith("Error: "), line
            assert answer.count("\n") == 1, line
        assert vm.debugger.points == {}
        assert (await vm.monitor("gdbserver")).startswith("target remote 127.0.0.1:")
        assert {"registers", "memory", "disassemble", "break", "step", "continue"} <= usages().keys()
        await vm.partition.stop()
        assert "has ended" in await vm.monitor("step")
        assert "has ended" in await vm.monitor("break 0")
    async with avmm.Host() as host:

        async def guest(cpu: ScriptCpu) -> None:
            await cpu.hlt()

        vm = await host.create_vm(avmm.VmConfig(memory="1M"), guest)
        assert "written in Python" in await vm.monitor("registers")


async def test_a_step_that_waits_says_so(tmp_path: Path) -> None:
    source = "  cli\n  hlt\n  nop\n"
    async with machine(tmp_path, source) as vm:
        await at_the_sector(vm)
        assert "hlt" in await vm.monitor("step")
        assert "nop" in await vm.monitor("step")
        assert "waits" in await vm.monitor("step")
        assert vm.state is avmm.RunState.RUNNING
