"""The run loop: budgets, determinism, kick and stop, exceptions of callbacks, reset and close."""

from __future__ import annotations

import gc
import mmap
import time
import weakref

import pytest
from greenlet import getcurrent, greenlet

from avmm.cpu.engine import CpuState, Exit, ProcessorError, Segment
from avmm.cpu.unicorn.processor import TRAIL_KINDS
from tests.cpu.rig import CODE, Rig

WORK = """
 xor ax, ax
 mov word [0x20*4], handler
 mov word [0x21*4], service
 mov cx, 2000
 sti
again:
 add eax, ecx
 rol eax, 3
 mov [0x3000], eax
 int 0x21
 test cl, 31
 jnz .skip
 out 0x30, al
.skip:
 in al, 0x31
 rdtsc
 add ebx, eax
 push cx
 mov di, 0x3100
 mov cx, 20
 cld
 rep stosb
 pop cx
 dec cx
 jnz again
 STOP
handler: inc dword [0x3004]
 iret
service: inc dword [0x3008]
 xor edx, eax
 iret
"""
REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "rip", "rflags")


def work(slices: tuple[int, ...], code_cache: int = 1 << 20) -> tuple[object, ...]:
    """Run WORK in slices of these lengths, in turn; everything that could tell one run from another."""
    rig = Rig(WORK, code_cache=code_cache)
    rig.on_out = lambda *_: rig.raise_interrupt(0x20)
    rig.on_in = lambda *_: rig.cpu.units & 0xFF
    turn = 0
    while rig.run(slices[turn % len(slices)]) is Exit.BUDGET:
        turn += 1
    counters = {k: v for k, v in rig.cpu.counters().items() if not k.endswith(("_ns", "cycles"))}
    return counters, rig.cpu.units, [rig.reg(n) for n in REGISTERS], bytes(rig.ram[0x3000:0x3200]), rig.log


def test_runs_are_identical_whatever_the_slices() -> None:
    once = work((1 << 30,))
    assert once[0]["interrupts"] == 62  # type: ignore[index]
    assert work((1 << 30,)) == once
    assert work((1 << 30,), code_cache=4 << 20) == once
    for slices in ((1,), (100,), (7, 1000, 3, 50)):
        assert work(slices)[1:] == once[1:]
        assert work(slices)[0] == once[0]


def test_a_budget_ends_at_the_first_block_boundary_behind_it() -> None:
    rig = Rig("again: nop\n nop\n jmp short again")  # blocks of four bytes
    assert rig.cpu.units == 0
    for budget, used in ((1, 4), (4, 4), (5, 8), (400, 400), (401, 404)):
        before = rig.cpu.units
        assert rig.run(budget) is Exit.BUDGET
        assert rig.cpu.units - before == used
        assert rig.reg("rip") == CODE


def test_a_deadline_ends_a_run() -> None:
    rig = Rig("again: jmp again")
    begin = time.monotonic_ns()
    assert rig.cpu.run(1000, begin + 5_000_000) is Exit.BUDGET
    assert 5_000_000 <= time.monotonic_ns() - begin < 500_000_000
    assert rig.cpu.run(1000, begin) is Exit.BUDGET  # in the past: one quantum


def test_stop_ends_the_run_and_the_guest_goes_on() -> None:
    rig = Rig("out 0x30, al\nout 0x31, al\nin al, 0x32\nmov bl, al\njmp next\nnext:\n mov bh, 1\n STOP")
    rig.on_out = lambda port, size, value: rig.cpu.stop() if port == 0x30 else None
    rig.on_in = lambda port, size: 0x55
    assert rig.run() is Exit.STOPPED
    # the rest of the block was executed, and none of its accesses was lost
    assert [port for port, _, _ in rig.log] == [0x30, 0x31]
    assert rig.reads == [(0x32, 1)]
    assert rig.reg("bx") == 0x55
    assert rig.reg("rip") == rig.label("next")
    assert rig.run() is Exit.STOPPED
    assert rig.reg("bx") == 0x155


def test_stop_in_the_block_of_a_hlt_does_not_lose_the_hlt() -> None:
    rig = Rig("out 0x30, al\nhlt\nmov bl, 1\nSTOP")
    rig.on_out = lambda *_: rig.cpu.stop()
    assert rig.run() is Exit.STOPPED
    assert rig.run() is Exit.HALT
    assert rig.reg("bl") == 0
    assert rig.run() is Exit.STOPPED  # whoever runs a halted processor again has woken it
    assert rig.reg("bl") == 1


def test_an_exception_in_the_block_of_a_hlt_does_not_lose_the_hlt() -> None:
    rig = Rig("out 0x30, al\nhlt\nmov bl, 1\nSTOP")

    def bad(*_: int) -> None:
        raise KeyError("x")

    rig.on_out = bad
    with pytest.raises(KeyError):
        rig.run()
    assert rig.run() is Exit.HALT


