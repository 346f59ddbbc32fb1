"""The local APIC of the one processor, in xAPIC mode.

After the Intel SDM vol. 3A, chapter "Advanced Programmable Interrupt Controller (APIC)" (register page, local vector
table, timer, priorities, EOI). As PC firmware leaves it, LINT0 is ExtINT and not masked after reset ("virtual wire"),
so the PIC reaches the processor until the guest decides otherwise; it does too while the APIC is disabled.

The invariant: ``intr`` is what :meth:`LocalApic.acknowledge` would give a vector for, and ``output`` has heard its
latest value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mypy_extensions import mypyc_attr

from avmm.devices.device import Board, Device, MemoryRange
from avmm.devices.lapic_registers import (
    BASE,
    BASE_BSP,
    BASE_ENABLE,
    BASE_WRITABLE,
    ERROR,
    ESR_RECEIVE_ILLEGAL,
    ESR_REGISTER,
    ESR_SEND_ILLEGAL,
    EXTINT,
    FIRST_LEGAL_VECTOR,
    FIXED,
    LINT0,
    LINT1,
    LOWEST,
    LVT_LEVEL,
    LVT_MASKED,
    LVT_REMOTE_IRR,
    LVT_RESET,
    LVT_WRITABLE,
    NMI,
    PERF,
    SVR_ENABLE,
    THERMAL,
    TIMER,
    VERSION,
)
from avmm.devices.lapic_timer import ApicTimer


class Pic(Protocol):
    """The 8259 pair behind LINT0."""

    @property
    def intr(self) -> bool:
        """Whether the PIC asks for an interrupt."""

    def acknowledge(self) -> int | None:
        """Run the INTA cycle and return the vector."""


@dataclass(frozen=True)
@mypyc_attr(native_class=False)
class State:
    """Everything the guest can see."""

    base: int
    id: int
    tpr: int
    ldr: int
    dfr: int
    svr: int
    isr: int
    tmr: int
    irr: int
    esr: int
    errors: int
    icr: int
    lvt: tuple[int, int, int, int, int, int]
    pins: tuple[bool, bool]
    timer: ApicTimer.State
    version: int = 1


class LocalApic(Device):
    """Registers at 0xFEE00000, interrupts from :meth:`inject`, the PIC on LINT0, and the vector by :meth:`acknowledge`."""

    name = "lapic"
    memory = (MemoryRange(BASE, 0x1000),)

    def __init__(self, board: Board, pic: Pic) -> None:
        super().__init__(board)
        self.pic = pic
        self.output: Callable[[bool], None] = _ignore_level
        """Told the new level whenever ``intr`` changes."""
        self.on_eoi: Callable[[int], None] = _ignore_vector
        """Told the vector when a level-triggered interrupt ends: the EOI broadcast to the I/O APIC."""
        self.on_nmi: Callable[[], None] = _nothing
        """Told of an NMI, by IPI to self or through an LVT entry."""
        self.auto_eoi = 0
        """Vectors (bit mask) that end themselves as soon as they are acknowledged: a synthetic interrupt controller sets it."""
        self.timer = ApicTimer(self.clock, self._timer_expired)
        self._driven = False
        self._power_on()

    def _power_on(self) -> None:
        self._base = BASE | BASE_ENABLE | BASE_BSP
        self._pins = {LINT0: False, LINT1: False}
        self._initialise()

    def _initialise(self) -> None:
        """Registers as after INIT or RESET (SDM, "Local APIC State After Power-Up or Reset")."""
        self._id = 0
        self._tpr = 0
        self._ldr = 0
        self._dfr = 0xFFFFFFFF
        self._svr = 0xFF
        self._isr = self._tmr = self._irr = 0  # 256 bits each
        self._esr = self._errors = 0
        self._icr = 0
        self._lvt = dict(LVT_RESET)
        self.timer.reset()

    def reset(self) -> None:
        """RESET#: enabled globally, disabled by software, PIC passed through."""
        self._power_on()
        self._update()

    # -- what the processor sees

    @property
    def enabled(self) -> bool:
        """Whether the APIC accepts interrupts: on in the base MSR and in the spurious vector register."""
        return self._svr & SVR_ENABLE != 0 and self._base & BASE_ENABLE != 0

    @property
    def intr(self) -> bool:
        """Whether an interrupt is to be delivered."""
        return self._deliverable() or (self.pic.intr and self._passes_pic())

    def acknowledge(self) -> int | None:
        """INTA: the vector to deliver. Fixed interrupts come first, then ExtINT from the PIC.

        The spurious vector when something is requested but held back by the priority; None when nothing is.
        """
        if self._deliverable():
            vector = self._irr.bit_length() - 1
            bit = 1 << vector
            self._irr ^= bit
            if not self.auto_eoi & bit:
                self._isr |= bit
        elif self.pic.intr and self._passes_pic():
            external = self.pic.acknowledge()
            self._update()
            return external
        elif self._irr and self.enabled:
            vector = self._svr & 0xFF
        else:
            return None
        self._update()
        return vector

    def _deliverable(self) -> bool:
        if not self._irr or not self._svr & SVR_ENABLE or not self._base & BASE_ENABLE:
            return False
        requested = (self._irr.bit_length() - 1) >> 4
        return requested > (self._isr.bit_length() - 1) >> 4 and requested > self._tpr >> 4

    def _passes_pic(self) -> bool:
        return not self.enabled or self._lvt[LINT0] & (LVT_MASKED | 0x700) == EXTINT << 8

    def _update(self) -> None:
        level = self._deliverable() or (self.pic.intr and self._passes_pic())
        if level != self._driven:
            self._driven = level
            self.output(level)

    # -- where interrupts come from

    def inject(self, vector: int, level_triggered: bool = False) -> None:
        """Accept a fixed interrupt message, from the I/O APIC, an IPI or a synthetic source."""
        if not self._svr & SVR_ENABLE or not self._base & BASE_ENABLE:
            return
        if vector < FIRST_LEGAL_VECTOR:
            self._error(ESR_RECEIVE_ILLEGAL)
            return
        bit = 1 << vector
        self._irr |= bit
        if level_triggered:
            self._tmr |= bit
        elif self._tmr:
            self._tmr &= ~bit
        if not self._driven:  # one more request takes none back
            self._update()

    def pic_changed(self, level: bool) -> None:
        """The PIC's INTR output, wired to LINT0, has changed."""
        self._pin_changed(LINT0, level)
        self._update()

    def lint1_changed(self, level: bool) -> None:
        """The LINT1 pin (NMI on a PC) has changed."""
        self._pin_changed(LINT1, level)

    def _pin_changed(self, pin: int, level: bool) -> None:
        rising = level and not self._pins[pin]
        self._pins[pin] = level
        entry = self._lvt[pin]
        if level and (rising or entry & LVT_LEVEL):
            self._deliver_local(pin)

    def _deliver_local(self, offset: int) -> None:
        entry = self._lvt[offset]
        if entry & LVT_MASKED or not self.enabled:
            return
        mode = entry >> 8 & 7
        if mode == NMI:
            self.on_nmi()
        elif mode == FIXED and not entry & LVT_REMOTE_IRR:
            level_triggered = entry & LVT_LEVEL != 0
            if level_triggered:
                self._lvt[offset] = entry | LVT_REMOTE_IRR
            self.inject(entry & 0xFF, level_triggered)

    def _timer_expired(self) -> None:
        self.inject(self._lvt[TIMER] & 0xFF)

    def _error(self, bits: int) -> None:
        new = bits & ~self._errors
        self._errors |= bits
        entry = self._lvt[ERROR]
        # An illegal vector in the error entry itself must not report itself for ever.
        if new and not entry & LVT_MASKED and entry & 0xFF >= FIRST_LEGAL_VECTOR:
            self.inject(entry & 0xFF)

    # -- the register page

    def read_memory(self, address: int, size: int) -> int:
        """Load from the register page; a register answers in the first four bytes of its sixteen."""
        if not self._base & BASE_ENABLE:
            return (1 << 8 * size) - 1
        within = address & 0xF
        if within > 3:
            return 0
        return self._register(address & 0xFF0) >> 8 * within & ((1 << 8 * size) - 1)

    def _register(self, offset: int) -> int:
        read = _READ.get(offset)
        if read is not None:
            return read(self)
        if offset in self._lvt:
            return self._lvt[offset]
        if 0x100 <= offset < 0x280:
            bits = (self._isr, self._tmr, self._irr)[(offset - 0x100) >> 7]
            return bits >> 2 * (offset & 0x70) & 0xFFFFFFFF
        self._error(ESR_REGISTER)
        return 0

    def write_memory(self, address: int, size: int, value: int) -> None:
        """Store to the register page; only whole, aligned registers are taken."""
        if address & 0xF or size < 4 or not self._base & BASE_ENABLE:
            return
        offset = address & 0xFF0
        if offset == 0xB0:
            self._end_of_interrupt()
            return
        value &= 0xFFFFFFFF
        if offset == 0x80:
            self._tpr = value & 0xFF
            self._update()
            return
        write = _WRITE.get(offset)
        if write is not None:
            write(self, value)
        elif offset in self._lvt:
            self._write_lvt(offset, value)
        elif offset not in _READ and not 0x100 <= offset < 0x280:
            self._error(ESR_REGISTER)

    def _end_of_interrupt(self) -> None:
        isr = self._isr
        if not isr:
            return
        vector = isr.bit_length() - 1
        bit = 1 << vector
        self._isr = isr ^ bit
        if self._tmr & bit:
            self._end_local_level(vector)
            self.on_eoi(vector)
        self._update()

    def _end_local_level(self, vector: int) -> None:
        for pin, level in self._pins.items():
            entry = self._lvt[pin]
            if entry & LVT_REMOTE_IRR and entry & 0xFF == vector:
                self._lvt[pin] = entry & ~LVT_REMOTE_IRR
                if level:
                    self._deliver_local(pin)

    @property
    def ppr(self) -> int:
        """The processor priority: the higher of the task priority and the class in service."""
        in_service = max(self._isr.bit_length() - 1, 0) & 0xF0
        return self._tpr if self._tpr & 0xF0 >= in_service else in_service

    def _write_id(self, value: int) -> None:
        self._id = value & 0xFF000000

    def _write_ldr(self, value: int) -> None:
        self._ldr = value & 0xFF000000

    def _write_dfr(self, value: int) -> None:
        self._dfr = value | 0x0FFFFFFF

    def _write_svr(self, value: int) -> None:
        self._svr = value & 0x3FF
        if not value & SVR_ENABLE:
            for offset in self._lvt:
                self._lvt[offset] |= LVT_MASKED
            self.timer.write_entry(self._lvt[TIMER])
        self._update()

    def _write_esr(self, value: int) -> None:
        self._esr, self._errors = self._errors, 0  # a write latches what gathered since the last one

    def _write_icr_high(self, value: int) -> None:
        self._icr = self._icr & 0xFFFFFFFF | (value & 0xFF000000) << 32

    def _write_icr_low(self, value: int) -> None:
        self._icr = self._icr >> 32 << 32 | value & 0xCCFFF
        if not self._addressed(value):
            return
        mode = value >> 8 & 7
        vector = value & 0xFF
        if mode == NMI:
            self.on_nmi()
        elif mode in (FIXED, LOWEST):
            if vector < FIRST_LEGAL_VECTOR:
                self._error(ESR_SEND_ILLEGAL)
            else:
                self.inject(vector)

    def _addressed(self, icr: int) -> bool:
        """Whether an IPI is for this, the only processor (INIT and SIPI then do nothing)."""
        shorthand = icr >> 18 & 3
        if shorthand:
            return shorthand != 3
        destination = self._icr >> 56
        if not icr & 1 << 11:
            return destination in (0xFF, self._id >> 24)
        logical = self._ldr >> 24
        if self._dfr >> 28 == 0xF:
            return destination & logical != 0
        return destination == 0xFF or (destination >> 4 == logical >> 4 and destination & logical & 0xF != 0)

    def _write_lvt(self, offset: int, value: int) -> None:
        old = self._lvt[offset]
        entry = value & LVT_WRITABLE[offset]
        if not self._svr & SVR_ENABLE:
            entry |= LVT_MASKED
        if entry & LVT_LEVEL:
            entry |= old & LVT_REMOTE_IRR
        self._lvt[offset] = entry
        if offset == TIMER:
            self.timer.write_entry(entry)
        elif self._pins.get(offset, False) and entry & LVT_LEVEL:
            self._deliver_local(offset)
        self._update()

    # -- IA32_APIC_BASE (MSR 1Bh)

    @property
    def base(self) -> int:
        """The value of the IA32_APIC_BASE MSR."""
        return self._base

    def write_base(self, value: int) -> bool:
        """Write the MSR; False (for #GP) on reserved bits, x2APIC mode among them. The page itself stays at FEE00000h."""
        if value & ~BASE_WRITABLE:
            return False
        was_enabled = self._base & BASE_ENABLE
        self._base = value & ~BASE_BSP | self._base & BASE_BSP
        if was_enabled and not value & BASE_ENABLE:
            self._initialise()
        self._update()
        return True

    # -- saved state

    def save(self) -> State:
        lvt = self._lvt
        return State(
            base=self._base,
            id=self._id,
            tpr=self._tpr,
            ldr=self._ldr,
            dfr=self._dfr,
            svr=self._svr,
            isr=self._isr,
            tmr=self._tmr,
            irr=self._irr,
            esr=self._esr,
            errors=self._errors,
            icr=self._icr,
            lvt=(lvt[TIMER], lvt[THERMAL], lvt[PERF], lvt[LINT0], lvt[LINT1], lvt[ERROR]),
            pins=(self._pins[LINT0], self._pins[LINT1]),
            timer=self.timer.save(),
        )

    def restore(self, state: Any) -> None:
        if not isinstance(state, State) or state.version != 1:
            raise ValueError("this is not a saved local APIC of version 1")
        self._base, self._id, self._tpr = state.base, state.id, state.tpr
        self._ldr, self._dfr, self._svr = state.ldr, state.dfr, state.svr
        self._isr, self._tmr, self._irr = state.isr, state.tmr, state.irr
        self._esr, self._errors, self._icr = state.esr, state.errors, state.icr
        self._lvt = dict(zip((TIMER, THERMAL, PERF, LINT0, LINT1, ERROR), state.lvt, strict=True))
        self._pins = {LINT0: state.pins[0], LINT1: state.pins[1]}
        self.timer.restore(state.timer, self._lvt[TIMER])
        self._driven = self.intr
        self.output(self._driven)


