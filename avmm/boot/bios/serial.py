"""Int 14h: the serial ports, on the 8250 whose address is in the BIOS data area; and int 17h, where no printer is.

IBM PC/AT Technical Reference, "ROM BIOS" (RS-232 communications). The invariant: a call never blocks the VMM: the stub
polls until the character is through or the time-out of 0040:007C has passed.
"""

from __future__ import annotations

from avmm.boot.bios import bda
from avmm.boot.bios.caller import Caller, PortAccess
from avmm.clock import SECOND, Clock
from avmm.memory import GuestMemory

_BAUD = (110, 150, 300, 600, 1200, 2400, 4800, 9600)
_THR, _LCR, _MCR, _LSR, _MSR = 0, 3, 4, 5, 6
_DR, _THRE = 0x01, 0x20
TIMEOUT = 0x80


class SerialServices:
    """Int 14h functions 00h-03h."""

    def __init__(self, caller: Caller, memory: GuestMemory, ports: PortAccess, clock: Clock) -> None:
        self.caller = caller
        self.memory = memory
        self.ports = ports
        self.clock = clock
        self.deadlines: dict[int, int] = {}
        """Machine time at which the call in progress on a port gives up."""

    def call(self) -> None:
        """Int 14h: the first look at the port."""
        caller = self.caller
        number, function = caller["dx"], caller["ah"]
        base = self.memory.unpack("<H", bda.COM_PORTS + 2 * number)[0] if number < 4 else 0
        caller.wait(False)
        if not base:
            caller["ah"] = TIMEOUT
        elif function == 0x00:
            self._initialize(base, caller["al"])
        elif function in (0x01, 0x02):
            self.ports.write(base + _MCR, 1, self.ports.read(base + _MCR, 1) & ~0x03 | (0x03 if function == 1 else 0x01))
            seconds = self.memory.read(bda.COM_TIMEOUTS + number, 1)[0]
            self.deadlines[number] = self.clock.now() + max(seconds, 1) * SECOND
            self._transfer(number, base, function)
        elif function == 0x03:
            self._status(base)
        else:
            caller["ah"] = TIMEOUT

    def poll(self) -> None:
        """The stub asks again."""
        number = self.caller["dx"]
        base = self.memory.unpack("<H", bda.COM_PORTS + 2 * number)[0] if number < 4 else 0
        self._transfer(number, base, self.caller["ah"])

    def _transfer(self, number: int, base: int, function: int) -> None:
        caller = self.caller
        status = self.ports.read(base + _LSR, 1)
        ready = bool(status & (_THRE if function == 0x01 else _DR))
        caller.wait(not ready)
        if ready:
            self.deadlines.pop(number, None)
            if function == 0x01:
                self.ports.write(base + _THR, 1, caller["al"])
            else:
                caller["al"] = self.ports.read(base + _THR, 1)
                status &= 0x1E  # only what went wrong
            caller["ah"] = status & ~TIMEOUT
        elif self.clock.now() >= self.deadlines.get(number, 0):
            self.deadlines.pop(number, None)
            caller.wait(False)
            caller["ah"] = status | TIMEOUT

    def _initialize(self, base: int, settings: int) -> None:
        divisor = 115200 // _BAUD[settings >> 5]
        self.ports.write(base + _LCR, 1, 0x80)
        self.ports.write(base, 1, divisor & 0xFF)
        self.ports.write(base + 1, 1, divisor >> 8)
        self.ports.write(base + _LCR, 1, settings & 0x1F)
        self.ports.write(base + 1, 1, 0)
        self._status(base)

    def _status(self, base: int) -> None:
        self.caller["ah"] = self.ports.read(base + _LSR, 1)
        self.caller["al"] = self.ports.read(base + _MSR, 1)


def no_printer(caller: Caller) -> None:
    """Int 17h: time-out and not selected, for every function."""
    if caller["ah"] <= 2:
        caller["ah"] = 0x01
