"""The real-time clock and its CMOS RAM as the firmware reaches them, through ports 70h and 71h (MC146818)."""

from __future__ import annotations

from avmm.boot.bios.caller import PortAccess

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
DAY, MONTH, YEAR = 7, 8, 9
REGISTER_A, REGISTER_B, REGISTER_C = 0x0A, 0x0B, 0x0C
SHUTDOWN = 0x0F
CENTURY = 0x32

SET, PIE, AIE, DM, HOURS_24, DSE = 0x80, 0x40, 0x20, 0x04, 0x02, 0x01
PF, AF = 0x40, 0x20


class Cmos:
    """Indexed access. An update in progress does not matter: the VMM reads all registers at one instant of machine time."""

    def __init__(self, ports: PortAccess) -> None:
        self.ports = ports

    def __getitem__(self, index: int) -> int:
        self.ports.write(0x70, 1, index)
        return self.ports.read(0x71, 1)

    def __setitem__(self, index: int, value: int) -> None:
        self.ports.write(0x70, 1, index)
        self.ports.write(0x71, 1, value & 0xFF)

    def change(self, index: int, clear: int, on: int) -> None:
        """Clear and set bits of a register."""
        self[index] = self[index] & ~clear | on

    def ticks_of_day(self) -> int:
        """Timer ticks (1193182 / 65536 Hz) since midnight, from the time of day in BCD."""
        hours, minutes, seconds = (_bcd(self[index]) for index in (HOURS, MINUTES, SECONDS))
        return ((hours * 60 + minutes) * 60 + seconds) % 86400 * 1193182 >> 16


def _bcd(value: int) -> int:
    return (value >> 4) * 10 + (value & 15)