_READ: dict[int, Callable[[LocalApic], int]] = {
    0x20: lambda apic: apic._id,
    0x30: lambda apic: VERSION,
    0x80: lambda apic: apic._tpr,
    0x90: lambda apic: 0,  # arbitration priority: no APIC bus
    0xA0: lambda apic: apic.ppr,
    0xB0: lambda apic: 0,
    0xC0: lambda apic: 0,  # remote read
    0xD0: lambda apic: apic._ldr,
    0xE0: lambda apic: apic._dfr,
    0xF0: lambda apic: apic._svr,
    0x280: lambda apic: apic._esr,
    0x300: lambda apic: apic._icr & 0xFFFFFFFF,
    0x310: lambda apic: apic._icr >> 32,
    0x380: lambda apic: apic.timer.initial,
    0x390: lambda apic: apic.timer.count,
    0x3E0: lambda apic: apic.timer.divide,
}

_WRITE: dict[int, Callable[[LocalApic, int], None]] = {
    0x20: LocalApic._write_id,
    0xD0: LocalApic._write_ldr,
    0xE0: LocalApic._write_dfr,
    0xF0: LocalApic._write_svr,
    0x280: LocalApic._write_esr,
    0x300: LocalApic._write_icr_low,
    0x310: LocalApic._write_icr_high,
    0x380: lambda apic, value: apic.timer.write_initial(value),
    0x3E0: lambda apic, value: apic.timer.write_divide(value),
}


def _ignore_level(level: bool) -> None:
    """Nobody is wired to the output."""


def _ignore_vector(vector: int) -> None:
    """Nobody listens for EOI messages."""


def _nothing() -> None:
    """Nobody takes NMIs."""
