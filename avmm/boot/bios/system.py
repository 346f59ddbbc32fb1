"""Int 11h, 12h and 15h: equipment, memory, and the system services.

IBM PS/2 and PC BIOS Interface Technical Reference, int 15h; ACPI specification, "System Address Map Interfaces" (E820h);
E801h, E881h and 24xxh as in Phoenix and AMI BIOSes. The invariant: what is not offered answers AH=86h with CF set, and AH=4Fh
passes the caller's CF through.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from avmm.boot.bios import bda
from avmm.boot.bios.caller import Caller, PortAccess
from avmm.boot.bios.clock import ClockServices
from avmm.boot.bios.mouse import Mouse
from avmm.boot.bios.rom import CONFIG_TABLE, ROM_SEGMENT
from avmm.memory import GuestMemory

MIB = 1 << 20
SMAP = 0x534D4150
USABLE, RESERVED = 1, 2
UNSUPPORTED = 0x86

MemoryMap = Sequence[tuple[int, int, int]]
"""(base, length, type) in ascending order; type 1 usable, 2 reserved, 3 ACPI tables, 4 ACPI NVS."""


def default_map(memory_size: int) -> list[tuple[int, int, int]]:
    """Return the map of a plain PC: 639 KiB, the EBDA, the ROM area, and everything from 1 MiB."""
    entries = [(0, bda.EBDA, USABLE), (bda.EBDA, 0xA0000 - bda.EBDA, RESERVED), (0xF0000, 0x10000, RESERVED)]
    if memory_size > MIB:
        entries.append((MIB, memory_size - MIB, USABLE))
    return entries


class SystemServices:
    """Int 11h, 12h, 15h."""

    def __init__(
        self,
        caller: Caller,
        memory: GuestMemory,
        ports: PortAccess,
        clock: ClockServices,
        mouse: Mouse | None,
        *,
        memory_size: int,
        memory_map: MemoryMap,
    ) -> None:
        self.caller = caller
        self.memory = memory
        self.ports = ports
        self.clock = clock
        self.mouse = mouse
        self.memory_size = memory_size
        self.memory_map = tuple(memory_map)

    def equipment(self) -> None:
        """Int 11h."""
        self.caller["ax"] = self.memory.unpack("<H", bda.EQUIPMENT)[0]

    def base_memory(self) -> None:
        """Int 12h."""
        self.caller["ax"] = self.memory.unpack("<H", bda.MEMORY_KIB)[0]

    def call(self) -> None:
        """Int 15h."""
        caller = self.caller
        caller.wait(False)
        function = caller["ah"]
        if function == 0x4F:
            return  # keyboard intercept: CF = 1 on entry means "process this scan code"
        handler = _FUNCTIONS.get(function)
        if handler is None:
            self._unsupported()
        else:
            handler(self)

    def poll_wait(self) -> None:
        """The stub asks whether the wait of AH=86h is over."""
        over = self.clock.wait_over()
        self.caller.wait(not over)
        if over:
            self._done()

    def _done(self, status: int = 0) -> None:
        self.caller["ah"] = status
        self.caller.carry(status != 0)

    def _unsupported(self) -> None:
        self._done(UNSUPPORTED)

    def _a20(self) -> None:
        """AX=2400h-2403h, by port 92h."""
        caller = self.caller
        function, latch = caller["al"], self.ports.read(0x92, 1)
        if function in (0, 1):
            self.ports.write(0x92, 1, latch & 0xFC | function << 1)  # bit 0 would reset the machine
        elif function == 2:
            caller["al"] = latch >> 1 & 1
        elif function == 3:
            caller["bx"] = 0x0003  # by the keyboard controller and by port 92h
        else:
            self._unsupported()
            return
        self._done()

    def _event_wait(self) -> None:
        """AH=83h: set a flag after CX:DX microseconds, or cancel."""
        caller = self.caller
        if caller["al"] == 1:
            self.clock.cancel_wait()
        elif caller["al"] or not self.clock.start_wait(caller["es"], caller["bx"], caller["cx"] << 16 | caller["dx"]):
            caller.carry(True)
            return
        self._done()

    def _wait(self) -> None:
        """AH=86h: wait for CX:DX microseconds, in the stub."""
        caller = self.caller
        if self.clock.start_wait(0, bda.WAIT_ACTIVE, caller["cx"] << 16 | caller["dx"]):
            caller.wait(True)
        else:
            self._done(0x83)

    def _move(self) -> None:
        """AH=87h: CX words from and to the bases in the descriptors at ES:SI + 10h and + 18h; addresses are physical."""
        caller = self.caller
        table, words = caller.address("es", "si"), caller["cx"]
        source, target = (_descriptor_base(caller.read(table + at, 8)) for at in (0x10, 0x18))
        if words > 0x8000:
            self._done(0x02)
            return
        self.memory.write(target, self.memory.read(source, 2 * words))
        self._done()

    def _extended_size(self) -> None:
        """AH=88h: KiB from 1 MiB, at most 63 MiB."""
        self.caller["ax"] = max(0, min(self.memory_size - MIB, 63 * MIB) >> 10)
        self.caller.carry(False)

    def _configuration(self) -> None:
        """AH=C0h: the configuration table in ROM."""
        self.caller["es"], self.caller["bx"] = ROM_SEGMENT, CONFIG_TABLE
        self._done()

    def _ebda(self) -> None:
        """AH=C1h."""
        self.caller["es"] = bda.EBDA_SEGMENT
        self.caller.carry(False)

    def _pointing_device(self) -> None:
        if self.mouse is None:
            self._unsupported()
        else:
            self.mouse.call()

    def _large_memory(self) -> None:
        """AX=E801h, E820h, E881h."""
        caller = self.caller
        function = caller["al"]
        if function == 0x20 and caller["edx"] == SMAP:
            self._address_map()
        elif function in (0x01, 0x81):
            low = max(0, min(self.memory_size - MIB, 15 * MIB) >> 10)
            high = max(0, min(self.memory_size, 0xC0000000) - 16 * MIB) >> 16
            names = ("ax", "bx", "cx", "dx") if function == 0x01 else ("eax", "ebx", "ecx", "edx")
            for name, value in zip(names, (low, high, low, high), strict=True):
                caller[name] = value
            caller.carry(False)
        else:
            self._unsupported()

    def _address_map(self) -> None:
        """AX=E820h: one entry into ES:DI; EBX is the index of the next, 0 after the last."""
        caller = self.caller
        index = caller["ebx"]
        if index >= len(self.memory_map) or caller["ecx"] < 20:
            self._unsupported()
            return
        caller.write(caller.address("es", "di"), struct.pack("<QQI", *self.memory_map[index]))
        caller["eax"], caller["ecx"] = SMAP, 20
        caller["ebx"] = (index + 1) % len(self.memory_map)
        caller.carry(False)


def _descriptor_base(descriptor: bytes) -> int:
    return int.from_bytes(descriptor[2:5] + descriptor[7:8], "little")


_FUNCTIONS: dict[int, Callable[[SystemServices], None]] = {
    0x24: SystemServices._a20,
    0x52: SystemServices._done,  # removable media eject: allowed
    0x80: SystemServices._done,  # device open, close, program termination: hooks for operating systems
    0x81: SystemServices._done,
    0x82: SystemServices._done,
    0x83: SystemServices._event_wait,
    0x85: SystemServices._done,  # SysReq
    0x86: SystemServices._wait,
    0x87: SystemServices._move,
    0x88: SystemServices._extended_size,
    0x90: SystemServices._done,  # device busy and interrupt complete: hooks, too
    0x91: SystemServices._done,
    0xC0: SystemServices._configuration,
    0xC1: SystemServices._ebda,
    0xC2: SystemServices._pointing_device,
    0xE8: SystemServices._large_memory,
}
