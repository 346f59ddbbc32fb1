"""The debug unit: breakpoints, watchpoints and single steps stop exactly where they should, and change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from avmm.cpu.engine import Cause, Exit, Watch
from tests.cpu.rig import BITS, CODE, STUBS, Rig
from tests.cpu.test_run import REGISTERS, WORK

MODES = tuple(BITS)


@dataclass
class Seen:
    """Where a machine was stopped, why, and how it was at the end."""

    pcs: list[int] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    end: tuple[object, ...] = ()


def state(rig: Rig) -> tuple[object, ...]:
    counters = {k: v for k, v in rig.cpu.counters().items() if not k.endswith(("_ns", "cycles"))}
    return counters, rig.cpu.units, [rig.reg(n) for n in REGISTERS], bytes(rig.ram), rig.log


def drive(
    rig: Rig,
    *,
    step: bool = False,
    interrupts: bool = False,
    inside: range = range(0),
    breakpoints: Iterable[int] = (),
    watches: Sequence[Watch] = (),
    slices: Sequence[int] = (1 << 30,),
    stops: int = 1 << 30,
) -> Seen:
    """Run until the guest stops itself, or ``stops`` times; step again at each stop if ``step``."""
    unit = rig.cpu.debug
    unit.set_breakpoints(breakpoints)
    unit.set_watchpoints(watches)
    seen = Seen()
    turn = 0
    if step:
        unit.step(inside, interrupts=interrupts)
    why = rig.cpu.run(slices[0])
    while why in (Exit.BUDGET, Exit.DEBUG, Exit.HALT):
        if why is Exit.DEBUG:
            seen.pcs.append(rig.reg("rip"))
            seen.causes.append(unit.cause()[0])
            if len(seen.pcs) == stops:
                break
            if step:
                unit.step(inside, interrupts=interrupts)
            why = unit.resume()
        else:
            if why is Exit.HALT:
                rig.raise_interrupt(0x20)
            turn += 1
            why = rig.cpu.run(slices[turn % len(slices)])
    seen.end = state(rig)
    return seen


def worker(source: str = WORK, mode: str = "real") -> Rig:
    """A guest that is interrupted now and then, reads the clock through a port, and so tells any difference."""
    rig = Rig(source, mode, flags=0x202 if mode != "real" else 2)
    rig.on_out = lambda *_: rig.raise_interrupt(0x20)
    rig.on_in = lambda *_: rig.cpu.units & 0xFF
    return rig


LOOP = """
 mov ecx, 300
again:
 add eax, ecx
 rol eax, 3
 mov [0x3000], eax
 test cl, 31
 jnz .skip
 out 0x30, al
.skip:
 in al, 0x31
 rdtsc
 add ebx, eax
 push XCX
 mov edi, 0x3100
 mov ecx, 20
 cld
 rep stosb
 mov esi, 0x3100
 mov ecx, 20
 repe scasb
 xor eax, eax
 cpuid
 pop XCX
 dec ecx
 jnz again
 STOP
"""


def work_in(mode: str) -> Rig:
    source = LOOP.replace("XCX", {16: "ecx", 32: "ecx", 64: "rcx"}[BITS[mode]])
    return worker(source, mode)


# -- nothing changes


@pytest.mark.parametrize("mode", MODES)
def test_a_stepped_machine_stays_identical(mode: str) -> None:
    alone = drive(work_in(mode)).end
    for interrupts in (False, True):
        stepped = drive(work_in(mode), step=True, interrupts=interrupts)
        assert len(stepped.pcs) > 10_000
        assert set(stepped.causes) == {Cause.STEP}
        assert stepped.end == alone


def test_a_stepped_machine_stays_identical_whatever_the_slices() -> None:
    alone = drive(worker()).end
    for slices in ((1 << 30,), (100,), (7, 1000, 3, 50)):
        assert drive(worker(), step=True, slices=slices).end == alone


def test_breakpoints_everywhere_change_nothing_and_stop_where_steps_do() -> None:
    stepped = drive(worker(), step=True, interrupts=True)
    stopped = drive(worker(), breakpoints=range(CODE, CODE + 0x80))
    assert stopped.end == stepped.end
    rep = next(pc for pc, after in pairwise(stepped.pcs) if pc == after)  # a breakpoint is seen once more when nothing is left to do
    assert [pc for pc in stopped.pcs[1:] if pc != rep] == [pc for pc in stepped.pcs if pc != rep]
    assert set(stopped.causes) == {Cause.BREAKPOINT}


def test_watchpoints_change_nothing() -> None:
    alone = drive(worker()).end
    watched = drive(worker(), watches=[Watch(0x3000, 2), Watch(0x3004, 4, read=True, write=True), Watch(0x8FF0, 16, read=True)])
    assert watched.end == alone
    assert watched.causes.count(Cause.WATCHPOINT) == len(watched.causes) > 2000


def test_stepping_changes_nothing_in_code_that_changes_itself() -> None:
    source = """
 mov cx, 200
