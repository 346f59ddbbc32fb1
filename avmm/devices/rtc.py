"""The real-time clock and CMOS memory of a PC: Motorola MC146818A with 128 bytes, ports 70h (index) and 71h (data).

Follows the Motorola MC146818A data sheet (ADI1165), sections "Update Cycle", "Interrupts" and "Registers"; the century byte
(32h) is kept up to date as on chipsets that do. What the BIOS finds in CMOS is in :mod:`avmm.devices.cmos`.

The time registers are plain bytes that are brought up to date when somebody looks. Flags are set then, too; a timer is armed
only for an interrupt that is enabled and could change the line.

The invariant: ``_settled`` and ``_beats`` are the second and the periodic interval up to which registers and flags are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from avmm.clock import SECOND
from avmm.devices import cmos
from avmm.devices.device import Board, Device, PortRange

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
WEEKDAY, DAY, MONTH, YEAR, A, B, C, D = range(6, 14)
CENTURY = 0x32

UIP = 0x80
"""Register A: an update is near or under way."""
SET, PIE, AIE, UIE, SQWE, DM, H24, DSE = 0x80, 0x40, 0x20, 0x10, 0x08, 0x04, 0x02, 0x01
IRQF, PF, AF, UF = 0x80, 0x40, 0x20, 0x10
VRT = 0x80
"""Register D: the battery is good."""
PM = 0x80

UPDATE_WINDOW = 244_000 + 1_984_000
"""ns before the registers change in which UIP is set: tBUC, then the update itself, tUC."""
CRYSTAL = 32768
EPOCH = datetime(1970, 1, 1)


class Rtc(Device):
    """The clock: at machine time 0 it shows ``base`` (UTC seconds since 1970, or a datetime whose fields are shown as they are).

    Daylight saving (DSE) and the square wave are only stored, as on most chipsets. Read or change CMOS through ``cells``.
    """

    name = "rtc"
    ports = (PortRange(0x70, 2),)

    @dataclass(frozen=True, slots=True)
    class State:
        """All bytes as they are, and where the divider stands (``phase``: ns at which some second began)."""

        cells: bytes
        index: int
        nmi_masked: bool
        phase: int
        settled: int
        beats: int
        due: int | None
        version: int = 1

    def __init__(
        self, board: Board, base: datetime | int, memory_size: int, *, high_memory: int = 0, cpus: int = 1, floppies: Sequence[int] = ()
    ) -> None:
        super().__init__(board)
        self.cells = bytearray(128)
        """The raw bytes; those of the clock are right as of the last access."""
        self.nmi_masked = False
        self._line = board.line(8)
        self._timer = self.clock.timer(self._settle)
        self._index = 0
        self._phase = 0
        self.cells[A] = 0x26
        self.cells[D] = VRT
        self.cells[B] = H24
        self._settled = self._second()
        self._beats = self._beat()
        start = EPOCH + timedelta(seconds=base) if isinstance(base, int) else base.replace(tzinfo=None)
        start += timedelta(seconds=self._settled)
        self._encode_time(start, start.isoweekday() % 7 + 1)
        cmos.set_memory(self.cells, memory_size, high_memory)
        cmos.set_cpus(self.cells, cpus)
        self.set_floppies(floppies)
        self.set_boot_order(("disk", "floppy", "cdrom"))

    # -- what the BIOS is told

    def set_floppies(self, types: Sequence[int]) -> None:
        """Say which floppy drives there are (see :func:`avmm.devices.cmos.set_floppies`)."""
        cmos.set_floppies(self.cells, types)

    def set_disks(self, geometries: Sequence[tuple[int, int, int] | None]) -> None:
        """Say the (cylinders, heads, sectors per track) of the first two hard disks."""
        cmos.set_disks(self.cells, geometries)

    def set_boot_order(self, order: Sequence[str]) -> None:
        """Choose what to boot from: up to three of "floppy", "disk", "cdrom", "network"."""
        cmos.set_boot_order(self.cells, order)

    def time(self) -> datetime:
        """Return the date and time the registers show (fields out of range are carried over)."""
        self._settle()
        return self._decode_time()

    # -- ports

    def plain(self, port: int, size: int, value: int | None = None) -> bool:
        """The index that says what 71h is next."""
        return port == 0x70 and value is not None

    def read(self, port: int, size: int) -> int:
        if port == 0x70:
            return 0xFF  # write-only
        index = self._index
        if index > D and index != CENTURY:
            return self.cells[index]
        self._settle()
        value = self.cells[index]
        if index == A:
            return value | UIP * self._updating()
        if index == C:
            self.cells[C] = 0
            self._interrupt()
        return value

    def write(self, port: int, size: int, value: int) -> None:
        if port == 0x70:
            self._index = value & 0x7F
            self.nmi_masked = value >= 0x80
            return
        index = self._index
        if index > D:
            if index == CENTURY:
                self._settle()
            self.cells[index] = value
            return
        self._settle()
        if index == A:
            self._write_a(value & 0x7F)
        elif index == B:
            # "The SET bit going high clears the UIE bit."
            self.cells[B] = value & ~UIE if value & SET else value
        elif index < A:
            self.cells[index] = value
        self._interrupt()

    def _write_a(self, value: int) -> None:
        was_reset = self._divider_reset
        self.cells[A] = value
        if was_reset and not self._divider_reset:
            # "When the divider is changed from reset to an operating time base, the first update cycle is one-half second later."
            self._phase = self.clock.now() - SECOND // 2
            self._settled = self._second()
        self._beats = self._beat()

    # -- time

    @property
    def _divider_reset(self) -> bool:
        return self.cells[A] & 0x60 == 0x60

    @property
    def _stopped(self) -> bool:
        """Whether updates are inhibited."""
        return bool(self.cells[B] & SET) or self._divider_reset

    def _second(self) -> int:
        """Return the number of updates the divider has given so far."""
        return (self.clock.now() - self._phase) // SECOND

    def _updating(self) -> bool:
        return not self._stopped and (self.clock.now() - self._phase) % SECOND >= SECOND - UPDATE_WINDOW

    def _interval(self) -> int:
        """Return the periodic interval in crystal cycles, 0 when there is none."""
        rate = self.cells[A] & 0x0F
        if not rate or self._divider_reset:
            return 0
        return 1 << (rate + 6 if rate <= 2 else rate - 1)

    def _beat(self) -> int:
        """Return the number of periodic intervals the divider has given so far."""
        interval = self._interval()
        return (self.clock.now() - self._phase) * CRYSTAL // (SECOND * interval) if interval else 0

    def _settle(self) -> None:
        """Bring registers and flags up to now; also what the timer does."""
        flags = 0
        beats = self._beat()
        if beats != self._beats:
            self._beats = beats
            flags = PF
        second = self._second()
        passed = second - self._settled
        if passed:
            self._settled = second
            if not self._stopped:
                flags |= UF | self._update(passed)
        if flags:
            self.cells[C] |= flags
        self._interrupt()

    def _update(self, passed: int) -> int:
        """Let ``passed`` seconds go by; return AF if the alarm was met in one of them."""
        before = self._decode_time()
        wait = self._alarm_wait(before)
        after = before + timedelta(seconds=passed)
        weekday, days = self.cells[WEEKDAY], after.toordinal() - before.toordinal()
        if days:  # a counter of its own: the guest may have set it to anything
            weekday = (weekday - 1 + days) % 7 + 1
        self._encode_time(after, weekday)
        return AF if wait is not None and wait <= passed else 0

    def _interrupt(self) -> None:
        """Derive IRQF and the line from flags and enables, and arm the timer for what could raise it next."""
        b, c = self.cells[B], self.cells[C]
        pending = bool(b & c & (PF | AF | UF))
        self.cells[C] = c & ~IRQF | IRQF * pending
        due = None if pending else self._next_due(b)
        if due is None:
            self._timer.cancel()
        elif due != self._timer.due:
            self._timer.arm(due)
        self._line.set(pending)

    def _next_due(self, b: int) -> int | None:
        """Return when the first enabled interrupt will come (ns)."""
        due: list[int] = []
        interval = self._interval()
        if b & PIE and interval:
            due.append(self._phase - (-(self._beats + 1) * interval * SECOND // CRYSTAL))
        if b & (UIE | AIE) and not self._stopped:
            wait = 1 if b & UIE else self._alarm_wait(self._decode_time())
            if wait is not None:
                due.append(self._phase + (self._settled + wait) * SECOND)
        return min(due, default=None)

    # -- the bytes of time

    def _from_register(self, value: int) -> int:
        return value if self.cells[B] & DM else (value >> 4) * 10 + (value & 15)

    def _to_register(self, value: int) -> int:
        return value if self.cells[B] & DM else value // 10 << 4 | value % 10

    def _hour_register(self, hour: int) -> int:
        if self.cells[B] & H24:
            return self._to_register(hour)
        return self._to_register((hour + 11) % 12 + 1) | PM * (hour >= 12)

    def _decode_time(self) -> datetime:
        """Return what the registers say; nonsense is carried into the next field, so there is always an answer."""
        cells, number = self.cells, self._from_register
        hour = number(cells[HOURS])
        if not cells[B] & H24:
            hour = number(cells[HOURS] & 0x7F) % 12 + 12 * (cells[HOURS] >= PM)
        century = (cells[CENTURY] >> 4) * 10 + (cells[CENTURY] & 15)
        year = min(max(century * 100 + number(cells[YEAR]), 1), 9900)
        month = min(max(number(cells[MONTH]), 1), 12)
        rest = timedelta(days=number(cells[DAY]) - 1, hours=hour, minutes=number(cells[MINUTES]), seconds=number(cells[SECONDS]))
        return datetime(year, month, 1) + max(rest, timedelta(0))

    def _encode_time(self, time: datetime, weekday: int) -> None:
        cells, register = self.cells, self._to_register
        cells[SECONDS] = register(time.second)
        cells[MINUTES] = register(time.minute)
        cells[HOURS] = self._hour_register(time.hour)
        cells[WEEKDAY] = weekday
        cells[DAY] = register(time.day)
        cells[MONTH] = register(time.month)
        cells[YEAR] = register(time.year % 100)
        century = time.year // 100
        cells[CENTURY] = century // 10 << 4 | century % 10  # in BCD always: the BIOS reads it so

    def _alarm_wait(self, now: datetime) -> int | None:
        """Return in how many seconds (1-86400) time and alarm bytes will be equal, None for an alarm that never comes."""
        alarm = self.cells
        seconds = [n for n in range(60) if alarm[SECONDS_ALARM] >= 0xC0 or self._to_register(n) == alarm[SECONDS_ALARM]]
        minutes = [n for n in range(60) if alarm[MINUTES_ALARM] >= 0xC0 or self._to_register(n) == alarm[MINUTES_ALARM]]
        hours = [n for n in range(24) if alarm[HOURS_ALARM] >= 0xC0 or self._hour_register(n) == alarm[HOURS_ALARM]]
        if not (seconds and minutes and hours):
            return None
        today = now.hour * 3600 + now.minute * 60 + now.second
        for hour in hours:
            if (hour + 1) * 3600 <= today:
                continue
            for minute in minutes:
                start = hour * 3600 + minute * 60
                if start + seconds[-1] > today:
                    return next(start + second - today for second in seconds if start + second > today)
        return 86400 - today + hours[0] * 3600 + minutes[0] * 60 + seconds[0]

    # -- state

    def reset(self) -> None:
        """RESET#: interrupts are disabled and their flags cleared; time and CMOS live on the battery."""
        self._settle()
        self.cells[B] &= ~(PIE | AIE | UIE | SQWE)
        self.cells[C] = 0
        self.nmi_masked = False
        self._index = 0
        self._interrupt()

    def save(self) -> State:
        return self.State(
            bytes(self.cells), self._index, self.nmi_masked, self._phase, self._settled, self._beats, self._timer.due,
        )  # fmt: skip

    def restore(self, state: State) -> None:
        if not isinstance(state, self.State) or state.version != 1 or len(state.cells) != 128:
            raise ValueError("not a state of the RTC, version 1")
        self.cells[:] = state.cells
        self._index, self.nmi_masked = state.index, state.nmi_masked
        self._phase, self._settled, self._beats = state.phase, state.settled, state.beats
        self._line.set(bool(self.cells[C] & IRQF))
        self._timer.cancel()
        if state.due is not None:
            self._timer.arm(state.due)
