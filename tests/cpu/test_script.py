"""Scripted guests: ports, memory, windows, interrupts and the end, on the path that real code takes."""

from __future__ import annotations

import pytest

from avmm.cpu.engine import Callbacks, CpuState, Exit, Processor
from avmm.cpu.script import OPERATION_UNITS, Guest, ScriptCpu, ScriptProcessor


class Script:
    """A scripted processor and what it did."""

    def __init__(self, guest: Guest, ram: int = 4096) -> None:
        self.log: list[tuple[str, int, int, int]] = []
        self.vectors: list[int] = []
        self.done: list[int] = []
        callbacks = Callbacks(self._in, lambda port, size, value: self.log.append(("out", port, size, value)),
                              lambda address, size: self.log.append(("load", address, size, 0)),
                              lambda address, size, value: self.log.append(("store", address, size, value)),
                              lambda: (self.vectors.pop(0) | (0x100 if self.vectors else 0)) if self.vectors else None, self.done.append,
                              lambda leaf, subleaf, native: native, lambda index: 0, lambda index, value: True)  # fmt: skip
        self.cpu = ScriptProcessor(callbacks, guest)
        self.ram = memoryview(bytearray(ram))
        self.cpu.map_ram(0, self.ram)
        self.cpu.reset(CpuState())

    def _in(self, port: int, size: int) -> int:
        self.log.append(("in", port, size, 0))
        return port & (1 << 8 * size) - 1


def test_it_is_a_processor() -> None:
    async def guest(cpu: ScriptCpu) -> None: ...

    processor: Processor = Script(guest).cpu
    assert processor.run(1000) is Exit.HALT


def test_ports_and_memory() -> None:
    seen: list[int] = []

    async def guest(cpu: ScriptCpu) -> None:
        await cpu.outb(0x43, 0x136)
        await cpu.outw(0x44, 0x12345)
        await cpu.outl(0x48, -1)
        seen.extend([await cpu.inb(0x140), await cpu.inw(0x1234), await cpu.inl(0x1234)])
        await cpu.store(16, 0x11223344)
        await cpu.store(20, 0x1FF, 1)
        seen.extend([await cpu.load(16), await cpu.load(18, 2), await cpu.load(16, 8)])
        await cpu.store(0x100000, 5, 2)
        seen.append(await cpu.load(0x100000, 2))
        seen.append(await cpu.load(4094, 4))

    script = Script(guest)
    assert script.cpu.run(10_000) is Exit.HALT
    assert script.cpu.finished
    assert seen == [0x40, 0x1234, 0x1234, 0x11223344, 0x1122, 0xFF11223344, 0xFFFF, 0xFFFFFFFF]
    assert script.log == [("out", 0x43, 1, 0x36), ("out", 0x44, 2, 0x2345), ("out", 0x48, 4, 0xFFFFFFFF), ("in", 0x140, 1, 0), ("in", 0x1234, 2, 0),
                          ("in", 0x1234, 4, 0), ("store", 0x100000, 2, 5), ("load", 0x100000, 2, 0), ("load", 4094, 4, 0)]  # fmt: skip
    assert script.cpu.units == 14 * OPERATION_UNITS


def test_interrupts_are_taken_when_the_flag_is_set() -> None:
    order: list[str] = []

    async def handler(cpu: ScriptCpu) -> None:
        order.append("handler")
        await cpu.outb(0x20, 0x20)

    async def guest(cpu: ScriptCpu) -> None:
        cpu.on(0x20, handler)
        await cpu.outb(1, 1)
        order.append("before")
        cpu.sti()
        await cpu.outb(2, 2)
        order.append("after")
        cpu.cli()
        await cpu.outb(3, 3)

    script = Script(guest)
    script.vectors = [0x20, 0x20]
    script.cpu.interrupt(True)
    script.cpu.run(10_000)
    assert [entry[1] for entry in script.log] == [1, 2, 0x20, 0x20, 3]
    assert order == ["before", "handler", "handler", "after"]


def test_handlers_run_with_interrupts_off() -> None:
    depth: list[int] = []

    async def handler(cpu: ScriptCpu) -> None:
        depth.append(1)
        await cpu.outb(0x20, 0)
        await cpu.outb(0x20, 0)
        depth.append(-1)

    async def guest(cpu: ScriptCpu) -> None:
        cpu.on(0x20, handler)
        cpu.sti()
        for _ in range(4):
            await cpu.inb(1)

    script = Script(guest)
    script.vectors = [0x20, 0x20, 0x20]
    script.cpu.interrupt(True)
    script.cpu.run(10_000)
    assert depth == [1, -1] * 3


