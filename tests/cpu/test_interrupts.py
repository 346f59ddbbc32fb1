"""External interrupts: taken when the guest can take them, with the right saved state; HLT and the interrupt shadow."""

from __future__ import annotations

import pytest

from avmm.cpu.engine import Exit
from tests.cpu.rig import STACK0, USER32, USER64, USER_DATA, USER_STACK, Rig

MODES = ("real", "pm16", "pm32", "paging", "pae", "long", "compat")


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_waits_for_if(mode: str) -> None:
    """I5: an interrupt that a device started is injected as soon as the guest accepts it."""
    rig = Rig("out 0x30, al\nnop\nout 0x31, al\nsti\nnop\nhere:\n out 0x32, al\nSTOP", mode)
    rig.on_out = lambda port, size, value: rig.raise_interrupt(0x20) if port == 0x30 else None
    order: list[int] = []
    trap = rig._trap
    rig._trap = lambda vector: (order.append(len(rig.log)), trap(vector))[1]  # type: ignore[method-assign,func-returns-value]
    assert rig.run() is Exit.STOPPED
    assert [(t.vector, t.error, t.ip) for t in rig.traps] == [(0x20, None, rig.label("here"))]
    assert order == [2]
    assert rig.traps[0].flags & 0x200


@pytest.mark.parametrize("mode", MODES)
def test_sti_hlt_is_woken(mode: str) -> None:
    rig = Rig("sti\n hlt\nhere:\n STOP", mode)
    assert rig.run() is Exit.HALT
    assert rig.traps == []
    rig.raise_interrupt(0x20)
    assert rig.run() is Exit.STOPPED
    assert [(t.vector, t.ip) for t in rig.traps] == [(0x20, rig.label("here"))]


def test_an_interrupt_pending_at_sti_hlt_is_taken_after_the_shadow() -> None:
    """STI's shadow covers HLT: the interrupt comes when HLT has begun, and returns behind it."""
    rig = Rig("cli\n out 0x30, al\n sti\n hlt\nhere:\n STOP")
    rig.on_out = lambda port, size, value: rig.raise_interrupt(0x20)
    while (why := rig.run()) is Exit.HALT:
        pass
    assert why is Exit.STOPPED
    assert [(t.vector, t.ip) for t in rig.traps] == [(0x20, rig.label("here"))]


def test_mov_ss_shadow() -> None:
    """No interrupt between MOV SS and the instruction behind it."""
    rig = Rig("mov ax, ss\n sti\n nop\n out 0x30, al\n mov ss, ax\n mov sp, 0x8000\nhere:\n nop\n STOP")
    rig.on_out = lambda port, size, value: rig.raise_interrupt(0x20)
    rig.run()
    assert [(t.vector, t.ip) for t in rig.traps] == [(0x20, rig.label("here"))]
    assert rig.traps[0].handler_sp == 0x8000 - 6


def test_pop_ss_shadow() -> None:
    rig = Rig("push ss\n sti\n nop\n out 0x30, al\n pop ss\n mov sp, 0x8000\nhere:\n nop\n STOP")
    rig.on_out = lambda port, size, value: rig.raise_interrupt(0x20)
    rig.run()
    assert [t.handler_sp for t in rig.traps] == [0x8000 - 6]


def test_hlt_with_interrupts_off_stays_halted() -> None:
    rig = Rig("cli\n hlt\n STOP")
    assert rig.run() is Exit.HALT
    rig.raise_interrupt(0x20)
    assert not rig.reg("rflags") & 0x200  # the hypervisor looks at IF before it runs a halted processor again
    assert rig.traps == []


@pytest.mark.parametrize("mode", ["pm32", "paging", "pae", "long"])
def test_an_interrupt_in_ring_3_uses_the_tss_stack(mode: str) -> None:
    size = 64 if mode == "long" else 32
    rig = Rig(f"ring3_{size} user\nuser:\n jmp $", mode)
    at = rig.label("user")
    rig.run(2000)  # into the loop
    assert rig.reg("rip") == at
    rig.cpu.set_register("rflags", rig.reg("rflags") | 0x200)
    rig.raise_interrupt(0x20)
    rig.stop_on_trap = True
    assert rig.run() is Exit.STOPPED
    t = rig.traps[0]
    assert (t.vector, t.ip, t.cs, t.sp, t.ss) == (0x20, at, USER64 if mode == "long" else USER32, USER_STACK, USER_DATA)
    assert t.handler_sp == STACK0 - (40 if mode == "long" else 20)


def test_a_line_withdrawn_before_if_opens_is_not_delivered() -> None:
    rig = Rig("cli\n out 0x30, al\n out 0x31, al\n sti\n nop\n nop\n STOP")
    rig.on_out = lambda port, size, value: rig.cpu.interrupt(port == 0x30)
    rig.vectors = [0x20]
    assert rig.run() is Exit.STOPPED
    assert rig.traps == []
    assert rig.vectors == [0x20]  # never acknowledged


def test_a_line_without_a_vector_behind_it() -> None:
    """The controller has nothing any more when it is asked: the guest goes on undisturbed."""
    rig = Rig("sti\n out 0x30, al\n nop\n mov bx, 0x1234\n STOP")
    rig.on_out = lambda port, size, value: rig.cpu.interrupt(True)
    assert rig.run() is Exit.STOPPED
    assert rig.traps == []
    assert rig.reg("bx") == 0x1234
    assert rig.cpu.counters()["interrupts"] == 0


def test_interrupts_one_behind_the_other() -> None:
    rig = Rig("sti\n nop\n out 0x30, al\n jmp here\nhere:\n nop\n STOP")
    rig.on_out = lambda port, size, value: rig.raise_interrupt(0x21, 0x22, 0x23)
    assert rig.run() is Exit.STOPPED
    assert [t.vector for t in rig.traps] == [0x21, 0x22, 0x23]
    assert len({t.ip for t in rig.traps}) == 1


def test_an_interrupt_in_the_middle_of_a_rep_string_goes_on_where_it_was() -> None:
    rig = Rig("sti\n cld\n mov di, 0x3000\n mov cx, 0x1000\nhere:\n rep stosb\n STOP")
    fired = False
    while rig.run(50) is Exit.BUDGET:
        if 0 < rig.reg("cx") < 0xF00 and not fired:
            fired = True
            rig.raise_interrupt(0x20)
    assert [(t.vector, t.ip) for t in rig.traps] == [(0x20, rig.label("here"))]
    assert rig.reg("cx") == 0
    assert rig.reg("di") == 0x4000


def test_a_gate_fault_while_an_interrupt_is_delivered_has_ext() -> None:
    for mode in ("pm32", "long"):
        rig = Rig("sti\n nop\nhere:\n jmp here", mode, stop_on_trap=True)
        rig.gate(0x20, present=False)
        rig.run(100)
        rig.raise_interrupt(0x20)
        rig.run(100)
        assert [(t.vector, t.error, t.ip) for t in rig.traps] == [(11, 0x20 * 8 + 3, rig.label("here"))]


def test_the_acknowledge_callback_may_raise() -> None:
    rig = Rig("sti\n nop\n jmp $")
    rig.cpu.run(100)

    def acknowledge() -> int:
        raise KeyError("controller")

    rig.cpu.callbacks.acknowledge = acknowledge
    rig.cpu.reset(rig.state)
    rig.cpu.run(100)
    rig.cpu.interrupt(True)
    with pytest.raises(KeyError, match="controller"):
        rig.run()
    assert rig.run(100) is Exit.BUDGET