def test_kick_ends_a_slice_early() -> None:
    rig = Rig("out 0x30, al\njmp next\nnext: out 0x31, al\njmp $")
    rig.on_out = lambda port, size, value: rig.cpu.kick() if port == 0x30 else None
    assert rig.run() is Exit.BUDGET
    assert [port for port, _, _ in rig.log] == [0x30]
    assert rig.cpu.run(1 << 20, time.monotonic_ns() + 3_000_000) is Exit.BUDGET
    assert [port for port, _, _ in rig.log] == [0x30, 0x31]


def test_kick_and_stop_before_a_run_have_no_effect() -> None:
    rig = Rig("jmp next\nnext:\n STOP")
    rig.cpu.kick()
    rig.cpu.stop()
    assert rig.run() is Exit.STOPPED
    assert rig.reg("rip") > rig.label("next")


class Boom(Exception):
    """Raised in callbacks."""


def boom(*_: object) -> int:
    raise Boom


@pytest.mark.parametrize("where", ["in", "out", "load", "store", "cpuid", "rdmsr", "wrmsr", "acknowledge", "window_done", "hypercall"])
def test_an_exception_in_a_callback_surfaces_and_the_guest_goes_on(where: str) -> None:
    source = {"in": "in al, 0x60", "out": "out 0x60, al", "load": "mov al, [0xfec00000]", "store": "mov [0xfec00000], al", "cpuid": "cpuid",
              "rdmsr": "rdmsr", "wrmsr": "wrmsr", "acknowledge": "sti\n nop\n jmp next\nnext:", "window_done": "in al, 0x61",
              "hypercall": "vmmcall"}[where]  # fmt: skip
    rig = Rig(f"{source}\n mov bl, 0x77\n jmp there\nthere:\n STOP", "pm32")
    field = {"in": "port_in", "out": "port_out", "load": "memory_read", "store": "memory_write"}.get(where, where)
    good = getattr(rig.cpu.callbacks, field)
    calls = 0

    def once(*args: int) -> object:
        nonlocal calls
        calls += 1
        return boom() if calls == 1 else good(*args)

    setattr(rig.cpu.callbacks, field, once)
    rig.cpu.reset(rig.state)
    rig.cpu.window(0x61, memoryview(b"x"))
    if where == "acknowledge":
        rig.cpu.interrupt(True)
    with pytest.raises(Boom):
        rig.run()
    assert rig.run() is Exit.STOPPED
    assert rig.reg("bl") == 0x77


def test_a_callback_of_the_wrong_type_surfaces_as_a_type_error() -> None:
    rig = Rig("in al, 0x60\njmp next\nnext: STOP")
    rig.on_in = lambda port, size: "text"  # type: ignore[assignment,return-value]
    with pytest.raises(TypeError):
        rig.run()
    assert rig.run() is Exit.STOPPED


def test_only_the_first_exception_of_a_block_is_raised() -> None:
    rig = Rig("in al, 0x60\nin al, 0x61\njmp next\nnext: STOP")

    def bad(port: int, size: int) -> int:
        raise KeyError(port)

    rig.on_in = bad
    with pytest.raises(KeyError, match="96"):
        rig.run()
    assert rig.reads == [(0x60, 1), (0x61, 1)]


def test_entering_a_running_processor_is_refused() -> None:
    rig = Rig("in al, 0x60\nSTOP")
    seen: list[str] = []

    def again(port: int, size: int) -> int:
        for forbidden in (lambda: rig.cpu.run(5), lambda: rig.cpu.reset(CpuState()), rig.cpu.close):
            with pytest.raises(RuntimeError) as error:
                forbidden()
            seen.append(str(error.value))
        return 1

    rig.on_in = again
    assert rig.run() is Exit.STOPPED
    assert len(seen) == 3
    assert rig.reg("al") == 1


def test_a_port_callback_may_switch_greenlets() -> None:
    rig = Rig("in al, 0x60\nmov bl, al\nin al, 0x61\njmp next\nnext: STOP")
    parent = getcurrent()
    rig.on_in = lambda port, size: parent.switch(port)
    runner = greenlet(rig.run)
    assert runner.switch() == 0x60
    rig.cpu.kick()
    rig.cpu.interrupt(True)
    rig.cpu.interrupt(False)
    assert runner.switch(0x11) == 0x61
    assert runner.switch(0x22) is Exit.BUDGET
    assert rig.run() is Exit.STOPPED
    assert (rig.reg("bl"), rig.reg("al")) == (0x11, 0x22)


def test_a_greenlet_thrown_into_a_port_callback() -> None:
    rig = Rig("in al, 0x60\njmp next\nnext: STOP")
    parent = getcurrent()
    rig.on_in = lambda port, size: parent.switch(port)
    runner = greenlet(rig.run)
    runner.switch()
    with pytest.raises(Boom):
        runner.throw(Boom)
    assert runner.dead
    assert rig.run() is Exit.STOPPED


