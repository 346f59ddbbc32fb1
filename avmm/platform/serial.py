"""A serial port on a cable whose other end is held by the guest, or by the VMM: a 16550A with the speed of its line.

It stands for real hardware (National Semiconductor PC16550D), so a byte takes the time on the line that the divisor says and the
transmitter fills up. The modem's side of the port is not on the cable: what is on the line comes and goes whoever drives the port.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avmm.devices.uart import Uart
from avmm.platform.cable import Cable


class SerialLink:
    """A port and the cable to it. ``read`` and ``write`` are for the VMM's end."""

    def __init__(self, cable: Cable, uart: Uart) -> None:
        self.cable = cable
        self.uart = uart
        self.irq = uart.line

    @property
    def handlers(self) -> tuple[Callable[[int, int], Any], Callable[[int, int, int], Any]]:
        """What answers the ports."""
        return self.uart.read, self.uart.write

    def read(self, address: int, size: int = 1) -> int:
        """IN from ``address``."""
        return self.uart.read(address, size)

    def write(self, address: int, value: int, size: int = 1) -> None:
        """OUT to ``address``."""
        self.uart.write(address, size, value)

    def give_to(self, *, guest: bool) -> None:
        """Put the other end of the cable into the guest's hands, or the VMM's."""
        self.cable.give_to(guest=guest)

    def reset(self) -> None:
        """Master reset."""
        self.uart.reset()

    def save(self) -> Uart.State:
        """Return the port's state."""
        return self.uart.save()

    def restore(self, state: Uart.State) -> None:
        """Continue from ``state``."""
        self.uart.restore(state)
