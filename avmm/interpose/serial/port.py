"""The emulated serial port: a 16550 whose wire is a driver of another one.

Its transmitter is empty when the physical one is, so a guest never gives it more than that has room for; its receiver is filled from the
physical one as there is room. Everything else, loopback too, is its own.

The invariant: what the guest reads in LSR is true of both ports together.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from avmm.devices.uart import FIFO, OE, TEMT, Uart
from avmm.interpose.serial.driver import SerialDriver
from avmm.interpose.serial.sequence import DATA, DLAB, IIR_FCR, LOOP, MSR
from avmm.platform.cable import Cable


@dataclass(frozen=True, slots=True)
class PortState:
    """A saved emulated port."""

    uart: Uart.State
    trigger_known: bool
    handed: int
    version: int = 1


class EmulatedUart(Uart):
    """The VMM's device model."""

    def __init__(self, cable: Cable, base: int, irq: int, name: str, driver: SerialDriver) -> None:
        self.driver = driver
        self.trigger_known = True
        """Whether ``fcr`` is what the guest has set, or only its lowest bit."""
        driver.port = self
        super().__init__(cable, base, irq, name)

    def reset(self) -> None:
        """Reset the physical port too, if we drive it."""
        super().reset()
        self.trigger_known = True
        if self.driver.driving or self.driver.probing:
            self.driver.stop()
            self.driver.handed = 0
            self.driver.begin_again()

    def _choose(self) -> None:
        """No byte goes straight out: the driver takes it."""
        self._direct = False

    # -- what the driver sees

    @property
    def sending(self) -> deque[int]:
        """What the guest gave to the transmitter, as long as it has not left the physical FIFO."""
        return self._tx

    @property
    def received(self) -> deque[tuple[int, int]]:
        """Bytes with their errors that the guest has not read."""
        return self._rx

    @property
    def has_room(self) -> bool:
        """Whether the receiver takes another byte."""
        return self._room > 0 and not self.mcr & LOOP

    @property
    def overrun_pending(self) -> bool:
        """Whether the guest has yet to see that bytes were lost."""
        return self._overrun

    @property
    def empty_pending(self) -> bool:
        """Whether the transmitter's interrupt is pending."""
        return self._thre_pending

    def overrun_seen(self, status: int) -> None:
        """The physical port lost bytes."""
        if status & OE:
            self._overrun = True
            self._update()

    def take(self, byte: int, errors: int) -> None:
        """A byte came."""
        self._arrive(byte, errors)
        self._update()

    def sent(self, count: int) -> None:
        """The physical transmitter is empty: the first ``count`` bytes have left it."""
        for _ in range(count):
            self._tx.popleft()
        if count and not self._tx:
            self._thre_pending = True
            self._update()

    def modem(self, msr: int) -> None:
        """The modem's lines are so, and have changed so."""
        lines = msr & 0xF0
        if lines != self._modem or msr & 0x0F:
            self._modem = lines
            if not self.mcr & LOOP:
                self.msr |= msr & 0x0F
            self._modem_changed()

    def still(self) -> None:
        """Nothing happens here any more."""
        self._timeout_timer.cancel()

    # -- what the guest does

    def read(self, port: int, size: int) -> int:
        if port - self.base == MSR:
            self.driver.poll()
        return super().read(port, size)

    def _read_lsr(self) -> int:
        physical = self.driver.poll()
        status = super()._read_lsr()
        busy = self.driver.driving and not physical & TEMT and not self.mcr & LOOP
        return status & ~TEMT if busy else status

    def _read_rbr(self) -> int:
        byte = super()._read_rbr()
        self.driver.poll()
        return byte

    def write(self, port: int, size: int, value: int) -> None:
        register = port - self.base
        if register == DATA and not self.lcr & DLAB and not self.mcr & LOOP:
            self._transmit(value)
            return
        super().write(port, size, value)
        if register == IIR_FCR:
            self.trigger_known = True
            self.driver.clear(value)
        self.driver.follow()

    def _transmit(self, value: int) -> None:
        self._thre_pending = False
        if len(self._tx) < (FIFO if self.fcr & 1 else 1):
            self._tx.append(value)
        self._update()
        self.driver.send()

    # -- saved state

    def continue_from(self, state: Uart.State, *, trigger_known: bool) -> None:
        """Be as the physical port was found."""
        super().restore(state)
        self.trigger_known = trigger_known
        self.driver.handed = len(self._tx)
        if not self._timeout:
            self._active()

    def save(self) -> Any:
        if self.driver.probing:
            raise ValueError(f"{self.name} is being looked at: save it afterwards")
        return PortState(super().save(), self.trigger_known, self.driver.handed)

    def restore(self, state: Any) -> None:
        if not isinstance(state, PortState) or state.version != 1:
            raise ValueError("this is not an emulated serial port's state of version 1")
        super().restore(state.uart)
        self.trigger_known, self.driver.handed = state.trigger_known, state.handed
