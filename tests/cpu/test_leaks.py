"""Processors made, run, given up in the middle of an instruction and dropped leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import threading

import pytest
from greenlet import getcurrent, greenlet

from avmm.clock import VirtualClock
from avmm.cpu.engine import Callbacks, CpuState, Segment
from avmm.cpu.unicorn.processor import UnicornProcessor
from avmm.hypervisor.vcpu import Vcpu
from tests.cpu.asm import assemble

MANY = 200
GROWTH = 12 << 20  # what 200 processors may leave behind: less than a tenth of what ten of them use
STATE = CpuState(cs=Segment(0, 0, 0xFFFF, 0x9B), rip=0x1000, rsp=0x8000, cr0=0x10)


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * mmap.PAGESIZE


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def make(port_in: object) -> UnicornProcessor:
    callbacks = Callbacks(port_in, lambda *_: None, lambda *_: 0, lambda *_: None, lambda: None, lambda port: None, lambda leaf, subleaf, native: native,  # type: ignore[arg-type]
                          lambda index: 0, lambda index, value: True)  # fmt: skip
    cpu = UnicornProcessor(callbacks, virtual_time=True, code_cache=1 << 20)
    ram = mmap.mmap(-1, 1 << 20)
    code = assemble("mov [0x3000], ax\nint3\nmov word [12], 0x1100\nhere: in al, 0x60\njmp here")
    ram[0x1000 : 0x1000 + len(code)] = code
    ram[12:16] = b"\x00\x11\x00\x00"
    ram[0x1100:0x1101] = b"\xcf"
    cpu.map_ram(0, memoryview(ram))
    cpu.window(0x1F0, memoryview(ram)[:512])
    cpu.reset(STATE)
    return cpu


def closed(n: int) -> None:
    cpu = make(lambda port, size: 1)
    cpu.run(100)
    cpu.close()


def dropped(n: int) -> None:
    make(lambda port, size: 1).run(100)


def suspended(n: int) -> None:
    """In the middle of an IN, in a greenlet that nobody will ever switch to again."""
    parent = getcurrent()
    cpu = make(lambda port, size: parent.switch())
    runner = greenlet(cpu.run)
    runner.switch(10_000)
    assert not runner.dead


def killed(n: int) -> None:
    parent = getcurrent()
    cpu = make(lambda port, size: parent.switch())
    runner = greenlet(cpu.run)
    runner.switch(10_000)
    runner.throw()
    assert runner.dead


def failed(n: int) -> None:
    def bad(port: int, size: int) -> int:
        raise KeyError(port)

    with pytest.raises(KeyError):
        make(bad).run(10_000)


@pytest.mark.parametrize("way", [closed, dropped, suspended, killed, failed])
def test_processors_leave_no_memory_thread_or_descriptor(way: object) -> None:
    for n in range(10):
        way(n)  # type: ignore[operator]
    gc.collect()
    before = resident(), descriptors(), threading.active_count()
    for n in range(MANY):
        way(n)  # type: ignore[operator]
    gc.collect()
    assert resident() - before[0] < GROWTH
    assert (descriptors(), threading.active_count()) == before[1:]


@pytest.mark.asyncio
async def test_machines_cancelled_in_the_middle_of_an_instruction() -> None:
    """As the hypervisor runs them: each a task, suspended in a port access, cancelled and dropped."""

    async def one() -> None:
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        entered = loop.create_future()

        def port_in(port: int, size: int) -> int:
            if not entered.done():
                entered.set_result(None)
            value: int = vcpu.wait(waiting)
            return value

        cpu = make(port_in)
        vcpu = Vcpu(cpu, VirtualClock(lambda: cpu.units), lambda: None, lambda: None)
        task = asyncio.create_task(vcpu.run())
        await entered
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert waiting.cancelled()

    for _ in range(10):
        await one()
    gc.collect()
    before = resident(), descriptors(), threading.active_count()
    for _ in range(MANY):
        await one()
    gc.collect()
    assert resident() - before[0] < GROWTH
    assert (descriptors(), threading.active_count()) == before[1:]
    assert asyncio.all_tasks() == {asyncio.current_task()}
