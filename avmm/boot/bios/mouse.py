"""Int 15h AH=C2h and int 74h (IRQ 12): the pointing device behind the i8042's auxiliary port.

IBM PS/2 and PC BIOS Interface Technical Reference, int 15h AH=C2h. The packet under way and the user's handler are in the
extended BIOS data area. The invariant: answers to the BIOS's own commands never reach the handler.
"""

from __future__ import annotations

from avmm.boot.bios import bda
from avmm.boot.bios.caller import Caller, PortAccess
from avmm.boot.bios.rom import MOUSE_HANDLER
from avmm.memory import GuestMemory

_HANDLER = bda.EBDA + MOUSE_HANDLER
_INDEX = bda.EBDA + 0x26
_SIZE = bda.EBDA + 0x27
_PACKET = bda.EBDA + 0x28
_ANSWERS = bda.EBDA + 0x30
_SETTINGS = bda.EBDA + 0x31  # status byte, resolution, rate

_RATES = (10, 20, 40, 60, 80, 100, 200)
_OBF, _AUX = 0x01, 0x20
INVALID_FUNCTION, INVALID_INPUT, NO_HANDLER = 1, 2, 5


class Mouse:
    """The pointing device services."""

    def __init__(self, caller: Caller, memory: GuestMemory, ports: PortAccess) -> None:
        self.caller = caller
        self.memory = memory
        self.ports = ports

    def prepare(self) -> None:
        """POST: no handler, three-byte packets, power-on settings."""
        self.memory.write(_HANDLER, bytes((0, 0, 0, 0, 0, 3)))
        self.memory.write(_ANSWERS, bytes((0, 0, 2, 100)))

    def _byte(self, address: int) -> int:
        return self.memory.read(address, 1)[0]

    def _set(self, address: int, value: int) -> None:
        self.memory.write(address, bytes((value & 0xFF,)))

    # -- int 74h

    def interrupt(self) -> None:
        """IRQ 12: AL = 1, with BX, CX, DX = status, x, y and DS = EBDA, when the handler is to be called."""
        caller = self.caller
        complete = False
        if self.ports.read(0x64, 1) & (_OBF | _AUX) == _OBF | _AUX:
            complete = self._take(self.ports.read(0x60, 1))
        self.ports.write(0xA0, 1, 0x20)
        self.ports.write(0x20, 1, 0x20)
        call = complete and self.memory.unpack("<I", _HANDLER)[0] != 0
        if call:
            caller["bx"], caller["cx"], caller["dx"] = self.memory.read(_PACKET, 3)
            caller["ds"] = bda.EBDA_SEGMENT
        caller["al"] = int(call)

    def _take(self, value: int) -> bool:
        if answers := self._byte(_ANSWERS):
            self._set(_ANSWERS, answers - 1)
            return False
        index = self._byte(_INDEX) & 7
        if not index and not value & 0x08:
            return False  # bit 3 is always 1 in the first byte: out of step
        self._set(_PACKET + index, value)
        index += 1
        complete = index >= (self._byte(_SIZE) & 7 or 8)
        self._set(_INDEX, 0 if complete else index)
        return complete

    def _send(self, *commands: int, answers: int = 0) -> None:
        """Send bytes to the device. Its answers are taken at once if they are there, else by the interrupt."""
        for command in commands:
            self.ports.write(0x64, 1, 0xD4)
            self.ports.write(0x60, 1, command)
            self._set(_ANSWERS, self._byte(_ANSWERS) + 1)
            self._drain()
        self._set(_ANSWERS, self._byte(_ANSWERS) + answers)
        self._drain()
        self._set(_INDEX, 0)

    def _drain(self) -> None:
        while self._byte(_ANSWERS) and self.ports.read(0x64, 1) & (_OBF | _AUX) == _OBF | _AUX:
            self.ports.read(0x60, 1)
            self._set(_ANSWERS, self._byte(_ANSWERS) - 1)

    def _interrupts(self) -> None:
        """Let IRQ 12 through: controller command byte, 8259 masks."""
        self.ports.write(0x64, 1, 0xA8)
        self.ports.write(0x64, 1, 0x60)
        self.ports.write(0x60, 1, 0x47)
        self.ports.write(0xA1, 1, self.ports.read(0xA1, 1) & 0xEF)
        self.ports.write(0x21, 1, self.ports.read(0x21, 1) & 0xFB)

    # -- int 15h AH=C2h

    def call(self) -> None:
        """AX=C200h-C207h."""
        caller = self.caller
        function, bh = caller["al"], caller["bh"]
        status = self._function(function, bh)
        caller["ah"] = status
        caller.carry(status != 0)

    def _function(self, function: int, bh: int) -> int:
        caller = self.caller
        if function == 0x00:
            if bh > 1:
                return INVALID_INPUT
            if bh and not self.memory.unpack("<I", _HANDLER)[0]:
                return NO_HANDLER
            self._interrupts()
            self._send(0xF4 if bh else 0xF5)
            self._set(_SETTINGS, self._byte(_SETTINGS) & ~0x20 | bh << 5)
        elif function in (0x01, 0x05):
            if function == 0x05:
                if not 1 <= bh <= 8:
                    return INVALID_INPUT
                self._set(_SIZE, bh & 7)
            self._interrupts()
            self._send(0xFF, answers=2)  # ACK, then AAh 00h after the self-test
            self.memory.write(_SETTINGS, bytes((0, 2, 100)))
            if function == 0x01:
                caller["bx"] = 0x00AA
        elif function == 0x02:
            if bh >= len(_RATES):
                return INVALID_INPUT
            self._send(0xF3, _RATES[bh])
            self._set(_SETTINGS + 2, _RATES[bh])
        elif function == 0x03:
            if bh > 3:
                return INVALID_INPUT
            self._send(0xE8, bh)
            self._set(_SETTINGS + 1, bh)
        elif function == 0x04:
            caller["bh"] = 0
        elif function == 0x06:
            return self._settings(bh)
        elif function == 0x07:
            self.memory.pack("<HH", _HANDLER, caller["bx"], caller["es"])
        else:
            return INVALID_FUNCTION
        return 0

    def _settings(self, bh: int) -> int:
        if bh == 0:
            self.caller["bl"], self.caller["cl"], self.caller["dl"] = self.memory.read(_SETTINGS, 3)
        elif bh in (1, 2):
            self._send(0xE6 if bh == 1 else 0xE7)
            self._set(_SETTINGS, self._byte(_SETTINGS) & ~0x10 | (bh - 1) << 4)
        else:
            return INVALID_INPUT
        return 0
