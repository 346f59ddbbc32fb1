"""What the guest finds at an ATA channel's ports while the device behind it may change hands.

Direct: the accesses go straight to the physical channel, past this module. Virtualized: they trap to the emulated channel. While a
switch is being made they come here: *observed*, each is passed on and shown to the I/O-sequence state machine; *held*, the guest finds the
device busy, writes are logged, reads that cannot be answered BSY wait inside their instruction, and all of it is
replayed in order to whoever answers next.

The invariant: every access reaches exactly one device, once and in order; the guest's interrupt line is driven by one device only, and
keeps its level while none does.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from avmm.devices.ata.busmaster import Engine, EngineState
from avmm.devices.ata.channel import AtaChannel
from avmm.devices.ata.channel import State as ChannelState
from avmm.devices.ata.drive import AtaDisk, DiskModes
from avmm.devices.ata.registers import ABRT, BSY, COUNT, FEATURES, HOB, Command, Phase
from avmm.devices.device import Board, Device
from avmm.interpose.sequence import AtaSequence, Stage
from avmm.interpose.strand import Strand
from avmm.platform.ata import AtaLink, Cable

LOG_LIMIT = 1024
"""Writes that are logged; more have to wait."""


class Way(enum.Enum):
    """How the guest's accesses go."""

    DIRECT = "direct"
    OBSERVED = "observed"
    HELD = "held"
    VIRTUALIZED = "virtualized"


class Later(Protocol):
    """An answer that comes later; awaited by the vCPU inside its instruction."""

    def set_result(self, value: int, /) -> None:
        """Give the answer."""

    def done(self) -> bool:
        """Whether nobody waits any more."""

    def __await__(self) -> Any: ...


class EmulatedCable(Cable):
    """Where the emulated channel is plugged in: its requests go to the VMM's driver, as strands."""

    def start(self, work: Any, done: Callable[[Any], None], latency: int = 0) -> None:
        """Run a request; the physical device takes the time it takes."""
        Strand(work, done)


class EmulatedChannel(AtaChannel):
    """The VMM's device model; remembers which command came last.

    FEATURES cannot be read back. If the guest wrote it before it could be seen, only the physical device knows what it is, and is asked to
    perform the SET FEATURES that uses it: the driver leaves that register alone as long as ``features_known`` is False.
    """

    code = 0
    features_known = True
    set_features: Callable[[int, int], Coroutine[Any, Any, tuple[int, DiskModes]]] | None = None
    """``(drive, count)`` -> error and modes: SET FEATURES on the physical device with the FEATURES that it has."""

    def write(self, port: int, size: int, value: int) -> None:
        if port == self.base + FEATURES:
            self.features_known = True
        super().write(port, size, value)

    def _command(self, code: int) -> None:
        self.code = code
        drive, sequencer = self.selected_drive, self.sequencer
        asked = code == Command.SET_FEATURES and not self.features_known and self.set_features is not None
        if not asked or not isinstance(drive, AtaDisk) or drive.modes.asleep or sequencer.phase is not Phase.IDLE:
            super()._command(code)
            return
        assert self.set_features is not None
        self.control &= ~HOB
        sequencer.active = self.selected
        sequencer.phase = Phase.BUSY
        drive.task.status, drive.task.intrq = BSY, False
        self.irq.set(False)
        Strand(self.set_features(self.selected, drive.task.registers[COUNT]), partial(self._features_set, drive, sequencer.generation))

    def _features_set(self, drive: AtaDisk, generation: int, result: Any) -> None:
        if generation != self.sequencer.generation:
            return
        error, modes = (ABRT, drive.modes) if isinstance(result, BaseException) else result
        drive.modes = modes
        self.sequencer.complete(drive, error)


