"""ACPI power management: the fixed hardware of an 82371AB (PIIX4), at a fixed I/O base.

After the ACPI specification, "ACPI Hardware Specification" (PM1 event and control registers, PM timer, GPE block), with
the addresses of the PIIX4 datasheet, section 7.2, and its software SMI ports B2h and B3h, which switch between legacy and ACPI mode.

The invariant: the SCI (IRQ 9, level) is asserted exactly while SCI_EN is set and an enabled event has its status bit set.
"""

from __future__ import annotations

from dataclasses import dataclass

from avmm.clock import SECOND
from avmm.devices.device import Board, Device, PortRange

PM_BASE = 0xB000
"""Where the block is unless the machine says otherwise."""

# Offsets in the block
PM1_EVENT = 0
PM1_CONTROL = 4
PM_TIMER = 8
GPE0 = 16

SMI_COMMAND = 0xB2
SMI_STATUS = 0xB3
SCI_IRQ = 9

ACPI_ENABLE = 0xF1
ACPI_DISABLE = 0xF0

TIMER_HZ = 3_579_545
TIMER_CARRY = 23  # TMR_STS is set when this bit of the timer changes

TMR_STS = 1 << 0
GBL_STS = 1 << 5
PWRBTN_STS = 1 << 8
_STATUS_BITS = 0x8D31  # TMR, BM, GBL, PWRBTN, RTC, (resume) as the PIIX4 has them
_ENABLE_BITS = 0x0521
SCI_EN = 1 << 0
SLP_EN = 1 << 13
_CONTROL_BITS = 0x1C03  # SCI_EN, BM_RLD, SLP_TYP; SLP_EN and GBL_RLS read as 0
SLP_TYP_SOFT_OFF = 0

# Where each byte of the event, control and GPE registers lives, by offset: (attribute, shift).
_BYTES = {
    PM1_EVENT: ("status", 0),
    PM1_EVENT + 1: ("status", 8),
    PM1_EVENT + 2: ("enable", 0),
    PM1_EVENT + 3: ("enable", 8),
    PM1_CONTROL: ("control", 0),
    PM1_CONTROL + 1: ("control", 8),
    GPE0: ("gpe_status", 0),
    GPE0 + 1: ("gpe_status", 8),
    GPE0 + 2: ("gpe_enable", 0),
    GPE0 + 3: ("gpe_enable", 8),
}
_SMI_BYTES = {SMI_COMMAND: ("command", 0), SMI_STATUS: ("command", 8)}


