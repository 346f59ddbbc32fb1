"""What the guest finds at a device's addresses while the device behind them may change hands.

Direct: the accesses go straight to the physical device, past this module. Virtualized: they trap to the emulated one. While a switch is
being made they come here: *observed*, each is passed on and shown to the I/O-sequence state machine; *held*, the guest finds the device
busy, writes are logged, reads that cannot be answered so wait inside their instruction, and all of it is replayed in order to whoever
answers next. A subclass knows its kind of device: what is shown to the state machine, and how it looks when it is busy.

The invariant: every access reaches exactly one device, once and in order; the guest's interrupt line is driven by one device only, and
keeps its level while none does.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from avmm.devices.device import Board, Device
from avmm.interpose.handover import Later, Link, Sequence

LOG_LIMIT = 1024
"""Writes that are logged; more have to wait."""

L = TypeVar("L", bound=Link)


class Way(enum.Enum):
    """How the guest's accesses go."""

    DIRECT = "direct"
    OBSERVED = "observed"
    HELD = "held"
    VIRTUALIZED = "virtualized"


@dataclass(frozen=True, slots=True)
class State:
    """A saved front: which way, and what is behind it."""

    way: Way
    physical: Any
    emulated: Any
    version: int = 1


class Front(Device, Generic[L]):
    """One device that can be virtualized. Begins direct."""

    mirror: Sequence

    def __init__(self, board: Board, name: str, physical: L, emulated: L, later: Callable[[], Later]) -> None:
        super().__init__(board)
        self.name = name
        self.physical = physical
        self.emulated = emulated
        self.line = board.line(physical.irq.number)
        self.way = Way.DIRECT
        self.target = physical
        """Whose state the guest sees."""
        self.on_access: Callable[[], None] = nothing
        """Called after each access that is observed, when the state machine knows of it."""
        self.on_urgent: Callable[[], None] = nothing
        """Called when the guest writes, while held, what may be all that can end the device's being busy."""
        self.on_route: Callable[[], None] = nothing
        """Called when ``handlers`` has changed."""
        self.on_reset: Callable[[], None] = nothing
        self.deferred = 0
        """Accesses logged since the last hold, those that wait among them."""
        self._later = later
        self._log: list[Callable[[], None]] = []
        self._waiting: list[Later] = []
        self._notice = board.clock.timer(self._noticed)
        self.begin_sequence()
        physical.irq.connect(self.line.set)
        physical.give_to(guest=True)

    # -- what a kind of device knows

    def begin_sequence(self) -> None:
        """Make a new state machine: nothing has been seen."""
        raise NotImplementedError

    def look(self) -> None:
        """Show the state machine what can be read without side effects."""
        raise NotImplementedError

    def seen_read(self, address: int, size: int, value: int) -> None:
        """Show it a read that was made."""
        raise NotImplementedError

    def seen_write(self, address: int, size: int, value: int) -> None:
        """Show it a write that is about to be made."""
        raise NotImplementedError

    def seen_interrupt(self) -> None:
        """The device raised its line."""

    def busy(self, address: int) -> int | None:
        """What a read of a device that is held shows; None when only the device itself can answer."""
        raise NotImplementedError

    def urgent(self, address: int) -> bool:
        """Whether a write here cannot wait."""
        return False

    # -- where accesses go

    @property
    def handlers(self) -> tuple[Callable[[int, int], Any], Callable[[int, int, int], Any], bool]:
        """Who answers the guest: read, write, and whether no hypervisor is involved."""
        return self.handlers_of(self.way)

    def handlers_of(self, way: Way) -> tuple[Callable[[int, int], Any], Callable[[int, int, int], Any], bool]:
        """Who answers it when its accesses go that way."""
        if way is Way.DIRECT:
            return (*self.physical.handlers, True)
        if way is Way.VIRTUALIZED:
            return (*self.emulated.handlers, False)
        return self.access, self.put, False

    def observe(self) -> None:
        """Trap every access from now on, and pass it on."""
        if self.way is not Way.HELD:
            self.begin_sequence()
            self.target.give_to(guest=False)
        self.way = Way.OBSERVED
        self.target.irq.connect(self._interrupt)
        self.on_route()

    def hold(self) -> None:
        """Let the guest find the device busy from now on."""
        self.way = Way.HELD
        self.deferred = 0
        self.target.irq.connect(None)

    def release(self, to: Way) -> None:
        """End a switch: the guest goes on with the physical device (DIRECT), the emulated one (VIRTUALIZED), or OBSERVED."""
        self._notice.cancel()
        if to is Way.OBSERVED:
            self.observe()
            self._replay()
            return
        if to is Way.DIRECT:
            self.emulated.irq.connect(None)  # the physical line is the driver's as long as we are virtualized
        self.target = self.physical if to is Way.DIRECT else self.emulated
        self.on_access = nothing
        self.target.irq.connect(self.line.set)
        self._replay()
        self.way = to
        self.target.give_to(guest=True)
        self.on_route()

    def _replay(self) -> None:
        if self._log:
            log, self._log = self._log, []
            for entry in log:
                entry()
            self._waiting.clear()

    # -- accesses during a switch

    def access(self, address: int, size: int) -> int | Awaitable[int]:
        """Answer a read."""
        if self.way is Way.HELD:
            return self._read_held(address, size)
        if self.way is not Way.OBSERVED:
            return self.target.read(address, size)
        self.look()
        value = self.target.read(address, size)
        self.seen_read(address, size, value)
        self.look()
        self.on_access()
        return value

    def _read_held(self, address: int, size: int) -> int | Awaitable[int]:
        if not self._waiting:
            shown = self.busy(address)
            if shown is not None:
                return shown
        later = self._later()

        def answer() -> None:
            if not later.done():
                later.set_result(self.target.read(address, size))

        self._defer(answer)
        self._waiting.append(later)
        return later

    def put(self, address: int, size: int, value: int) -> Awaitable[None] | None:
        """Take a write."""
        if self.way is Way.HELD:
            return self._write_held(address, size, value)
        self._write(address, size, value)
        return None

    def _write(self, address: int, size: int, value: int) -> None:
        if self.way is not Way.OBSERVED:
            self.target.write(address, value, size)
            return
        self.look()
        self.seen_write(address, size, value)
        self.target.write(address, value, size)
        self.look()
        self.on_access()

    def _write_held(self, address: int, size: int, value: int) -> Awaitable[None] | None:
        if len(self._log) < LOG_LIMIT:
            self._defer(lambda: self._write_now(address, size, value))
            if self.urgent(address):
                self.on_urgent()
            return None
        later = self._later()

        def answer() -> None:
            self._write_now(address, size, value)
            if not later.done():
                later.set_result(0)

        self._defer(answer)
        self._waiting.append(later)
        return later

    def _write_now(self, address: int, size: int, value: int) -> None:
        if self.way is Way.OBSERVED:
            self._write(address, size, value)
        else:
            self.target.write(address, value, size)

    def _defer(self, entry: Callable[[], None]) -> None:
        """Log an access that was made while held."""
        self.deferred += 1
        self._log.append(entry)

    def _interrupt(self, level: bool) -> None:
        if level:
            self.seen_interrupt()
        self.line.set(level)
        self._notice.arm(self.clock.now())  # not now: the device is in the middle of something

    def _noticed(self) -> None:
        if self.way is Way.OBSERVED:
            self.look()
            self.on_access()

    # -- the device that the buses see

    def read(self, port: int, size: int) -> int | Awaitable[int]:
        return self.access(port, size)

    def write(self, port: int, size: int, value: int) -> Awaitable[None] | None:
        return self.put(port, size, value)

    def read_memory(self, address: int, size: int) -> int | Awaitable[int]:
        return self.access(address, size)

    def write_memory(self, address: int, size: int, value: int) -> Awaitable[None] | None:
        return self.put(address, size, value)

    def reset(self) -> None:
        self.on_reset()
        self.target.reset()

    def save(self) -> State:
        if self.way not in (Way.DIRECT, Way.VIRTUALIZED):
            raise ValueError(f"{self.name} is being switched: save it afterwards")
        return State(self.way, self.physical.save(), self.emulated.save())

    def restore(self, state: Any) -> None:
        if not isinstance(state, State) or state.version != 1:
            raise ValueError(f"this is not a state of {self.name}, version 1")
        if state.way is not self.way:
            raise ValueError(f"{self.name} is {self.way.value}, but was {state.way.value} when it was saved: switch it first")
        self.physical.restore(state.physical)
        if state.way is Way.VIRTUALIZED:
            self.emulated.restore(state.emulated)


def nothing() -> None:
    """What a hook does that nobody has set."""
