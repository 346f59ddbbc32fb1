"""One counter of an Intel 8254, as a function of time in ticks of its CLK input.

Follows the Intel 8254 data sheet (order number 231164), "Mode Definitions" and "Read Operations". Nothing here counts: a
:class:`Run` says what the counting element and OUT are at any tick, and a register access replaces it by another.

The invariant: a counter holds the run in force and at most one that follows at a known later tick (the next CLK pulse, or
the end of the cycle); both are pure functions of the tick.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

RW_LATCH, RW_LSB, RW_MSB, RW_BOTH = range(4)
STATUS_OUT, STATUS_NULL = 0x80, 0x40


@dataclass(frozen=True, slots=True)
class Run:
    """What the counting element does from tick ``at`` on, having started with count ``n`` at tick ``origin``."""

    at: int
    mode: int
    n: int
    origin: int
    held: int | None = None
    """Ticks of counting done when it was stopped (by GATE, or because no count was written); None while counting."""
    forced: bool | None = None
    """Level of OUT where it does not follow from the count."""
    loads: bool = True
    """Whether the count register goes to the counting element when this begins: the null count flag is cleared."""

    @property
    def periodic(self) -> bool:
        """Whether OUT is a wave that goes on for ever."""
        return self.mode in (2, 3) and self.held is None and self.forced is None

    def elapsed(self, t: int) -> int:
        """Ticks of counting done at tick ``t``."""
        return t - self.origin if self.held is None else self.held

    def count(self, t: int) -> int:
        """Return the counting element, not yet reduced to four digits."""
        elapsed, n = t - self.origin if self.held is None else self.held, self.n  # as elapsed(): a guest that watches the time comes often
        if self.mode == 2:
            return n - elapsed % n
        if self.mode == 3:
            position, high = elapsed % n, (n + 1) // 2
            return (n & ~1) - 2 * (position if position < high else position - high)
        return n - elapsed

    def out(self, t: int) -> bool:
        """Return the level of OUT."""
        if self.forced is not None:
            return self.forced
        elapsed, n = self.elapsed(t), self.n
        if self.mode <= 1:
            return elapsed >= n
        if self.mode == 2:
            return elapsed % n != n - 1
        if self.mode == 3:
            return elapsed % n < (n + 1) // 2
        return elapsed != n

    def rise_after(self, t: int) -> int | None:
        """Return the first tick after ``t`` at which OUT goes from low to high; None when it does not by itself."""
        if self.held is not None or self.forced is not None:
            return None
        if self.mode in (2, 3):
            return self.origin + ((t - self.origin) // self.n + 1) * self.n
        edge = self.origin + self.n + (self.mode >= 4)
        return edge if edge > t else None

    def high_ticks(self, start: int, end: int) -> int:
        """Return for how many ticks in [start, end) OUT is high."""
        if self.held is not None or self.forced is not None:
            return (end - start) * self.out(start)
        a, b, n = start - self.origin, end - self.origin, self.n
        if self.mode in (2, 3):
            high = n - 1 if self.mode == 2 else (n + 1) // 2
            return (b // n - a // n) * high + min(b % n, high) - min(a % n, high)
        if self.mode <= 1:
            return max(b - max(a, n), 0)
        return b - a - (a <= n < b)

    def boundary_after(self, t: int) -> int:
        """Return when a new count is taken over in modes 2 and 3: the end of the cycle, or in mode 3 of the half cycle."""
        position = (t - self.origin) % self.n
        start = t - position
        high = (self.n + 1) // 2
        return start + (high if self.mode == 3 and position < high else self.n)


@dataclass(frozen=True, slots=True)
class CounterState:
    """All of one counter; times in ticks."""

    run: Run
    following: Run | None
    control: int
    gate: bool
    reload: int | None
    null: bool
    low_byte: int | None
    read_high: bool
    latched: int | None
    latched_status: int | None


class Counter:
    """One counter. Every method takes the tick at which it happens; ticks never go back."""

    __slots__ = CounterState.__slots__

    def __init__(self, gate: bool) -> None:
        self.gate = gate
        self.reset(0)

    def reset(self, t: int) -> None:
        """Power-on: undefined by the data sheet; here as after the control word 'both bytes, mode 0', but with OUT high."""
        self.run = Run(t, 0, 0, t, held=0, forced=True, loads=False)
        self.following: Run | None = None
        self.control = RW_BOTH << 4
        self.reload: int | None = None
        """The count register (0 means 65536, or 10000 in BCD, and is stored so); None until it is written."""
        self.null = True
        self.low_byte: int | None = None
        """The first of two bytes written."""
        self.read_high = False
        self.latched: int | None = None
        self.latched_status: int | None = None

    @property
    def mode(self) -> int:
        """Mode 0-5; 6 and 7 are 2 and 3."""
        mode = self.control >> 1 & 7
        return mode & 3 if mode >= 6 else mode

    def catch_up(self, t: int) -> Run:
        """Return the run in force at tick ``t``."""
        following = self.following
        if following is not None and t >= following.at:
            self.run = following
            self.following = None
            if following.loads:
                self.null = False
        return self.run

    def out(self, t: int) -> bool:
        """Return the level of OUT."""
        return self.catch_up(t).out(t)

    def next_rise(self, t: int) -> int | None:
        """Return the next tick after ``t`` at which OUT goes high, as far as known now."""
        run = self.catch_up(t)
        rise = run.rise_after(t)
        following = self.following
        if following is None or (rise is not None and rise <= following.at):
            return rise
        return following.rise_after(following.at)

    # -- writing

    def write_control(self, t: int, word: int) -> None:
        """Program the counter: OUT goes to the mode's initial level, counting stops until a count is written."""
        self._stop(t, forced=bool(word & 0x0E))
        self.control = word & 0x3F
        self.reload = self.low_byte = self.latched = self.latched_status = None
        self.read_high = False
        self.null = True

    def write(self, t: int, value: int) -> None:
        """Write one byte of a count."""
        access = self.control >> 4 & 3
        if access == RW_BOTH and self.low_byte is None:
            self.low_byte = value
            if self.mode == 0:
                self._stop(t, forced=False)  # "writing the first byte disables counting"
            return
        if access == RW_BOTH:
            count = value << 8 | (self.low_byte or 0)
            self.low_byte = None
        else:
            count = value << 8 if access == RW_MSB else value
        self._load(t, self._decode(count))

    def _decode(self, raw: int) -> int:
        if not self.control & 1:
            return raw or 0x10000
        return (raw >> 12) * 1000 + (raw >> 8 & 15) * 100 + (raw >> 4 & 15) * 10 + (raw & 15) or 10000

    def _load(self, t: int, n: int) -> None:
        run, mode = self.catch_up(t), self.mode
        if mode in (2, 3):
            n = max(n, 2)  # a count of 1 is illegal
        fresh = self.reload is None
        self.reload = n
        self.null = True
        if mode in (0, 4):
            if mode == 0:
                self._stop(t, forced=False)
            self.following = Run(t + 1, mode, n, t + 1, held=None if self.gate else 0)
        elif mode in (2, 3):
            if fresh or run.mode != mode:  # the first count, or another before the first was loaded
                self.following = Run(t + 1, mode, n, t + 1, *((None, None) if self.gate else (0, True)))
            elif run.periodic:
                at = run.boundary_after(t)
                high = mode == 3 and (at - run.origin) % run.n != 0
                self.following = Run(at, mode, n, at - (n + 1) // 2 if high else at)
            elif self.gate:  # triggered, but not yet loaded
                self.following = Run(t + 1, mode, n, t + 1)
        # Modes 1 and 5 wait for the trigger; one on its way takes the new count.
        elif self.following is not None:
            self.following = replace(self.following, n=n)

    def _stop(self, t: int, forced: bool) -> None:
        """Keep the count as it is, and OUT at a level."""
        count = self._digits(t)
        self.following = None
        self.run = Run(t, 0, count, t, held=0, forced=forced, loads=False)

    def set_gate(self, t: int, level: bool) -> None:
        """Drive GATE: an enable in modes 0 and 4, a trigger in 1 and 5, both in 2 and 3."""
        if level == self.gate:
            return
        self.gate = level
        run, following, mode = self.catch_up(t), self.following, self.mode
        if mode in (0, 4):
            if run.forced is None:
                self.run = self._enable(run, t, level)
            if following is not None:
                self.following = self._enable(following, following.at, level)
        elif mode in (2, 3) and not level:
            if run.mode == mode:
                self.run = Run(t, mode, run.n, run.origin, run.elapsed(t), forced=True, loads=False)
            if following is not None:
                first = run.mode != mode
                self.following = replace(following, held=0, forced=True) if first else None
        elif level and self.reload is not None:
            self.following = Run(t + 1, mode, self.reload, t + 1)

    @staticmethod
    def _enable(run: Run, t: int, level: bool) -> Run:
        if level:
            return run if run.held is None else replace(run, at=t, origin=t - run.held, held=None)
        return replace(run, at=t, held=run.elapsed(t))

    # -- reading

    def _digits(self, t: int) -> int:
        """Return the counting element reduced to what four digits can hold."""
        return self.catch_up(t).count(t) % (10000 if self.control & 1 else 0x10000)

    def _encode(self, t: int) -> int:
        if not self.control & 1:  # binary, the common case
            run = self.run if self.following is None else self.catch_up(t)
            return run.count(t) & 0xFFFF
        count = self._digits(t)
        return count // 1000 << 12 | count // 100 % 10 << 8 | count // 10 % 10 << 4 | count % 10

    def latch_count(self, t: int) -> None:
        """Hold the count until it is read; a second latch before that does nothing."""
        if self.latched is None:
            self.latched = self._encode(t)

    def latch_status(self, t: int) -> None:
        """Hold the status byte until it is read."""
        if self.latched_status is None:
            run = self.catch_up(t)
            self.latched_status = STATUS_OUT * run.out(t) | STATUS_NULL * self.null | self.control

    def read(self, t: int) -> int:
        """Read a byte: the latched status, then the latched count, else the count as it is."""
        status = self.latched_status
        if status is not None:
            self.latched_status = None
            return status
        value = self._encode(t) if self.latched is None else self.latched
        access = self.control >> 4 & 3
        high = access == RW_MSB
        last = True
        if access == RW_BOTH:
            high = last = self.read_high
            self.read_high = not high
        if last:
            self.latched = None
        return value >> 8 if high else value & 0xFF

    def save(self) -> CounterState:
        """Return everything the counter is."""
        return CounterState(**{name: getattr(self, name) for name in CounterState.__slots__})

    def restore(self, state: CounterState) -> None:
        """Become what was saved."""
        for name in CounterState.__slots__:
            setattr(self, name, getattr(state, name))
