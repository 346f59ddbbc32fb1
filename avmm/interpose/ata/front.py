"""What the guest finds at an ATA channel's ports, and at its bus master's, while the device behind them may change hands.

The emulated channel is an ordinary one whose disks are reached through the VMM's driver. The bus master shares its ports with the other
channel, so each channel's engine has a gate of its own, which stands in its place while a switch is being made.

The invariant: a status read while held says BSY only where a real device could be busy; everything else waits for the device.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from avmm.devices.ata.busmaster import Engine, EngineState
from avmm.devices.ata.channel import AtaChannel
from avmm.devices.ata.drive import AtaDisk, DiskModes
from avmm.devices.ata.registers import ABRT, BSY, COUNT, FEATURES, HOB, Command, Phase
from avmm.devices.device import Board
from avmm.interpose.ata.sequence import AtaSequence, Stage
from avmm.interpose.front import Front, Way, nothing
from avmm.interpose.handover import Later
from avmm.interpose.strand import Strand
from avmm.platform.ata import AtaLink
from avmm.platform.cable import Cable


class EmulatedCable(Cable):
    """Where the emulated channel is plugged in: its requests go to the VMM's driver, as strands."""

    def start(self, work: Any, done: Callable[[Any], None], latency: int = 0, *, inline: bool = False) -> None:
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
    """Stands in the bus master's place during a switch; see :class:`AtaFront`."""

    def __init__(self, front: AtaFront) -> None:
        self._front = front
        self._shown: tuple[int, int, int] | None = None
        """Command, status and table while they are held."""
        self.on_start: Callable[[], None] = nothing

    def hold(self) -> None:
        """Show the registers as they are now until :meth:`let_go`."""
        engine = self._front.target.engine
        self._shown = engine.command, engine.status, engine.table

    def let_go(self) -> None:
        """Show them live."""
        self._shown = None

    @property
    def command(self) -> int:
        """Command register."""
        return self._shown[0] if self._shown is not None else self._front.target.engine.command

    @property
    def status(self) -> int:
        """Status register."""
        return self._shown[1] if self._shown is not None else self._front.target.engine.status

    @property
    def table(self) -> int:
        """Descriptor table pointer."""
        return self._shown[2] if self._shown is not None else self._front.target.engine.table

    @table.setter
    def table(self, value: int) -> None:
        self._front.engine_access(lambda engine: setattr(engine, "table", value))

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


class AtaFront(Front[AtaLink]):
    """One ATA channel."""

    mirror: AtaSequence

    def __init__(self, board: Board, physical: AtaLink, emulated: AtaLink, later: Callable[[], Later]) -> None:
        self.gate = EngineGate(self)
        super().__init__(board, physical.channel.name, physical, emulated, later)
        self.ports = physical.channel.ports

    @property
    def engine(self) -> Engine | EngineGate:
        """The bus master that the guest programs."""
        return self.target.engine if self.way is Way.DIRECT or self.way is Way.VIRTUALIZED else self.gate

    def observe(self) -> None:
        """Trap every access from now on, and pass it on."""
        self.gate.let_go()
        super().observe()

    def hold(self) -> None:
        """Let the guest find the device busy from now on."""
        self.gate.hold()
        super().hold()

    def release(self, to: Way) -> None:
        """End a switch."""
        self.gate.let_go()
        super().release(to)

    # -- what an ATA channel is like

    def begin_sequence(self) -> None:
        """Make a new state machine: nothing has been seen."""
        self.mirror = AtaSequence()

    def look(self) -> None:
        """Read the alternate status register, and the line."""
        self.mirror.look(self.target.read(self.target.control), self.target.irq.level)

    def access(self, address: int, size: int) -> int | Awaitable[int]:
        """Answer a read. In the midst of a DRQ block there is nothing to look at, and words come by the thousand."""
        target = self.target
        if self.way is not Way.OBSERVED or address != target.data or self.mirror.stage is not Stage.DATA_IN:
            return super().access(address, size)
        value = target.read(address, size)
        self.mirror.read(0, size)
        if target.cable.open_window(address, out=False) is None:
            self.look()
        self.on_access()
        return value

    def seen_read(self, address: int, size: int, value: int) -> None:
        """Show the state machine a read."""
        if address != self.target.control:
            self.mirror.read(address - self.target.data, size)

    def seen_write(self, address: int, size: int, value: int) -> None:
        """Show it a write."""
        if address == self.target.control:
            self.mirror.device_control(value)
        else:
            self.mirror.write(address - self.target.data, size, value)

    def seen_interrupt(self) -> None:
        """INTRQ rose."""
        self.mirror.interrupted()

    def busy(self, address: int) -> int | None:
        """BSY, to one that polls a device which may well be busy."""
        if address not in (self.target.status, self.target.control):
            return None
        quiet = self.mirror.stage is Stage.IDLE and not self.line.level
        return BSY if quiet or self.mirror.stage is Stage.ISSUED else None

    def urgent(self, address: int) -> bool:
        """Device control may end a reset, and nothing else can."""
        return address == self.target.control

    def engine_access(self, action: Callable[[Engine], None]) -> None:
        """The guest writes a register of the bus master."""
        if self.way is Way.HELD:
            self._defer(lambda: action(self.target.engine))
            return
        action(self.target.engine)
        if self.way is Way.OBSERVED:
            self.look()
            self.on_access()

    def window_done(self, port: int) -> None:
        self.target.cable.used_up(port)
        self.target.channel.window_done(port)