class EngineGate:
    """Stands in the bus master's place during a switch; see :class:`Front`."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._shown: EngineState | None = None
        self.on_start: Callable[[], None] = _nothing

    def hold(self) -> None:
        """Show the registers as they are now until :meth:`let_go`."""
        self._shown = self._front.target.engine.save()

    def let_go(self) -> None:
        """Show them live."""
        self._shown = None

    @property
    def command(self) -> int:
        """Command register."""
        return self._live().command

    @property
    def status(self) -> int:
        """Status register."""
        return self._live().status

    @property
    def table(self) -> int:
        """Descriptor table pointer."""
        return self._live().table

    @table.setter
    def table(self, value: int) -> None:
        self._front.engine_access(lambda engine: setattr(engine, "table", value))

    def _live(self) -> Engine | EngineState:
        return self._shown or self._front.target.engine

    def write_command(self, value: int) -> None:
        """Take the command register."""
        self._front.engine_access(lambda engine: engine.write_command(value))

    def write_status(self, value: int) -> None:
        """Take the status register."""
        self._front.engine_access(lambda engine: engine.write_status(value))

    def reset(self) -> None:
        """Go to the state after power-on."""
        self._front.target.engine.reset()

    def save(self) -> EngineState:
        """Return the engine's state."""
        return self._front.target.engine.save()

    def restore(self, state: EngineState) -> None:
        """Continue from ``state``."""
        self._front.target.engine.restore(state)


@dataclass(frozen=True, slots=True)
class State:
    """A saved front: which way, and what is behind it."""

    way: Way
    physical: ChannelState
    physical_engine: EngineState
    emulated: ChannelState
    emulated_engine: EngineState
    version: int = 1


