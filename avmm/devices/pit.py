"""The interval timer (Intel 8254, ports 40h-43h) and system control port B (61h) of a PC.

Follows the Intel 8254 data sheet (order number 231164) and the IBM PC/AT Technical Reference, "System Timers" and "I/O
port 61h". The CLK inputs run at 1193182 Hz; tick k begins at ceil(k * 10**9 / 1193182) ns of machine time, so nothing drifts.

Only counter 0 ever arms a timer, one per rising edge of its OUT. In modes 2, 3 and 4 the wire to interrupt input 0 stays
high between the edges and drops only for an instant before each: an 8259A withdraws a request whose line drops, and a
virtual processor that is late by half a period must not lose its tick. When the machine is late by whole periods the missed
edges become one, in phase with those to come.

The invariant: the timer, when armed, waits for the next tick at which OUT of counter 0 goes high.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from avmm.clock import SECOND
from avmm.devices.device import Board, Device, PortRange
from avmm.devices.pit_counter import RW_LATCH, Counter, CounterState, Run

HZ = 1193182
REFRESH_TICKS = 18
"""Port 61h bit 4 toggles with each refresh request: every 18 ticks, 15.085 us."""

PORT_B = 0x61
GATE2, SPEAKER_DATA, REFRESH, OUT2 = 0x01, 0x02, 0x10, 0x20
READ_BACK, NO_COUNT, NO_STATUS = 0xC0, 0x20, 0x10


def tick_at(ns: int) -> int:
    """Return the tick that machine time ``ns`` lies in."""
    return ns * HZ // SECOND


def tick_start(tick: int) -> int:
    """Return the first ns of a tick."""
    return -(-tick * SECOND // HZ)


class Pit(Device):
    """Counters 0 (interrupt 0), 1 (refresh) and 2 (speaker, gated by port 61h)."""

    name = "pit"
    ports = (PortRange(0x40, 4), PortRange(PORT_B, 1))

    @dataclass(frozen=True, slots=True)
    class State:
        """The counters, bits 0-3 of port 61h, the wire to input 0, and when the timer is due (ns)."""

        counters: tuple[CounterState, ...]
        port_b: int
        line: bool
        due: int | None
        version: int = 1

    def __init__(self, board: Board) -> None:
        super().__init__(board)
        self.on_speaker_change: Callable[[], None] = _nothing
        """Called after anything that may have changed what :meth:`speaker_wave` says."""
        self.missed = 0
        """Edges that were coalesced because the machine was late."""
        self._line = board.line(0)
        self._timer = self.clock.timer(self._edge)
        self._counters = (Counter(True), Counter(True), Counter(False))
        self._port_b = 0
        self._next: int | None = None

    def reset(self) -> None:
        tick = self._now()
        for counter in self._counters:
            counter.reset(tick)
        self._counters[2].gate = False
        self._port_b = 0
        self._timer.cancel()
        self._line.lower()
        self.on_speaker_change()

    def _now(self) -> int:
        return self.clock.now() * HZ // SECOND

    # -- ports

    def read(self, port: int, size: int) -> int:
        if port < 0x43:  # the common case: a guest that watches the time
            return self._counters[port & 3].read(self.clock.now() * HZ // SECOND)
        if port == PORT_B:
            tick = self._now()
            refresh = REFRESH * (tick // REFRESH_TICKS & 1)
            return self._port_b | refresh | OUT2 * self._counters[2].out(tick)
        return 0xFF  # "no-operation (3-state)"

    def write(self, port: int, size: int, value: int) -> None:
        tick = self._now()
        if port == PORT_B:
            self._write_port_b(tick, value)
        elif port != 0x43:
            self._change(tick, port & 3, value, control=False)
        elif value & READ_BACK == READ_BACK:
            self._read_back(tick, value)
        elif value >> 4 & 3 == RW_LATCH:
            self._counters[value >> 6].latch_count(tick)
        else:
            self._change(tick, value >> 6, value, control=True)

    def _change(self, tick: int, index: int, value: int, control: bool) -> None:
        counter = self._counters[index]
        if index == 0:
            self._overdue()
        if control:
            counter.write_control(tick, value)
        else:
            counter.write(tick, value)
        if index == 0:
            self._line.set(self._presented(tick))
            self._arm(tick)
        elif index == 2:
            self.on_speaker_change()

    def _read_back(self, tick: int, value: int) -> None:
        for index, counter in enumerate(self._counters):
            if value >> index & 2:
                if not value & NO_COUNT:
                    counter.latch_count(tick)
                if not value & NO_STATUS:
                    counter.latch_status(tick)

    def _write_port_b(self, tick: int, value: int) -> None:
        changed = self._port_b ^ value
        self._port_b = value & 0x0F
        if changed & (GATE2 | SPEAKER_DATA):
            self._counters[2].set_gate(tick, bool(value & GATE2))
            self.on_speaker_change()

    # -- counter 0's interrupt

    def _presented(self, tick: int) -> bool:
        """Return what interrupt input 0 sees between the edges: OUT in mode 0, otherwise high."""
        counter = self._counters[0]
        return counter.out(tick) if counter.mode == 0 else True

    def _arm(self, tick: int) -> None:
        rise = self._counters[0].next_rise(tick)
        if rise is None:
            self._timer.cancel()
        else:
            self._timer.arm(tick_start(rise))
        self._next = rise

    def _overdue(self) -> None:
        """Let an edge happen that came due before the access about to be made, but whose timer has not fired yet."""
        due = self._timer.due
        if due is not None and due <= self.clock.now():
            self._timer.cancel()
            self._edge()

    def _edge(self) -> None:
        tick = self._now()
        run = self._counters[0].catch_up(tick)
        self._line.lower()
        self._line.raise_()
        expected, self._next = self._next, None
        if run.periodic and expected is not None and (late := (tick - expected) // run.n) > 0:
            self.missed += late
            self.board.trace("pit.coalesced", edges=late)
        self._arm(tick)

    # -- the speaker's side

    def speaker_wave(self) -> tuple[bool, int]:
        """Return whether the speaker's data gate is open, and the period of counter 2 in ticks (0 when its OUT is not a wave)."""
        run = self._counters[2].catch_up(self._now())
        return bool(self._port_b & SPEAKER_DATA), run.n if run.periodic else 0

    def speaker_runs(self) -> tuple[bool, Run, Run | None]:
        """Return the data gate, what counter 2 does now, and what it will do from a later tick on without further access."""
        counter = self._counters[2]
        run = counter.catch_up(self._now())
        return bool(self._port_b & SPEAKER_DATA), run, counter.following

    # -- state

    def save(self) -> State:
        return self.State(tuple(counter.save() for counter in self._counters), self._port_b, self._line.level, self._timer.due)

    def restore(self, state: State) -> None:
        if not isinstance(state, self.State) or state.version != 1:
            raise ValueError("not a state of the PIT, version 1")
        for counter, saved in zip(self._counters, state.counters, strict=True):
            counter.restore(saved)
        self._port_b = state.port_b
        self._line.set(state.line)
        self._timer.cancel()
        if state.due is not None:
            self._timer.arm(state.due)
            self._next = tick_at(state.due)
        self.on_speaker_change()


def _nothing() -> None:
    pass