def test_many_suspended_processors_interleave() -> None:
    rigs = [Rig("mov ecx, 20\nagain: in al, 0x60\nadd bl, al\nint 0x40\ndec ecx\njnz again\nSTOP") for _ in range(8)]
    parent = getcurrent()
    runners = []
    for rig in rigs:
        rig.on_in = lambda port, size: parent.switch()
        runners.append(greenlet(rig.run))
    for runner in runners:
        runner.switch()
    for step in range(20):
        for i, runner in enumerate(runners):
            runner.switch(i + step)
    assert all(runner.dead for runner in runners)
    assert [rig.reg("bl") for rig in rigs] == [sum(i + step for step in range(20)) & 0xFF for i in range(8)]


def test_reset_starts_over_and_counts_go_on() -> None:
    rig = Rig("inc dword [0x3000]\nint 0x40\nSTOP")
    for n in range(1, 4):
        assert rig.run() is Exit.STOPPED
        assert rig.peek(0x3000) == n
        assert rig.cpu.counters()["exceptions"] == n
        units = rig.cpu.units
        rig.cpu.reset(rig.state)
        assert rig.cpu.units == units
    assert rig.reg("rip") != CODE  # not entered yet


def test_reset_state() -> None:
    """The state after RESET#: execution begins at FFFFFFF0h."""
    rig = Rig("STOP")
    rig.cpu.reset(CpuState())
    rig.on_load = lambda address, size: 0xEBEBEBEBEBEBEBEB
    seen: list[int] = []
    rom = memoryview(mmap.mmap(-1, 0x10000))
    rom[0xFFF0:0xFFF4] = b"\xe6\x55\xf4\xf4"
    rig.cpu.map_ram(0xFFFF0000, rom)
    rig.on_out = lambda port, size, value: seen.append(rig.cpu.segment("cs").base + rig.reg("rip"))
    assert rig.run() is Exit.HALT
    assert seen == [0xFFFFFFF0]
    assert rig.cpu.segment("cs").selector == 0xF000


def test_gprs_of_the_state() -> None:
    rig = Rig("STOP")
    rig.cpu.reset(CpuState(cs=Segment(0, 0, 0xFFFF, 0x9B), rip=CODE, rsp=0x8000, cr0=0x10, gprs={"rsi": 0x10000, "rax": 0x55, "r9": 9}))
    rig.run()
    assert (rig.reg("rsi"), rig.reg("rax"), rig.reg("r9"), rig.reg("rsp")) == (0x10000, 0x55, 9, 0x8000)


def test_close_twice_and_use_after_close() -> None:
    rig = Rig("mov eax, 0x1234\nin al, 0x60\nSTOP")
    rig.run()
    units = rig.cpu.units
    rig.cpu.close()
    rig.cpu.close()
    assert rig.reg("ax") == 0x12A5  # for the report of a machine that has ended
    assert rig.cpu.units == units
    with pytest.raises(ProcessorError, match="closed"):
        rig.run()
    rig.cpu.kick()
    rig.cpu.stop()
    rig.cpu.interrupt(True)
    rig.cpu.invalidate(0, 4096)
    rig.cpu.window(1, None)
    rig.cpu.window(1, memoryview(b"x"))
    assert rig.cpu.window_position(1) == 0
    assert rig.cpu.translate(0) is None
    assert rig.cpu.trail() == []
    assert rig.cpu.counters()["in"] == 1
    assert isinstance(rig.reg("rflags"), int)
    with pytest.raises(ProcessorError, match="closed"):
        rig.cpu.map_ram(0, rig.ram)
    with pytest.raises(ProcessorError, match="closed"):
        rig.cpu.unmap_ram(0, 4096)


def test_a_closed_processor_gives_its_memory_back() -> None:
    rig = Rig("STOP")
    rig.run()
    rig.cpu.close()
    gone = weakref.ref(rig.cpu)
    pages, ram = rig._pages, rig.ram
    del rig
    gc.collect()
    assert gone() is None
    ram.release()
    pages.close()  # BufferError if someone still looks at it


def test_trail() -> None:
    rig = Rig("in al, 0x60\nout 0x61, ax\nmov [0xfec00000], al\nmov al, [0xfec00004]\ncpuid\nSTOP", "pm32")
    rig.run()
    assert [(TRAIL_KINDS[kind], address, size) for kind, address, size, *_ in rig.cpu.trail()] == [
        ("in", 0x60, 1), ("out", 0x61, 2), ("store", 0xFEC00000, 1), ("load", 0xFEC00004, 1), ("exit", 0x72, 0), ("out", 0xFF, 1)]  # fmt: skip
    rig = Rig("mov cx, 200\nagain: out 0x60, al\nloop again\nSTOP")
    rig.run()
    assert len(rig.cpu.trail()) == 64