class Front(Device):
    """One ATA channel that can be virtualized. Begins direct."""

    def __init__(self, board: Board, physical: AtaLink, emulated: AtaLink, later: Callable[[], Later]) -> None:
        super().__init__(board)
        self.physical = physical
        self.emulated = emulated
        self.name = physical.channel.name
        self.ports = physical.channel.ports
        self.line = board.line(physical.irq.number)
        self.way = Way.DIRECT
        self.target = physical
        """Whose state the guest sees."""
        self.mirror = AtaSequence()
        self.on_access: Callable[[], None] = _nothing
        """Called after each access that is observed."""
        self.on_control: Callable[[], None] = _nothing
        """Called when the guest wants to write device control while held: it may be a reset, which cannot wait."""
        self.on_route: Callable[[], None] = _nothing
        """Called when ``handlers`` or ``engine`` has changed."""
        self.on_reset: Callable[[], None] = _nothing
        self.gate = EngineGate(self)
        self.deferred = 0
        """Accesses logged since the last hold, those that wait among them."""
        self._later = later
        self._log: list[Callable[[], None]] = []
        self._waiting: list[Later] = []
        self._notice = board.clock.timer(self._noticed)
        physical.irq.connect(self.line.set)
        physical.cable.give_to(guest=True)

    # -- where accesses go

    @property
    def handlers(self) -> tuple[Callable[[int, int], Any], Callable[[int, int, int], Any], bool]:
        """Who answers the ports: read, write, and whether no hypervisor is involved."""
        if self.way is Way.DIRECT or self.way is Way.VIRTUALIZED:
            return self.target.channel.read, self.target.channel.write, self.way is Way.DIRECT
        return self.read, self.write, False

    @property
    def engine(self) -> Engine | EngineGate:
        """The bus master that the guest programs."""
        return self.target.engine if self.way is Way.DIRECT or self.way is Way.VIRTUALIZED else self.gate

    def observe(self) -> None:
        """Trap every access from now on, and pass it on."""
        if self.way is not Way.HELD:
            self.mirror = AtaSequence()
            self.target.cable.give_to(guest=False)
        self.way = Way.OBSERVED
        self.gate.let_go()
        self.target.irq.connect(self._interrupt)
        self.on_route()

    def hold(self) -> None:
        """Let the guest find the device busy from now on."""
        self.way = Way.HELD
        self.deferred = 0
        self.gate.hold()
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
        self.gate.let_go()
        self.on_access = _nothing
        self.target.irq.connect(self.line.set)
        self._replay()
        self.way = to
        self.target.cable.give_to(guest=True)
        self.on_route()

    def _replay(self) -> None:
        log, self._log = self._log, []
        for entry in log:
            entry()
        self._waiting.clear()

    # -- accesses during a switch

    def look(self) -> None:
        """Show the state machine what the device shows."""
        self.mirror.look(self.target.read(self.target.control), self.target.irq.level)

    def read(self, port: int, size: int) -> int | Awaitable[int]:
        if self.way is Way.HELD:
            return self._read_held(port, size)
        if self.way is not Way.OBSERVED:
            return self.target.read(port, size)
        self.look()
        offset = port - self.target.data
        value = self.target.read(port, size)
        if port != self.target.control:
            self.mirror.read(offset, size)
        self.look()
        self.on_access()
        return value

    def _read_held(self, port: int, size: int) -> int | Awaitable[int]:
        if port in (self.target.status, self.target.control) and not self._waiting:
            quiet = self.mirror.stage is Stage.IDLE and not self.line.level
            if quiet or self.mirror.stage is Stage.ISSUED:
                return BSY
        later = self._later()

        def answer() -> None:
            if not later.done():
                later.set_result(self.target.read(port, size))

        self.deferred += 1
        self._waiting.append(later)
        self._log.append(answer)
        return later

    def write(self, port: int, size: int, value: int) -> Awaitable[None] | None:
        if self.way is Way.HELD:
            return self._write_held(port, size, value)
        self._write(port, size, value)
        return None

    def _write(self, port: int, size: int, value: int) -> None:
        if self.way is not Way.OBSERVED:
            self.target.write(port, value, size)
            return
        self.look()
        if port == self.target.control:
            self.target.write(port, value, size)
            self.mirror.device_control(value)
        else:
            self.mirror.write(port - self.target.data, size, value)
            self.target.write(port, value, size)
        self.look()
        self.on_access()

    def _write_held(self, port: int, size: int, value: int) -> Awaitable[None] | None:
        self.deferred += 1
        if len(self._log) < LOG_LIMIT:
            self._log.append(lambda: self._write_now(port, size, value))
            if port == self.target.control:
                self.on_control()
            return None
        later = self._later()

        def answer() -> None:
            self._write_now(port, size, value)
            if not later.done():
                later.set_result(0)

        self._waiting.append(later)
        self._log.append(answer)
        return later

    def _write_now(self, port: int, size: int, value: int) -> None:
        if self.way is Way.OBSERVED:
            self._write(port, size, value)
        else:
            self.target.write(port, value, size)

    def engine_access(self, action: Callable[[Engine], None]) -> None:
        """The guest writes a register of the bus master."""
        if self.way is Way.HELD:
            self.deferred += 1
            self._log.append(lambda: action(self.target.engine))
            return
        action(self.target.engine)
        if self.way is Way.OBSERVED:
            self.look()
            self.on_access()

    def _interrupt(self, level: bool) -> None:
        if level:
            self.mirror.interrupted()
        self.line.set(level)
        self._notice.arm(self.clock.now())  # not now: the device is in the middle of something

    def _noticed(self) -> None:
        self.on_access()

    def window_done(self, port: int) -> None:
        self.target.cable.used_up(port)
        self.target.channel.window_done(port)

    # -- the machine

    def reset(self) -> None:
        self.on_reset()
        self.target.channel.reset()

    def save(self) -> State:
        if self.way not in (Way.DIRECT, Way.VIRTUALIZED):
            raise ValueError(f"{self.name} is being switched: save it afterwards")
        return State(
            self.way, self.physical.channel.save(), self.physical.engine.save(), self.emulated.channel.save(), self.emulated.engine.save()
        )

    def restore(self, state: Any) -> None:
        if not isinstance(state, State) or state.version != 1:
            raise ValueError(f"this is not a state of {self.name}, version 1")
        if state.way is not self.way:
            raise ValueError(f"{self.name} is {self.way.value}, but was {state.way.value} when it was saved: switch it first")
        self.physical.channel.restore(state.physical)
        self.physical.engine.restore(state.physical_engine)
        self.emulated.engine.restore(state.emulated_engine)
        if state.way is Way.VIRTUALIZED:
            self.emulated.channel.restore(state.emulated)


def _nothing() -> None:
    pass
