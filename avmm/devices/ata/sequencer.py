"""The sequencer of an ATA channel: which phase the command in progress is in, and where its data are.

ATA/ATAPI-6 (T13/1410D) clause 9: the non-data, PIO, DMA and PACKET protocols. It makes requests to the medium through
the board, opens windows on the data port and moves DMA data through the bus master; the channel in front of it has the
registers, the commands (``commands``, ``packet``) start and end it.

The invariant: ``phase`` says alone what may happen next. BSY or DRQ is set in the active drive's status in every phase
but IDLE, in which there is no transfer; a request is with the medium exactly in BUSY (``pending``), a data window open
exactly in DATA_IN, DATA_OUT and PACKET. A completion of an earlier generation (before a reset) is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from avmm.devices.ata import packet
from avmm.devices.ata.drive import AtaDisk, AtapiCdrom, Drive
from avmm.devices.ata.registers import (
    ABRT,
    BSY,
    BUSY,
    COD,
    COUNT,
    DATA_IN,
    DATA_OUT,
    DF,
    DMA_IN,
    DMA_OUT,
    DRQ,
    ERR,
    IDLE,
    IDNF,
    IO,
    LBA_HIGH,
    LBA_MID,
    READY,
    UNC,
    WP,
    Address,
    Phase,
)
from avmm.devices.ata.transfer import (
    AT_ONCE,
    BEFORE_MEDIUM,
    CHUNK,
    COMMAND_TIME,
    SECTOR_TIME,
    DmaEngine,
    NoEngine,
    Pending,
    Transfer,
    Work,
    read_good,
    write_good,
)
from avmm.devices.block import SECTOR, BlockError, BlockFault
from avmm.devices.device import Board

WINDOWED = (DATA_IN, DATA_OUT, Phase.PACKET)

ERRORS = {
    BlockFault.RANGE: IDNF,
    BlockFault.MEDIUM: UNC,
    BlockFault.READ_ONLY: WP | ABRT,
    BlockFault.NO_MEDIUM: IDNF,
}


class Sequencer:
    """Runs one command at a time for the drives of a channel; ``interrupt`` is called when a drive sets interrupt pending."""

    def __init__(
        self, board: Board, name: str, port: int, drives: tuple[Drive | None, Drive | None], interrupt: Callable[[Drive], None]
    ) -> None:
        self.board = board
        self.memory = board.memory
        self.name = name
        self.port = port
        """The data port."""
        self.drives = drives
        self.interrupt = interrupt
        self.engine: DmaEngine = NoEngine()
        """The bus master that moves the data of DMA commands; it plugs itself in."""
        self.phase = IDLE
        self.active = 0
        """The drive that ``phase`` is about."""
        self.transfer = Transfer()
        self.pending: Pending | None = None
        self.generation = 0

    # -- what commands do

    def complete(self, drive: Drive, error: int = 0, status: int = READY) -> None:
        """End the command with an interrupt; an ``error`` sets ERR."""
        self.phase = IDLE
        self.transfer = Transfer()
        drive.task.error = error
        drive.task.status = status | ERR if error else status
        self.interrupt(drive)

    def fail(self, drive: AtaDisk, error: int, address: Address, lba: int, left: int) -> None:
        """End a command on a disk with ``error`` at sector ``lba``, ``left`` sectors not transferred."""
        self.board.trace("ata error", channel=self.name, error=error, lba=lba)
        drive.report(address, lba)
        drive.task.registers[COUNT] = left & 0xFF
        drive.task.previous[COUNT] = left >> 8 & 0xFF
        self.complete(drive, error)

    def send(self, drive: Drive, data: bytes, flow: Phase = DATA_IN, address: Address = Address.CHS, block: int = SECTOR) -> None:
        """Let the host have ``data`` that need no medium."""
        pad = len(data) & 1
        self.transfer = Transfer(flow, address, BEFORE_MEDIUM, block=block, buffer=data + bytes(pad), pad=pad)
        self._deliver(drive)

    def begin(self, drive: Drive, flow: Phase, address: Address, *, lba: int, count: int, block: int = SECTOR) -> None:
        """Start moving ``count`` sectors from ``lba``; ``flow`` IDLE only verifies them."""
        self.transfer = Transfer(flow, address, lba, count, block)
        if flow in (DATA_OUT, DMA_OUT):
            self._collect(drive, first=True)
        else:
            self._fetch(drive)

    def accept_packet(self, drive: AtapiCdrom) -> None:
        """Ask for a command packet; there is no interrupt for it (IDENTIFY PACKET DEVICE word 0)."""
        self.transfer = Transfer(Phase.PACKET, Address.PACKET, block=12, buffer=bytearray(12))
        drive.task.registers[COUNT] = COD
        self.open(drive, Phase.PACKET)

    def request(self, drive: Drive, work: Work, lba: int = 0, count: int = 0, due: int | None = None) -> None:
        """Give ``work`` to the medium; the drive is BSY until it is done."""
        now = self.board.clock.now()
        if due is None:
            due = now + COMMAND_TIME + count * SECTOR_TIME
        self.phase = BUSY
        drive.task.status = BSY
        self.pending = Pending(work, lba, count, due)
        latency = max(0, due - now)
        done = partial(self._done, self.generation)
        if work is Work.FLUSH:
            self.board.start(drive.disk.flush(), done, latency)
        elif work is Work.WRITE:
            self.board.start(write_good(drive.disk, lba, self.transfer.buffer), done, latency)
        else:
            self.board.start(read_good(drive.disk, lba, count, self.transfer.grain), done, latency)

    # -- completions

    def _done(self, generation: int, result: Any) -> None:
        pending, drive = self.pending, self.drives[self.active]
        if generation != self.generation or pending is None or drive is None:
            return
        self.pending = None
        if isinstance(result, BlockError):
            self._failed(drive, pending, result)
            return
        if isinstance(result, BaseException):
            raise result
        transfer = self.transfer
        if pending.work is Work.FLUSH:
            self.complete(drive)
        elif pending.work is Work.READ:
            transfer.lba, transfer.buffer, transfer.start = pending.lba, result, 0
            transfer.remaining -= len(result) // SECTOR
            self._deliver(drive)
        elif pending.work is Work.VERIFY:
            transfer.lba = pending.lba + len(result) // SECTOR
            transfer.remaining -= len(result) // SECTOR
            self._fetch(drive)
        elif transfer.remaining:
            transfer.lba = transfer.next_lba
            self._collect(drive, first=False)
        else:
            self._finish(drive)

    def _failed(self, drive: Drive, pending: Pending, error: BlockError) -> None:
        if isinstance(drive, AtapiCdrom):
            packet.medium_failed(self, drive, error)
        elif isinstance(drive, AtaDisk) and pending.work is Work.FLUSH:
            self.complete(drive, ABRT, READY | DF)
        elif isinstance(drive, AtaDisk):
            lba = min(max(error.lba, pending.lba), pending.lba + pending.count - 1)
            left = self.transfer.remaining + pending.lba - lba + (pending.count if pending.work is Work.WRITE else 0)
            self.fail(drive, ERRORS[error.fault], self.transfer.address, lba, left)

    def _finish(self, drive: Drive, interrupt: bool = True) -> None:
        """The last sector has moved."""
        transfer = self.transfer
        if isinstance(drive, AtapiCdrom):
            packet.finish(self, drive)
            return
        if isinstance(drive, AtaDisk) and transfer.next_lba:
            drive.report(transfer.address, transfer.next_lba - 1)
            drive.task.registers[COUNT] = drive.task.previous[COUNT] = 0
        if interrupt:
            self.complete(drive)
        else:
            self.phase = IDLE
            self.transfer = Transfer()
            drive.task.status = READY

    # -- data from the drive

    def _fetch(self, drive: Drive) -> None:
        """Read the next chunk of the command, or end it."""
        transfer = self.transfer
        count = min(transfer.remaining, CHUNK)
        if self.straight(drive, transfer.flow, transfer.remaining):
            transfer.lba, transfer.buffer = transfer.next_lba, b""
            self._await_engine(drive)
        elif count:
            work = Work.VERIFY if transfer.flow is IDLE else Work.READ
            self.request(drive, work, transfer.next_lba, count)
        else:
            self._finish(drive, interrupt=transfer.flow is not DATA_IN)

    def _deliver(self, drive: Drive) -> None:
        """Offer what is in the buffer from ``start`` on."""
        transfer = self.transfer
        if transfer.flow is DMA_IN:
            self._await_engine(drive)
            return
        if transfer.address is Address.PACKET:
            size = min(transfer.block, len(transfer.buffer) - transfer.start)
            size -= transfer.pad if transfer.start + size == len(transfer.buffer) else 0
            registers = drive.task.registers
            registers[COUNT], registers[LBA_MID], registers[LBA_HIGH] = IO, size & 0xFF, size >> 8
        self.open(drive, DATA_IN)
        self.interrupt(drive)

    # -- data to the drive

    def _collect(self, drive: Drive, first: bool) -> None:
        """Ask for the data of the next chunk; no interrupt for the first block of a PIO command."""
        transfer = self.transfer
        if self.straight(drive, transfer.flow, transfer.remaining):
            transfer.buffer = b""
            self._await_engine(drive)
            return
        self._make_room()
        if transfer.flow is DMA_OUT:
            self._await_engine(drive)
            return
        self.open(drive, DATA_OUT)
        if not first:
            self.interrupt(drive)

    def _make_room(self) -> None:
        """Have a buffer for the next chunk."""
        transfer = self.transfer
        count = min(transfer.remaining, CHUNK)
        transfer.buffer = bytearray(count * SECTOR)
        transfer.remaining -= count
        transfer.start = 0

    # -- the data port

    def open(self, drive: Drive, phase: Phase, position: int = 0) -> None:
        """Set DRQ and open the window for the DRQ block at ``start``."""
        transfer = self.transfer
        transfer.end = min(transfer.start + transfer.block, len(transfer.buffer))
        self.phase = phase
        drive.task.status = READY | DRQ
        window = memoryview(transfer.buffer)[transfer.start : transfer.end]
        self.board.window(self.port, window, out=phase is not DATA_IN, start=position)

    def window_done(self) -> None:
        """The DRQ block has been moved."""
        drive = self.drives[self.active]
        phase, transfer = self.phase, self.transfer
        if drive is None:
            return
        self.memory.copied += transfer.end - transfer.start
        if phase is DATA_IN:
            transfer.start = transfer.end
            if transfer.start < len(transfer.buffer):
                self._deliver(drive)
            else:
                self._fetch(drive)
        elif phase is DATA_OUT:
            transfer.start = transfer.end
            if transfer.start < len(transfer.buffer):
                self.open(drive, phase)
                self.interrupt(drive)
            else:
                self.request(drive, Work.WRITE, transfer.lba, len(transfer.buffer) // SECTOR)
        elif phase is Phase.PACKET and isinstance(drive, AtapiCdrom):
            packet.execute_packet(self, drive, bytes(transfer.buffer))

    def read_data(self, size: int) -> int:
        """Read the data port where the access did not fit the window: it may run into the next DRQ block."""
        value = moved = 0
        while moved < size and self.phase is DATA_IN:
            transfer = self.transfer
            position = transfer.start + self.board.window_position(self.port)
            part = transfer.buffer[position : min(position + size - moved, transfer.end)]
            value |= int.from_bytes(part, "little") << 8 * moved
            moved += len(part)
            self._moved(position + len(part))
        return value if moved else (1 << 8 * size) - 1

    def write_data(self, size: int, value: int) -> None:
        """Write the data port where the access did not fit the window; bytes behind the last block are lost."""
        data = value.to_bytes(size, "little")
        while data and self.phase in (DATA_OUT, Phase.PACKET):
            transfer = self.transfer
            position = transfer.start + self.board.window_position(self.port)
            part = data[: transfer.end - position]
            assert isinstance(transfer.buffer, bytearray)
            transfer.buffer[position : position + len(part)] = part
            data = data[len(part) :]
            self._moved(position + len(part))

    def _moved(self, position: int) -> None:
        transfer, drive = self.transfer, self.drives[self.active]
        if position == transfer.end:
            self.board.window(self.port, None)
            self.window_done()
        elif drive is not None:
            self.open(drive, self.phase, position - transfer.start)

    # -- DMA

    def straight(self, drive: Drive, flow: Phase, count: int) -> bool:
        """Whether ``count`` sectors may go between medium and memory without a buffer.

        In virtual time nothing of it must be there before the time that the command takes is over.
        """
        by_dma = flow is DMA_IN or flow is DMA_OUT
        return by_dma and drive.prompt is not None and 0 < count <= AT_ONCE and not self.board.clock.virtual

    def _await_engine(self, drive: Drive) -> None:
        """Ask the bus master to move what is in the buffer, or what is left of the command if that is empty."""
        self.phase = self.transfer.flow
        drive.task.status = READY | DRQ
        self.dma_ready()

    def dma_ready(self) -> None:
        """Let the bus master move what it can: called by it when it is started, and when the drive has data or room."""
        drive, transfer = self.drives[self.active], self.transfer
        if drive is None or (self.phase is not DMA_IN and self.phase is not DMA_OUT):
            return
        if not transfer.buffer and not self._go_straight(drive):
            return
        if self.phase is DMA_IN:
            transfer.start += self.engine.store(memoryview(transfer.buffer)[transfer.start :])
            if transfer.start >= len(transfer.buffer):
                self._fetch(drive)
        elif self.phase is DMA_OUT:
            data = self.engine.fetch(len(transfer.buffer) - transfer.start)
            assert isinstance(transfer.buffer, bytearray)
            transfer.buffer[transfer.start : transfer.start + len(data)] = data
            self.memory.copied += len(data)
            transfer.start += len(data)
            if transfer.start >= len(transfer.buffer):
                self.request(drive, Work.WRITE, transfer.lba, len(transfer.buffer) // SECTOR)

    def _go_straight(self, drive: Drive) -> bool:
        """Move sectors between a prompt medium and memory until the command is done or needs a buffer; whether it has one now."""
        transfer, reading = self.transfer, self.phase is DMA_IN
        if not self.engine.runs(to_memory=reading):
            return False
        while transfer.remaining:
            count = min(transfer.remaining, CHUNK)
            if not self._move_chunk(drive, count, reading):
                break
            transfer.lba += count
            transfer.remaining -= count
        else:
            self._finish(drive)
            return False
        if reading:
            self.request(drive, Work.READ, transfer.lba, count)
            return False
        self._make_room()
        return True

    def _move_chunk(self, drive: Drive, count: int, reading: bool) -> bool:
        """Move the next ``count`` sectors at once. False, and the bus master stands where it stood, if that cannot be done."""
        stretch, memory = self.engine.ahead(count * SECTOR), self.memory
        pieces = None if stretch is None else memory.pieces(stretch.segments)
        if stretch is None or pieces is None or drive.prompt is None:
            return False
        try:
            done = (drive.prompt.read_now if reading else drive.prompt.write_now)(self.transfer.lba, count, pieces)
        except BlockError:
            done = False  # asked again, it says how far it gets
        if reading:
            memory.changed(stretch.segments)
        if done:
            self.engine.passed(stretch)
        return done

    def abandon(self) -> None:
        """Forget the command in progress; what is with the medium may finish, but nobody listens."""
        self.generation += 1
        self.pending = None
        self.phase = IDLE
        self.transfer = Transfer()
        self.board.window(self.port, None)

    @property
    def position(self) -> int:
        """Bytes of the current DRQ block that the host has moved so far."""
        return self.board.window_position(self.port) if self.phase in WINDOWED else 0