again: mov byte [patched + 1], cl
patched: mov al, 0
 add bl, al
 in al, 0x31
 inc byte [near_by + 1]
 nop
near_by: mov dl, 0
 add dh, dl
 loop again
 STOP
"""
    alone = drive(worker(source)).end
    assert drive(worker(source), step=True).end == alone
    assert drive(worker(source), breakpoints=[worker(source).label("near_by")]).end == alone


# -- steps


def steps(source: str, count: int, mode: str = "real", prepare: object = None, **how: object) -> tuple[list[int], Rig]:
    rig = Rig(source, mode)
    if callable(prepare):
        prepare(rig)
    seen = drive(rig, step=True, stops=count, **how)  # type: ignore[arg-type]
    return seen.pcs, rig


def test_a_rep_is_a_step_an_element() -> None:
    pcs, rig = steps("mov cx, 3\n rep stosb\n nop\n STOP", 5)
    assert pcs == [CODE + 3] * 3 + [CODE + 5, CODE + 6]
    assert rig.reg("cx") == 0
    pcs, _ = steps("xor cx, cx\n rep stosb\n nop\n STOP", 2)
    assert pcs == [CODE + 2, CODE + 4]


@pytest.mark.parametrize("mode", MODES)
def test_an_exception_and_int_lead_to_the_handler_and_back(mode: str) -> None:
    pcs, _ = steps("int 0x80\n nop\n STOP", 4, mode)
    handler = STUBS + 8 * 0x80
    assert pcs == [handler, handler + 2, CODE + 2, CODE + 3]
    pcs, _ = steps("ud2\n nop\n STOP", 2, mode)
    assert pcs == [STUBS + 8 * 6, STUBS + 8 * 6 + 2]


def test_the_handler_of_an_interrupt_runs_unseen_unless_asked_for() -> None:
    source = " xor ax, ax\n mov word [0x20*4], handler\n sti\n nop\n nop\n STOP\nhandler: inc word [0x3000]\n iret"

    def interrupt(rig: Rig) -> None:
        rig.raise_interrupt(0x20)

    pcs, rig = steps(source, 5, prepare=interrupt)
    at = rig.label("handler")
    assert pcs == [CODE + 2, CODE + 8, CODE + 9, CODE + 10, CODE + 11]
    assert rig.peek(0x3000, "H") == 1
    pcs, rig = steps(source, 6, prepare=interrupt, interrupts=True)
    # STI holds the interrupt off for one instruction, as on hardware
    assert pcs == [CODE + 2, CODE + 8, CODE + 9, at, at + 4, CODE + 10]


def test_a_breakpoint_in_an_unseen_handler_stops() -> None:
    rig = Rig(" xor ax, ax\n mov word [0x20*4], handler\n sti\n nop\n nop\n STOP\nhandler: inc word [0x3000]\n iret")
    rig.raise_interrupt(0x20)
    seen = drive(rig, step=True, stops=4, breakpoints=[rig.label("handler")])
    assert seen.pcs[-1] == rig.label("handler")
    assert seen.causes == [Cause.STEP] * 3 + [Cause.BREAKPOINT]


def test_a_step_over_hlt_stops_behind_it_and_the_halt_goes_on() -> None:
    rig = Rig(" xor ax, ax\n mov word [0x20*4], handler\n sti\n hlt\n nop\n STOP\nhandler: iret")
    unit = rig.cpu.debug
    rig.cpu.debug.set_breakpoints([CODE + 9])
    assert rig.run() is Exit.DEBUG
    assert rig.reg("rip") == CODE + 9
    unit.step()
    assert unit.resume() is Exit.DEBUG
    assert rig.reg("rip") == CODE + 10
    unit.step()
    assert unit.resume() is Exit.HALT  # it is still halted: somebody has to wake it
    rig.raise_interrupt(0x20)
    assert rig.run() is Exit.DEBUG
    assert rig.reg("rip") == CODE + 11


def test_a_step_goes_on_while_it_is_inside_a_range() -> None:
    source = " mov cx, 50\nhere: nop\n nop\n loop here\n inc dx\n STOP"
    inside = range(CODE + 3, CODE + 7)
    pcs, rig = steps(source, 2, inside=inside)
    assert pcs == [CODE + 7, CODE + 8]
    assert rig.reg("cx") == 0


def test_a_step_is_forgotten_when_something_else_stops_the_machine() -> None:
    rig = Rig(" nop\n nop\n nop\n STOP")
    rig.cpu.debug.set_breakpoints([CODE + 1])
    rig.cpu.debug.step(range(CODE, CODE + 3))
    assert rig.run() is Exit.DEBUG
    assert rig.cpu.debug.cause()[0] is Cause.BREAKPOINT
    assert rig.cpu.debug.resume() is Exit.STOPPED


# -- breakpoints


def test_a_breakpoint_in_the_middle_of_a_block_shows_the_state_right_before_it() -> None:
    rig = Rig(" mov eax, 1\n mov ebx, 2\n add eax, ebx\n mov ecx, eax\n STOP")
    rig.cpu.debug.set_breakpoints([CODE + 15])
    assert rig.run() is Exit.DEBUG
    assert (rig.reg("rip"), rig.reg("eax"), rig.reg("ecx")) == (CODE + 15, 3, 0)
    assert bytes(rig.ram[CODE : CODE + 2]) == b"\x66\xb8"  # and the guest's code is as it was
    rig.cpu.set_register("eax", 77)
    assert rig.cpu.debug.resume() is Exit.STOPPED
    assert rig.reg("ecx") == 77


def test_a_breakpoint_stops_each_time_round_and_not_where_the_machine_goes_on() -> None:
    rig = Rig(" mov cx, 5\nhere: inc dx\n loop here\n STOP")
    seen = drive(rig, breakpoints=[rig.label("here")])
    assert seen.pcs == [rig.label("here")] * 5


def test_rip_can_be_set_in_the_middle_of_a_block() -> None:
    rig = Rig(" inc ax\n inc ax\n inc bx\n inc cx\n STOP")
    rig.cpu.debug.set_breakpoints([CODE + 1])
    assert rig.run() is Exit.DEBUG
    rig.cpu.set_register("rip", CODE + 3)
    assert rig.cpu.debug.resume() is Exit.STOPPED
    assert [rig.reg(name) for name in ("ax", "bx", "cx")] == [1, 0, 1]


def test_a_breakpoint_is_a_linear_address() -> None:
    rig = Rig(" jmp 0x100:(there - 0x1000)\nthere: nop\n STOP")
    seen = drive(rig, breakpoints=[rig.label("there")], stops=1)
    assert seen.pcs == [rig.label("there") - 0x1000]
    assert rig.reg("cs") == 0x100


def test_breakpoints_survive_a_reset() -> None:
    rig = Rig(" nop\n nop\n STOP")
    for _ in range(2):
        assert drive(rig, breakpoints=[CODE + 1], stops=1).pcs == [CODE + 1]
        rig.cpu.reset(rig.state)
    assert rig.run() is Exit.DEBUG
    assert rig.reg("rip") == CODE + 1


def test_watchpoints_survive_a_reset() -> None:
    rig = Rig(" mov [0x3000], al\n nop\n STOP")
    assert drive(rig, watches=[Watch(0x3000, 1)], stops=1).pcs == [CODE + 3]
    rig.cpu.reset(rig.state)
    rig.cpu.debug.step()
    assert rig.run() is Exit.DEBUG
    assert (rig.reg("rip"), rig.cpu.debug.cause()) == (CODE + 3, (Cause.WATCHPOINT, 0))


def test_what_a_callback_asked_for_is_not_lost_at_a_stop() -> None:
    rig = Rig(" out 0xff, al\n nop\n nop\n jmp $")
    rig.cpu.debug.set_breakpoints([CODE + 2])
    assert rig.run() is Exit.DEBUG
    assert rig.cpu.debug.resume() is Exit.STOPPED

    class Broken(Exception):
        pass

    def fail(port: int, size: int, value: int) -> None:
        raise Broken

    rig = Rig(" out 0x50, al\n nop\n jmp $")
    rig.on_out = fail
    rig.cpu.debug.step()
    with pytest.raises(Broken):
        rig.run()


# -- watchpoints


@pytest.mark.parametrize("mode", MODES)
def test_a_watchpoint_stops_behind_the_access(mode: str) -> None:
    rig = Rig(" mov eax, 5\na: mov [0x3000], al\nb: mov [0x3002], al\nc: mov bl, [0x3000]\nd: mov [0x2ffd], eax\n nop\ne: STOP", mode)
    at = [rig.label(name) for name in "abcde"]
    seen = drive(rig, watches=[Watch(0x3000, 2)])
    assert seen.pcs == [at[1], at[4] - 1]
    rig = Rig(rig.source, mode)
    assert drive(rig, watches=[Watch(0x3000, 1, read=True, write=False)]).pcs == [at[3]]
    assert drive(Rig(rig.source, mode), watches=[]).pcs == []


def test_a_watchpoint_sees_each_element_of_a_rep_and_what_an_interrupt_pushes() -> None:
    rig = Rig(" mov di, 0x2ffe\n mov cx, 6\n cld\nhere: rep stosb\n STOP")
    seen = drive(rig, watches=[Watch(0x3000, 2)])
    assert seen.pcs == [rig.label("here")] * 2
    assert rig.reg("cx") == 0
    rig = Rig(" int 0x80\n STOP")
    assert drive(rig, watches=[Watch(0x8FFE, 2)]).pcs == [STUBS + 8 * 0x80]


def test_watchpoints_are_bounded() -> None:
    with pytest.raises(ValueError, match="at most 8"):
        Rig("nop").cpu.debug.set_watchpoints([Watch(0x3000, 1)] * 9)
