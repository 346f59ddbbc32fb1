"""Int 8 (IRQ 0), int 70h (IRQ 8), int 1Ah AH=00h-07h, and the waits of int 15h AH=83h and 86h.

IBM PC/AT Technical Reference, "ROM BIOS" (time of day, real-time clock). Waits count the clock's periodic interrupt at 1024 Hz,
as on an AT, with the count in the BIOS data area: they take machine time and interrupts go on meanwhile.
The invariant: one wait at a time (0040:00A0); a second one is refused with CF.
"""

from __future__ import annotations

from avmm.boot.bios import bda, cmos
from avmm.boot.bios.caller import Caller, PortAccess
from avmm.boot.bios.cmos import Cmos
from avmm.memory import GuestMemory

TICKS_PER_DAY = 0x1800B0
PERIOD_US = 976
"""The periodic interrupt at 1024 Hz, as the BIOS counts it."""

_WAITING, _PASSED = 0x01, 0x80


class ClockServices:
    """The timer and clock services."""

    def __init__(self, caller: Caller, memory: GuestMemory, ports: PortAccess) -> None:
        self.caller = caller
        self.memory = memory
        self.ports = ports
        self.cmos = Cmos(ports)

    # -- interrupts

    def tick(self) -> None:
        """IRQ 0: count, and note midnight."""
        ticks = self.memory.unpack("<I", bda.TICKS)[0] + 1
        if ticks >= TICKS_PER_DAY:
            ticks = 0
            self.memory.write(bda.TICKS_MIDNIGHT, b"\x01")
        self.memory.pack("<I", bda.TICKS, ticks)

    def tick_done(self) -> None:
        """IRQ 0 after int 1Ch: end of interrupt."""
        self.ports.write(0x20, 1, 0x20)

    def rtc_interrupt(self) -> None:
        """IRQ 8: the periodic interrupt counts a wait down; AL = 1 if the alarm went off, for int 4Ah."""
        flags = self.cmos[cmos.REGISTER_C] & self.cmos[cmos.REGISTER_B]
        if flags & cmos.PF and self.memory.read(bda.WAIT_ACTIVE, 1)[0] & _WAITING:
            left = self.memory.unpack("<I", bda.WAIT_COUNT)[0] - PERIOD_US
            self.memory.pack("<I", bda.WAIT_COUNT, max(left, 0))
            if left <= 0:
                self._expire()
        self.ports.write(0xA0, 1, 0x20)
        self.ports.write(0x20, 1, 0x20)
        self.caller["al"] = int(bool(flags & cmos.AF))

    def _expire(self) -> None:
        offset, segment = self.memory.unpack("<HH", bda.WAIT_POINTER)
        self.memory.write(bda.WAIT_ACTIVE, b"\0")
        self.cmos.change(cmos.REGISTER_B, cmos.PIE, 0)
        flag = (segment << 4) + offset
        self.caller.write(flag, bytes((self.caller.read(flag, 1)[0] | _PASSED,)))

    # -- waits

    def start_wait(self, segment: int, offset: int, microseconds: int) -> bool:
        """Begin to count; bit 7 of the byte at ``segment:offset`` is set at the end. False while another wait lasts."""
        if self.memory.read(bda.WAIT_ACTIVE, 1)[0] & _WAITING:
            return False
        self.memory.pack("<HHIB", bda.WAIT_POINTER, offset, segment, microseconds, _WAITING)
        self.cmos.change(cmos.REGISTER_A, 0x7F, 0x26)
        self._unmask()
        self.cmos.change(cmos.REGISTER_B, cmos.SET, cmos.PIE)
        return True

    def cancel_wait(self) -> None:
        """AX=8301h."""
        self.memory.write(bda.WAIT_ACTIVE, b"\0")
        self.cmos.change(cmos.REGISTER_B, cmos.PIE, 0)

    def wait_over(self) -> bool:
        """Whether the wait of AH=86h has passed (or was cancelled from an interrupt); if so it is forgotten."""
        if self.memory.read(bda.WAIT_ACTIVE, 1)[0] & _WAITING:
            return False
        self.memory.write(bda.WAIT_ACTIVE, b"\0")
        return True

    def _unmask(self) -> None:
        self.ports.write(0xA1, 1, self.ports.read(0xA1, 1) & 0xFE)
        self.ports.write(0x21, 1, self.ports.read(0x21, 1) & 0xFB)

    # -- int 1Ah

    def call(self) -> None:
        """Int 1Ah AH=00h-07h."""
        caller, rtc = self.caller, self.cmos
        function = caller["ah"]
        carry = False
        if function == 0x00:
            ticks, midnight = self.memory.unpack("<IB", bda.TICKS)
            self.memory.write(bda.TICKS_MIDNIGHT, b"\0")
            caller["al"], caller["cx"], caller["dx"] = midnight, ticks >> 16, ticks & 0xFFFF
        elif function == 0x01:
            self.memory.pack("<IB", bda.TICKS, caller["cx"] << 16 | caller["dx"], 0)
        elif function == 0x02:
            caller["ch"], caller["cl"], caller["dh"] = rtc[cmos.HOURS], rtc[cmos.MINUTES], rtc[cmos.SECONDS]
            caller["dl"] = rtc[cmos.REGISTER_B] & cmos.DSE
        elif function == 0x03:
            self._set({cmos.HOURS: caller["ch"], cmos.MINUTES: caller["cl"], cmos.SECONDS: caller["dh"]}, caller["dl"] & cmos.DSE)
        elif function == 0x04:
            caller["ch"], caller["cl"] = rtc[cmos.CENTURY], rtc[cmos.YEAR]
            caller["dh"], caller["dl"] = rtc[cmos.MONTH], rtc[cmos.DAY]
        elif function == 0x05:
            date = {cmos.CENTURY: caller["ch"], cmos.YEAR: caller["cl"], cmos.MONTH: caller["dh"], cmos.DAY: caller["dl"]}
            self._set(date, rtc[cmos.REGISTER_B] & cmos.DSE)
        elif function == 0x06:
            carry = bool(rtc[cmos.REGISTER_B] & cmos.AIE)  # an alarm is set already
            if not carry:
                rtc[cmos.HOURS_ALARM], rtc[cmos.MINUTES_ALARM], rtc[cmos.SECONDS_ALARM] = caller["ch"], caller["cl"], caller["dh"]
                self._unmask()
                rtc.change(cmos.REGISTER_B, cmos.SET, cmos.AIE)
        elif function == 0x07:
            rtc.change(cmos.REGISTER_B, cmos.AIE, 0)
        else:
            carry = True
        if not carry and function != 0:
            caller["ah"] = 0
        caller.carry(carry)

    def _set(self, values: dict[int, int], daylight: int) -> None:
        rtc = self.cmos
        rtc.change(cmos.REGISTER_B, cmos.DM | cmos.DSE, cmos.SET | cmos.HOURS_24 | daylight)
        for index, value in values.items():
            rtc[index] = value
        rtc.change(cmos.REGISTER_B, cmos.SET, 0)
