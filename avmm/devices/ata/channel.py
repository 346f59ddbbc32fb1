"""An ATA channel: command and control block, interrupt and data port of one cable with up to two drives.

ATA/ATAPI-6 (T13/1410D): registers clause 7, resets and signatures clause 9, device 0 answering for an absent device 1
clause 9.16. A state machine without I/O of its own: accesses go in here, completions into the ``sequencer``; windows on
the data port, interrupts and requests to the board come out.

The invariant: registers can be written in every phase but BUSY and RESET, a command starts only in IDLE, and the
interrupt line shows the selected drive's pending interrupt unless nIEN is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mypy_extensions import mypyc_attr

from avmm.devices.ata import commands, packet
from avmm.devices.ata.drive import AtaDisk, AtapiCdrom, Drive, DriveState
from avmm.devices.ata.registers import (
    BSY,
    BUSY,
    COMMAND,
    COMMAND_BLOCK,
    CONTROL_BLOCK,
    DATA,
    DEVICE,
    DMA_IN,
    FEATURES,
    FLOATING,
    HOB,
    IDLE,
    INTERRUPT,
    NIEN,
    READY,
    RESET,
    SRST,
    Address,
    Command,
    Phase,
)
from avmm.devices.ata.sequencer import WINDOWED, Sequencer
from avmm.devices.ata.transfer import Pending, Transfer
from avmm.devices.device import Board, Device, PortRange

DEVICE_RESET, EXECUTE_DIAGNOSTIC = int(Command.DEVICE_RESET), int(Command.EXECUTE_DIAGNOSTIC)


@dataclass(frozen=True, slots=True)
@mypyc_attr(native_class=False)
class State:
    """A saved channel: registers, modes, phase, buffer and position, and the request to be made again."""

    drives: tuple[DriveState | None, ...]
    selected: int
    control: int
    phase: Phase
    active: int
    flow: Phase
    address: Address
    lba: int
    remaining: int
    block: int
    buffer: bytes
    start: int
    end: int
    pad: int
    position: int
    """Bytes of the current DRQ block that the host has moved."""
    pending: Pending | None
    version: int = 1


@mypyc_attr(allow_interpreted_subclasses=True)
class AtaChannel(Device):
    """One ATA channel. ``number`` 0 is at 1F0h/3F6h with IRQ 14, 1 at 170h/376h with IRQ 15; None is an absent drive."""

    def __init__(self, board: Board, number: int, drives: Sequence[Drive | None]) -> None:
        super().__init__(board)
        if number not in (0, 1) or len(drives) > 2:
            raise ValueError("an ATA channel is number 0 or 1 and has at most two drives")
        self.name = f"ata{number}"
        self.base = COMMAND_BLOCK[number]
        self.ports = (PortRange(self.base, 1, 4), PortRange(self.base + 1, 7), PortRange(CONTROL_BLOCK[number], 1))
        self._status_port = self.base + COMMAND
        self._control_port = CONTROL_BLOCK[number]
        first, second = (*drives, None, None)[:2]
        self.drives = (first, second)
        self.present = tuple(drive for drive in self.drives if drive is not None)
        self.irq = board.line(INTERRUPT[number])
        self.sequencer = Sequencer(board, self.name, self.base, self.drives, self.interrupt)
        self.selected = 0
        self.control = 0
        self.selected_drive: Drive | None = self.drives[0]
        self._reset_drives(hard=True)

    # -- registers

    def plain(self, port: int, size: int, value: int | None = None) -> bool:
        """The task file, as long as the same drive is selected, the status, and a command that only waits for the bus master.

        Not while BSY is set: what a guest waits for is outside, and gets on as it asks.
        """
        if self.sequencer.phase is BUSY or self.sequencer.phase is RESET:
            return False
        if value is None:
            return self.selected_drive is not None and port in (self._status_port, self._control_port)
        offset = port - self.base
        if offset == COMMAND:
            return self._would_wait(value)
        return DATA < offset < DEVICE or (offset == DEVICE and value >> 4 & 1 == self.selected)

    def _would_wait(self, code: int) -> bool:
        """Whether a command would do nothing until the bus master is started, which then moves all of its sectors at once."""
        drive, sequencer = self.selected_drive, self.sequencer
        if sequencer.phase is not IDLE or not isinstance(drive, AtaDisk) or drive.modes.asleep:
            return False
        move = commands.by_dma(drive, code)
        if move is None:
            return False
        flow, count = move
        return sequencer.straight(drive, flow, count) and not sequencer.engine.runs(to_memory=flow is DMA_IN)

    def read(self, port: int, size: int) -> int:
        drive = self.selected_drive
        if port == self._status_port:
            if drive is None:
                return self._absent(COMMAND)
            task = drive.task
            if task.intrq:
                task.intrq = False
                self.irq.set(False)
            return task.status
        if port == self._control_port:
            return self._absent(COMMAND) if drive is None else drive.task.status
        offset = port - self.base
        if offset == DATA:
            return self.sequencer.read_data(size)
        return self._absent(offset) if drive is None else self._register(drive, offset)

    def _register(self, drive: Drive, offset: int) -> int:
        task = drive.task
        if offset == FEATURES:
            return task.error
        if self.control & HOB and offset != DEVICE:
            return task.previous[offset]
        return task.registers[offset] | (0xA0 if offset == DEVICE else 0)

    def _absent(self, offset: int) -> int:
        """Read a register while an absent drive is selected: device 0 answers for device 1, nobody for device 0."""
        other = self.drives[0]
        if other is None:
            return FLOATING
        if offset == COMMAND or isinstance(other, AtapiCdrom):
            return 0x00
        return self._register(other, offset)

    def write(self, port: int, size: int, value: int) -> None:
        offset = port - self.base
        if offset == DATA:
            self.sequencer.write_data(size, value)
        elif port == self._control_port:
            self._device_control(value)
        elif offset == COMMAND:
            self._command(value)
        elif self.sequencer.phase is not BUSY and self.sequencer.phase is not RESET:
            self.control &= ~HOB
            for drive in self.present:
                drive.task.put(offset, value)
            if offset == DEVICE:
                self._select(value >> 4 & 1)

    def _select(self, number: int) -> None:
        self.selected = number
        self.selected_drive = self.drives[number]
        self._drive_irq()

    def _device_control(self, value: int) -> None:
        was = self.control
        self.control = value & (HOB | SRST | NIEN)
        if value & SRST and not was & SRST:
            self.sequencer.abandon()
            self.sequencer.phase = RESET
            for drive in self.present:
                drive.task.status = BSY
                drive.task.intrq = False
        elif was & SRST and not value & SRST:
            self.sequencer.phase = IDLE
            self._reset_drives(hard=False)
        self._drive_irq()

    def _command(self, code: int) -> None:
        drive = self.selected_drive
        self.control &= ~HOB
        if code == DEVICE_RESET and isinstance(drive, AtapiCdrom) and self.sequencer.phase is not RESET:
            if self.sequencer.phase is not IDLE and self.sequencer.active == self.selected:
                self.sequencer.abandon()
            drive.wake(hard=False)
            drive.set_signature()
            self._drive_irq()
            return
        if self.sequencer.phase is not IDLE:
            self.board.trace("ata command ignored", channel=self.name, command=code, phase=self.sequencer.phase.name)
            return
        if code == EXECUTE_DIAGNOSTIC and self.present:
            self._reset_drives(hard=False)
            if self.selected_drive is not None:
                self.interrupt(self.selected_drive)
            return
        if drive is None or drive.modes.asleep:
            return
        self.sequencer.active = self.selected
        drive.task.intrq = False
        self.irq.set(False)
        drive.task.error = 0
        drive.task.status = READY
        if isinstance(drive, AtaDisk):
            commands.execute(self.sequencer, drive, code)
        elif isinstance(drive, AtapiCdrom):
            packet.execute(self.sequencer, drive, code)

    @property
    def phase(self) -> Phase:
        """What the channel is doing."""
        return self.sequencer.phase

    # -- data

    def window_done(self, port: int) -> None:
        self.sequencer.window_done()

    # -- resets

    def reset(self) -> None:
        self.sequencer.abandon()
        self.control = 0
        self._reset_drives(hard=True)

    def _reset_drives(self, hard: bool) -> None:
        """Signatures, diagnostic codes and device 0 selected, as every reset and EXECUTE DEVICE DIAGNOSTIC leave it."""
        for drive in self.present:
            drive.wake(hard)
            drive.set_signature()
            drive.task.registers[DEVICE] = 0
        self._select(0)

    def interrupt(self, drive: Drive) -> None:
        """Set interrupt pending in ``drive``."""
        drive.task.intrq = True
        self._drive_irq()

    def _drive_irq(self) -> None:
        drive = self.selected_drive
        level = drive is not None and drive.task.intrq and not self.control & NIEN
        if level and not self.irq.level:
            self.sequencer.engine.interrupt()
        self.irq.set(level)

    # -- saved state

    def save(self) -> State:
        t = self.sequencer.transfer
        return State(
            drives=tuple(None if drive is None else drive.save() for drive in self.drives),
            selected=self.selected,
            control=self.control,
            phase=self.phase,
            active=self.sequencer.active,
            flow=t.flow,
            address=t.address,
            lba=t.lba,
            remaining=t.remaining,
            block=t.block,
            buffer=bytes(t.buffer),
            start=t.start,
            end=t.end,
            pad=t.pad,
            position=self.sequencer.position,
            pending=self.sequencer.pending,
        )

    def restore(self, state: State) -> None:
        if state.version != 1:
            raise ValueError(f"{self.name}: version {state.version} of the saved channel is not known")
        self.rest(state.drives, state.selected, state.control)
        s, sequencer = state, self.sequencer
        sequencer.active, sequencer.phase = s.active, s.phase
        if s.phase is IDLE:
            return
        sequencer.transfer = Transfer(
            s.flow, s.address, s.lba, s.remaining, s.block, buffer=bytearray(s.buffer), start=s.start, end=s.end, pad=s.pad
        )
        drive = self.drives[s.active]
        if drive is not None and s.phase in WINDOWED:
            sequencer.open(drive, s.phase, s.position)
        elif drive is not None and s.pending is not None:
            sequencer.request(drive, s.pending.work, s.pending.lba, s.pending.count, s.pending.due)

    def rest(self, drives: tuple[DriveState | None, ...], selected: int, control: int) -> None:
        """Have registers, modes and pending interrupts like these, and nothing in progress."""
        for live, saved in zip(self.drives, drives, strict=True):
            if (live is None) is not (saved is None):
                raise ValueError(f"{self.name}: the saved channel has other drives")
        for live, saved in zip(self.drives, drives, strict=True):
            if live is not None and saved is not None:
                live.restore(saved)
        self.sequencer.abandon()
        self.sequencer.active = self.selected = selected
        self.selected_drive = shown = self.drives[selected]
        self.control = control
        self.irq.set(shown is not None and shown.task.intrq and not control & NIEN)
