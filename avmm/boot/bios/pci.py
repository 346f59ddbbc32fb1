"""Int 1Ah AH=B1h: the PCI BIOS, by configuration mechanism 1.

PCI BIOS Specification 2.1, section 4. The invariant: without a PCI host that answers at CF8h/CFCh, no function is present.
"""

from __future__ import annotations

from collections.abc import Iterator

from avmm.boot.bios.caller import Caller, PortAccess

SUCCESSFUL, FUNC_NOT_SUPPORTED, BAD_VENDOR_ID, DEVICE_NOT_FOUND, BAD_REGISTER_NUMBER = 0x00, 0x81, 0x83, 0x86, 0x87
ADDRESS, DATA = 0xCF8, 0xCFC


class PciServices:
    """The PCI BIOS functions 01h-03h and 08h-0Dh."""

    def __init__(self, caller: Caller, ports: PortAccess, last_bus: int = 0) -> None:
        self.caller = caller
        self.ports = ports
        self.last_bus = last_bus

    def _read(self, where: int, register: int, size: int) -> int:
        self.ports.write(ADDRESS, 4, 0x80000000 | where << 8 | register & 0xFC)
        return self.ports.read(DATA + register % 4, size)

    def present(self) -> bool:
        """Whether the address latch holds what is written and device 0 answers."""
        self.ports.write(ADDRESS, 4, 0x80000000)
        return self.ports.read(ADDRESS, 4) == 0x80000000 and self._read(0, 0, 2) != 0xFFFF

    def _functions(self) -> Iterator[int]:
        for where in range((self.last_bus + 1) << 8):
            if where & 7 and not self._read(where & ~7, 0x0E, 1) & 0x80:
                continue  # not a multi-function device
            if self._read(where, 0, 2) not in (0xFFFF, 0):
                yield where

    def call(self) -> None:
        """Int 1Ah AH=B1h, with bit 7 of AL (the 32-bit entry) ignored."""
        caller = self.caller
        function = caller["al"] & 0x7F
        if not self.present():
            status = FUNC_NOT_SUPPORTED
        elif function == 0x01:
            caller["edx"], caller["edi"] = 0x20494350, 0  # "PCI "; no protected-mode entry
            caller["al"], caller["bx"], caller["cl"] = 0x01, 0x0210, self.last_bus
            status = SUCCESSFUL
        elif function == 0x02:
            status = self._find(0, 4, caller["cx"] << 16 | caller["dx"]) if caller["dx"] != 0xFFFF else BAD_VENDOR_ID
        elif function == 0x03:
            status = self._find(8, 4, caller["ecx"] & 0xFFFFFF)
        elif 0x08 <= function <= 0x0D:
            status = self._access(function)
        else:
            status = FUNC_NOT_SUPPORTED
        caller["ah"] = status
        caller.carry(status != SUCCESSFUL)

    def _find(self, register: int, size: int, wanted: int) -> int:
        """Find the SIth device whose identification (offset 0) or class code (offset 8, upper three bytes) is ``wanted``."""
        index = self.caller["si"]
        for where in self._functions():
            value = self._read(where, register, size)
            if (value >> 8 if register == 8 else value) == wanted:
                if not index:
                    self.caller["bx"] = where
                    return SUCCESSFUL
                index -= 1
        return DEVICE_NOT_FOUND

    def _access(self, function: int) -> int:
        caller = self.caller
        size = 1 << (function - 8) % 3
        register, where = caller["di"], caller["bx"]
        if register > 0xFF or register % size:
            return BAD_REGISTER_NUMBER
        name = {1: "cl", 2: "cx", 4: "ecx"}[size]
        if function <= 0x0A:
            caller[name] = self._read(where, register, size)
        else:
            value = caller[name]
            self.ports.write(ADDRESS, 4, 0x80000000 | where << 8 | register & 0xFC)
            self.ports.write(DATA + register % 4, size, value)
        return SUCCESSFUL