class AcpiPower(Device):
    """PM1a event and control blocks, the PM timer, GPE0, and the ACPI enable command. ``base`` is a multiple of 64."""

    name = "acpi-power"
    @dataclass(frozen=True)
    class State:
        """The registers; ``carry`` is the timer's carry count when TMR_STS was last cleared."""

        status: int
        enable: int
        control: int
        gpe_status: int
        gpe_enable: int
        command: int
        carry: int
        version: int = 1

    def __init__(self, board: Board, base: int = PM_BASE) -> None:
        super().__init__(board)
        self.ports = (
            PortRange(base + PM1_EVENT, 4, 2),
            PortRange(base + PM1_CONTROL, 2, 2),
            PortRange(base + PM_TIMER, 4, 4),
            PortRange(base + GPE0, 4, 2),
            PortRange(SMI_COMMAND, 2, 1),
        )
        self._timer_ports = range(base + PM_TIMER, base + PM_TIMER + 4)
        self._bytes = {base + offset: place for offset, place in _BYTES.items()} | _SMI_BYTES
        self.sci = board.line(SCI_IRQ)
        self.timer = self.clock.timer(self._update)
        self._power_on()

    def _power_on(self) -> None:
        self.status = 0  # without TMR_STS, which follows from the clock
        self.enable = 0
        self.control = 0
        self.gpe_status = 0
        self.gpe_enable = 0
        self.command = 0
        self._carry = self._ticks() >> TIMER_CARRY

    def reset(self) -> None:
        """RESET#: legacy mode, nothing enabled, SCI low."""
        self._power_on()
        self._update()

    # -- what people do to the machine

    def press_power_button(self) -> bool:
        """Press the power button; return whether the guest is listening for it (ACPI mode, PWRBTN_EN set)."""
        self.status |= PWRBTN_STS
        self._update()
        return self.control & SCI_EN != 0 and self.enable & PWRBTN_STS != 0

    def raise_gpe(self, number: int) -> None:
        """Set general-purpose event ``number`` (0-15)."""
        self.gpe_status |= 1 << number & 0xFFFF
        self._update()

    # -- time

    def _ticks(self) -> int:
        return self.clock.now() * TIMER_HZ // SECOND

    def _status(self) -> int:
        return self.status | (self._ticks() >> TIMER_CARRY != self._carry)

    def _update(self) -> None:
        """Drive the SCI, and wait for the timer's carry only while somebody hears it."""
        listening = self.control & SCI_EN != 0
        self.timer.cancel()
        if listening and self.enable & TMR_STS and self._ticks() >> TIMER_CARRY == self._carry:
            ticks = (self._carry + 1) << TIMER_CARRY
            self.timer.arm(-(-ticks * SECOND // TIMER_HZ))
        event = self._status() & self.enable or self.gpe_status & self.gpe_enable
        self.sci.set(listening and event != 0)

    # -- ports

    def read(self, port: int, size: int) -> int:
        if port in self._timer_ports:
            value = (self._ticks() & 0xFFFFFF) >> 8 * (port & 3)
            return value & ((1 << 8 * size) - 1)
        value = 0
        for index in range(size):
            value |= self._read_byte(port + index) << 8 * index
        return value

    def _read_byte(self, port: int) -> int:
        place = self._bytes.get(port)
        if place is None:
            return 0xFF
        name, shift = place
        value: int = self._status() if name == "status" else getattr(self, name)
        return value >> shift & 0xFF

    def write(self, port: int, size: int, value: int) -> None:
        for index in range(size):
            place = self._bytes.get(port + index)
            if place is not None:
                name, shift = place
                _WRITE[name](self, (value >> 8 * index & 0xFF) << shift, 0xFF << shift)
        self._update()

    # Each takes the written byte in its place in the register, and the mask of that byte.

    def _write_status(self, value: int, mask: int) -> None:
        if value & TMR_STS:
            self._carry = self._ticks() >> TIMER_CARRY
        self.status &= ~(value & _STATUS_BITS)

    def _write_enable(self, value: int, mask: int) -> None:
        self.enable = (self.enable & ~mask | value) & _ENABLE_BITS

    def _write_control(self, value: int, mask: int) -> None:
        self.control = (self.control & ~mask | value) & _CONTROL_BITS
        if value & SLP_EN:
            sleep_type = self.control >> 10 & 7
            if sleep_type == SLP_TYP_SOFT_OFF:
                self.board.power_off("the guest entered ACPI S5")
            else:
                self.board.trace("acpi-power.sleep", type=sleep_type)  # \_S1 to \_S4 are not offered

    def _write_gpe_status(self, value: int, mask: int) -> None:
        self.gpe_status &= ~value

    def _write_gpe_enable(self, value: int, mask: int) -> None:
        self.gpe_enable = self.gpe_enable & ~mask | value

    def _write_command(self, value: int, mask: int) -> None:
        self.command = self.command & ~mask | value
        if mask & 0xFF:
            if value == ACPI_ENABLE:
                self.control |= SCI_EN
            elif value == ACPI_DISABLE:
                self.control &= ~SCI_EN

    # -- saved state

    def save(self) -> State:
        return self.State(
            self.status, self.enable, self.control, self.gpe_status, self.gpe_enable, self.command, self._carry
        )

    def restore(self, state: State) -> None:
        if not isinstance(state, self.State) or state.version != 1:
            raise ValueError("this is not a saved ACPI power management of version 1")
        self.status, self.enable, self.control = state.status, state.enable, state.control
        self.gpe_status, self.gpe_enable, self.command = state.gpe_status, state.gpe_enable, state.command
        self._carry = state.carry
        self._update()


_WRITE = {
    "status": AcpiPower._write_status,
    "enable": AcpiPower._write_enable,
    "control": AcpiPower._write_control,
    "gpe_status": AcpiPower._write_gpe_status,
    "gpe_enable": AcpiPower._write_gpe_enable,
    "command": AcpiPower._write_command,
}