def test_hlt_waits_and_goes_on() -> None:
    async def handler(cpu: ScriptCpu) -> None:
        await cpu.outb(0x20, 0x20)

    async def guest(cpu: ScriptCpu) -> None:
        cpu.on(0x21, handler)
        cpu.sti()
        await cpu.hlt()
        await cpu.outb(5, 5)

    script = Script(guest)
    assert script.cpu.run(100 * OPERATION_UNITS) is Exit.HALT
    assert not script.cpu.finished
    script.vectors = [0x21]
    script.cpu.interrupt(True)
    assert script.cpu.run(100 * OPERATION_UNITS) is Exit.HALT
    assert [entry[1] for entry in script.log] == [0x20, 5]
    assert script.cpu.finished
    assert not script.cpu.register("rflags") & 0x200  # type: ignore[unreachable]


def test_an_unhandled_vector_is_ignored() -> None:
    async def guest(cpu: ScriptCpu) -> None:
        cpu.sti()
        await cpu.outb(1, 1)
        await cpu.outb(2, 2)

    script = Script(guest)
    script.vectors = [0x77]
    script.cpu.interrupt(True)
    script.cpu.run(1000)
    assert len(script.log) == 2


def test_string_operations_and_windows() -> None:
    got: list[bytes] = []

    async def guest(cpu: ScriptCpu) -> None:
        got.append(await cpu.insw(0x1F0, 3))
        got.append(await cpu.insw(0x1F0, 2))
        await cpu.outsw(0x1F1, b"abcdef")
        await cpu.outsw(0x1F1, b"gh")

    script = Script(guest)
    sink = bytearray(6)
    script.cpu.window(0x1F0, memoryview(b"123456"))
    script.cpu.window(0x1F1, memoryview(sink), out=True)
    script.cpu.run(1000)
    assert got == [b"123456", b"\xf0\x01\xf0\x01"]
    assert sink == b"abcdef"
    assert script.done == [0x1F0, 0x1F1]
    assert script.log == [("in", 0x1F0, 2, 0)] * 2 + [("out", 0x1F1, 2, 0x6867)]


def test_an_element_that_does_not_fit_the_window_goes_to_the_device() -> None:
    got: list[bytes] = []

    async def guest(cpu: ScriptCpu) -> None:
        got.append(await cpu.insw(0x1F0, 2))

    script = Script(guest)
    script.cpu.window(0x1F0, memoryview(b"123"))
    script.cpu.run(1000)
    assert got == [b"12\xf0\x01"]
    assert script.done == []
    assert script.cpu.window_position(0x1F0) == 2


def test_budget_kick_and_stop() -> None:
    async def guest(cpu: ScriptCpu) -> None:
        for port in range(100):
            await cpu.outb(port, 0)

    script = Script(guest)
    assert script.cpu.run(3 * OPERATION_UNITS) is Exit.BUDGET
    assert len(script.log) == 3
    script.cpu.callbacks.port_out = lambda port, size, value: script.cpu.kick() if port == 5 else script.cpu.stop() if port == 8 else None
    assert script.cpu.run(1000) is Exit.BUDGET
    assert script.cpu.units == 6 * OPERATION_UNITS
    assert script.cpu.run(1000) is Exit.STOPPED
    assert script.cpu.units == 9 * OPERATION_UNITS
    assert script.cpu.run(100 * OPERATION_UNITS) is Exit.HALT


def test_exceptions_of_guest_and_device_surface() -> None:
    async def broken(cpu: ScriptCpu) -> None:
        await cpu.outb(1, 1)
        raise KeyError("guest")

    with pytest.raises(KeyError, match="guest"):
        Script(broken).cpu.run(1000)

    async def catching(cpu: ScriptCpu) -> None:
        await cpu.inb(1)
        await cpu.outb(2, 2)

    script = Script(catching)

    def bad(port: int, size: int) -> int:
        raise ValueError("device")

    script.cpu.callbacks.port_in = bad
    with pytest.raises(ValueError, match="device"):
        script.cpu.run(1000)


def test_awaiting_something_else_is_refused() -> None:
    import asyncio

    async def guest(cpu: ScriptCpu) -> None:
        await asyncio.sleep(0)

    script = Script(guest)
    with pytest.raises(TypeError, match="only await its cpu's operations"):
        script.cpu.run(1000)
    script.cpu.close()


def test_reset_starts_the_guest_over() -> None:
    async def guest(cpu: ScriptCpu) -> None:
        await cpu.outb(1, 1)
        await cpu.hlt()

    script = Script(guest)
    for n in range(1, 4):
        script.cpu.run(1000)
        assert len(script.log) == n
        script.cpu.reset(CpuState())
    script.cpu.close()
    script.cpu.close()
    assert script.cpu.run(100 * OPERATION_UNITS) is Exit.HALT


def test_unmap_ram_splits_a_mapping() -> None:
    async def guest(cpu: ScriptCpu) -> None: ...

    script = Script(guest, ram=3 * 4096)
    script.cpu.unmap_ram(4096, 4096)
    script.ram[0] = script.ram[8192] = 7
    assert (script.cpu.load(0, 1), script.cpu.load(8192, 1)) == (7, 7)
    assert script.cpu.load(4096, 1) == 0xFF
    script.cpu.map_ram(4096, memoryview(bytearray(b"\x09" * 4096)))
    assert script.cpu.load(4096, 1) == 9
    script.cpu.close()
