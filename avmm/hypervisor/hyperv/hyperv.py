"""The enlightened interface as one device: synthetic MSRs, hypercalls, SynIC and timers of the one virtual processor.

After the Hypervisor Top Level Functional Specification (TLFS); where it is silent, as OpenVMM's hv1_emulator and KVM do. It has no
ports: CPUID, MSR and VMMCALL exits come to it through :meth:`HyperV.install`. The SINT and timer vectors are local-APIC
vectors, so a guest must have enabled its local APIC (spurious vector register) to be interrupted.

The invariant: a write that a guest must not make is #GP and changes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mypy_extensions import mypyc_attr

from avmm.clock import Timer
from avmm.cpu.engine import Processor
from avmm.devices.device import Board, Device
from avmm.devices.lapic_registers import BASE as APIC_BASE
from avmm.hypervisor.features import TSC_ADJUST, TSC_ADJUST_7_EBX, Msrs, Quad, cpuid
from avmm.hypervisor.hyperv import hypercall
from avmm.hypervisor.hyperv import registers as reg
from avmm.hypervisor.hyperv.hypercall import Connections, Status
from avmm.hypervisor.hyperv.overlay import Overlay, OverlayState
from avmm.hypervisor.hyperv.stimer import SyntheticTimer, TimerState
from avmm.hypervisor.hyperv.synic import InterruptSink, Synic, SynicState

Handler = tuple[Callable[[], int | None], Callable[[int], bool]]
_CRASH_TEXT = 4096
_REFERENCE_SCALE = (1 << 64) * 1_000_000_000 // (reg.REFERENCE_NS * reg.TSC_HZ) + 1  # rounded up: agrees with the counter MSR


class Apic(InterruptSink, Protocol):
    """The local APIC, for the short-cut MSRs."""

    def read_memory(self, address: int, size: int) -> int:
        """Load from the register page."""

    def write_memory(self, address: int, size: int, value: int) -> None:
        """Store to the register page."""


@dataclass(frozen=True)
@mypyc_attr(native_class=False)
class State:
    """Everything the guest can see."""

    guest_os_id: int
    hypercall: int
    reference_tsc: int
    assist: int
    tsc_invariant: int
    crash: tuple[int, ...]
    overlays: tuple[OverlayState, OverlayState, OverlayState]
    synic: SynicState
    timers: tuple[TimerState, ...]
    version: int = 1


class HyperV(Device):
    """What an enlightened guest talks to. The VMBus plugs itself into :attr:`connections`."""

    name = "hyperv"

    def __init__(self, board: Board, processor: Processor, apic: Apic) -> None:
        super().__init__(board)
        self.processor = processor
        self.apic = apic
        self.connections = Connections(lambda *message: Status.INVALID_CONNECTION_ID, lambda *event: Status.INVALID_CONNECTION_ID)
        """Where posted messages and signalled events go."""
        self.on_idle: Callable[[], None] = _nothing
        """The guest has nothing to do (GUEST_IDLE was read)."""
        self.calls: dict[int, int] = {}
        """Hypercalls by code since power-on."""
        self._memory = board.memory
        self.synic = Synic(board.memory, apic)
        self.timers = tuple(SyntheticTimer(index, self.clock, self.synic) for index in range(reg.TIMERS))
        self._code, self._time, self._assist_page = (Overlay(board.memory) for _ in range(3))
        self._clear()

    def _clear(self) -> None:
        self.guest_os_id = 0
        self._hypercall = self._reference_tsc = self._assist = self._tsc_invariant = 0
        self._crash = [0] * reg.CRASH_PARAMETERS

    def reset(self) -> None:
        """As after power-on; RAM under overlay pages keeps what it holds."""
        self._clear()
        for overlay in (self._code, self._time, self._assist_page):
            overlay.reset()
        self.synic.reset()
        for timer in self.timers:
            timer.reset()

    def install(self, msrs: Msrs) -> None:
        """Take the synthetic MSRs, CPUID and VMMCALL of the processor."""
        for index, handler in self.handlers().items():
            msrs.handlers[index] = handler
        self.processor.callbacks.cpuid = leaf
        self.processor.callbacks.hypercall = self.hypercall

    def use_apic(self, apic: Apic) -> None:
        """Another instance is the local APIC from now on."""
        self.apic = self.synic.apic = apic
        self.synic.tell_apic()

    # -- hypercalls

    def hypercall(self, control: int, first: int) -> int | None:
        """VMMCALL was executed, by a kernel. Returns the result value; None for #UD, while the guest has no hypercall page."""
        return self.call(control, first) if self._hypercall & reg.PAGE_ENABLE else None

    def call(self, control: int, first: int) -> int:
        """Perform a hypercall by its control word; returns the result value."""
        code = control & 0xFFFF
        seen = self.calls.get(code, 0)
        if seen or len(self.calls) < 64:
            self.calls[code] = seen + 1
        return hypercall.dispatch(self._memory, self.connections, control, first)

    # -- synthetic MSRs

    def reference_time(self) -> int:
        """Reference time: 100 ns units since the partition was created."""
        return self.clock.now() // reg.REFERENCE_NS

    def handlers(self) -> dict[int, Handler]:
        """Return all registers: index -> (read, None for #GP; write, False for #GP)."""
        synic = self.synic
        table: dict[int, Handler] = {
            reg.GUEST_OS_ID: (lambda: self.guest_os_id, self._write_os_id),
            reg.HYPERCALL: (lambda: self._hypercall, self._write_hypercall),
            reg.VP_INDEX: (lambda: 0, _refuse),
            reg.RESET: (lambda: 0, self._write_reset),
            reg.TIME_REF_COUNT: (self.reference_time, _refuse),
            reg.REFERENCE_TSC: (lambda: self._reference_tsc, self._write_reference_tsc),
            reg.TSC_FREQUENCY: (lambda: reg.TSC_HZ, _refuse),
            reg.APIC_FREQUENCY: (lambda: reg.APIC_HZ, _refuse),
            reg.EOI: (_unreadable, self._write_eoi),
            reg.ICR: (self._read_icr, self._write_icr),
            reg.TPR: (lambda: self.apic.read_memory(APIC_BASE + 0x80, 4), self._write_tpr),
            reg.VP_ASSIST_PAGE: (lambda: self._assist, self._write_assist),
            reg.SCONTROL: (lambda: synic.control, synic.write_control),
            reg.SVERSION: (lambda: 1, _refuse),
            reg.SIEFP: (lambda: synic.event_page, synic.write_event_page),
            reg.SIMP: (lambda: synic.message_page, synic.write_message_page),
            reg.EOM: (lambda: 0, synic.write_eom),
            reg.GUEST_IDLE: (self._idle, _refuse),
            reg.TSC_INVARIANT: (lambda: self._tsc_invariant, self._write_tsc_invariant),
            TSC_ADJUST: (_unreadable, _refuse),  # the reference TSC page relies on a time stamp counter that nobody changes
            reg.CRASH_CTL: (lambda: reg.CRASH_NOTIFY | reg.CRASH_MESSAGE, self._write_crash),
        }
        for number in range(reg.SINTS):
            table[reg.SINT0 + number] = self._sint(number)
        for timer in self.timers:
            table[reg.STIMER0_CONFIG + 2 * timer.index] = _timer_config(timer)
            table[reg.STIMER0_COUNT + 2 * timer.index] = _timer_count(timer)
        for number in range(reg.CRASH_PARAMETERS):
            table[reg.CRASH_P0 + number] = self._crash_parameter(number)
        return table

    def _sint(self, number: int) -> Handler:
        return lambda: self.synic.sints[number], lambda value: self.synic.write_sint(number, value)

    def _crash_parameter(self, number: int) -> Handler:
        def write(value: int) -> bool:
            self._crash[number] = value
            return True

        return lambda: self._crash[number], write

    def _write_os_id(self, value: int) -> bool:
        self.guest_os_id = value
        if not value:
            self._hypercall &= ~reg.PAGE_ENABLE
            self._code.disable()
        return True

    def _write_hypercall(self, value: int) -> bool:
        if self._hypercall & reg.HYPERCALL_LOCKED or value & reg.HYPERCALL_RESERVED:
            return False
        address = value & reg.PAGE_NUMBER
        if not self.guest_os_id:
            value &= ~reg.PAGE_ENABLE  # a guest must say who it is first
        if value & reg.PAGE_ENABLE:
            if not self._code.fits(address):
                return False
            self._code.enable(address, reg.HYPERCALL_CODE.ljust(4096, b"\xcc"))
        else:
            self._code.disable()
        self._hypercall = value
        return True

    def _write_reset(self, value: int) -> bool:
        if value & ~1:
            return False
        if value & 1:
            self.board.reset("the guest asked for it (Hyper-V reset register)")
        return True

    def _write_reference_tsc(self, value: int) -> bool:
        if not self._time.place(value, struct.pack("<IIQq", 1, 0, _REFERENCE_SCALE, 0)):
            return False
        self._reference_tsc = value
        return True

    def _write_assist(self, value: int) -> bool:
        if not self._assist_page.place(value):
            return False
        self._assist = value
        return True

    def _write_tsc_invariant(self, value: int) -> bool:
        """The guest relies on the time stamp counter, which always counts machine time here."""
        if value & ~1:
            return False
        self._tsc_invariant = value
        return True

    def _write_eoi(self, value: int) -> bool:
        if value >> 32:
            return False
        self.apic.write_memory(APIC_BASE + 0xB0, 4, 0)
        return True

    def _read_icr(self) -> int:
        return self.apic.read_memory(APIC_BASE + 0x310, 4) << 32 | self.apic.read_memory(APIC_BASE + 0x300, 4)

    def _write_icr(self, value: int) -> bool:
        self.apic.write_memory(APIC_BASE + 0x310, 4, value >> 32)
        self.apic.write_memory(APIC_BASE + 0x300, 4, value & 0xFFFFFFFF)
        return True

    def _write_tpr(self, value: int) -> bool:
        if value > 0xFF:
            return False
        self.apic.write_memory(APIC_BASE + 0x80, 4, value)
        return True

    def _idle(self) -> int:
        """The guest waits for something to do. It is woken at once, which the interface allows."""
        self.on_idle()
        return 0

    def _write_crash(self, value: int) -> bool:
        if value & ~(reg.CRASH_NOTIFY | reg.CRASH_MESSAGE):
            return False
        if value & reg.CRASH_NOTIFY:
            text = ""
            if value & reg.CRASH_MESSAGE:
                address, length = self._crash[3], min(self._crash[4], _CRASH_TEXT)
                length = max(0, min(length, self.board.memory.size - address))
                text = self.board.memory.read(address, length).rstrip(b"\0").decode("utf-8", "replace")
            parameters = " ".join(f"{parameter:#x}" for parameter in self._crash)
            self.board.trace("guest crash", parameters=parameters, message=text)
        return True

    # -- saved state

    def deadlines(self) -> list[Timer]:
        return [timer.deadline for timer in self.timers]

    def save(self) -> State:
        return State(
            self.guest_os_id, self._hypercall, self._reference_tsc, self._assist, self._tsc_invariant, tuple(self._crash),
            (self._code.save(), self._time.save(), self._assist_page.save()),
            self.synic.save(), tuple(timer.save() for timer in self.timers),
        )  # fmt: skip

    def restore(self, state: Any) -> None:
        if not isinstance(state, State) or state.version != 1:
            raise ValueError("this is not a saved Hyper-V interface of version 1")
        if len(state.crash) != reg.CRASH_PARAMETERS:
            raise ValueError(f"a saved Hyper-V interface with {len(state.crash)} crash registers")
        self.guest_os_id, self._hypercall = state.guest_os_id, state.hypercall
        self._reference_tsc, self._assist, self._tsc_invariant = state.reference_tsc, state.assist, state.tsc_invariant
        self._crash = list(state.crash)
        for overlay, saved in zip((self._code, self._time, self._assist_page), state.overlays, strict=True):
            overlay.restore(saved)
        self.synic.restore(state.synic)
        for timer, one in zip(self.timers, state.timers, strict=True):
            timer.restore(one)


def leaf(number: int, subleaf: int, native: Quad) -> Quad:
    """CPUID of an enlightened partition."""
    if 0x40000000 <= number < 0x40010000:
        return reg.LEAVES.get(number, (0, 0, 0, 0))
    a, b, c, d = cpuid(number, subleaf, native)
    return a, b & ~TSC_ADJUST_7_EBX if number == 7 else b, c, d


def _timer_config(timer: SyntheticTimer) -> Handler:
    return lambda: timer.config, timer.write_config


def _timer_count(timer: SyntheticTimer) -> Handler:
    return lambda: timer.count, timer.write_count


def _refuse(value: int) -> bool:
    return False


def _unreadable() -> None:
    return None


def _nothing() -> None:
    """Nobody cares whether the guest idles."""
