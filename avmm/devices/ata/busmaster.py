"""The bus-master IDE function of PIIX3/PIIX4 (BMIDE): scatter/gather DMA for two ATA channels.

Intel 82371SB/82371AB datasheets, "Bus Master IDE I/O Registers", and "Programming Interface for Bus Master IDE
Controller" 1.0 (SFF-8038i). Sixteen ports at an address that PCI BAR 4 assigns: command (+0), status (+2) and
descriptor table pointer (+4) for the primary channel, the same eight bytes up for the secondary.

The invariant: bytes are moved only while Active is set, in the direction of the command register, through the
regions of the descriptor table in their order; Active is cleared by the end of the table, by an error or by clearing Start.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from mypy_extensions import mypyc_attr

from avmm.devices.ata.channel import AtaChannel
from avmm.devices.ata.transfer import Stretch
from avmm.devices.device import Board, Device, PortRange
from avmm.memory import GuestMemory, Segment

# command
START: Final = 0x01
TO_MEMORY: Final = 0x08

# status
ACTIVE: Final = 0x01
ERROR: Final = 0x02
INTERRUPT: Final = 0x04
DRIVES_CAPABLE: Final = 0x60

END_OF_TABLE: Final = 0x80000000
DESCRIPTOR: Final = struct.Struct("<II")
DESCRIPTOR_SIZE: Final = 8
AT_A_TIME: Final = 32
"""Descriptors that are copied out of memory together ..."""
FORESIGHT: Final = 512
"""... and how many are looked at ahead."""


@dataclass(frozen=True, slots=True)
@mypyc_attr(native_class=False)
class EngineState:
    """One channel's saved engine."""

    command: int
    status: int
    table: int
    entry: int
    address: int
    left: int
    last: bool


class Registers(Protocol):
    """An engine as the guest programs it: what answers at a channel's eight ports of the bus master."""

    table: int

    @property
    def command(self) -> int:
        """Command register."""

    @property
    def status(self) -> int:
        """Status register."""

    def write_command(self, value: int) -> None:
        """Take the command register."""

    def write_status(self, value: int) -> None:
        """Take the status register."""

    def reset(self) -> None:
        """Go to the state after power-on."""

    def save(self) -> EngineState:
        """Return the engine's state."""

    def restore(self, state: EngineState) -> None:
        """Continue from ``state``."""


class Engine:
    """One channel's DMA engine. ``on_start`` is called when it is started, so that the drive can move what waits."""

    def __init__(self, memory: GuestMemory, on_start: Callable[[], None]) -> None:
        self.memory = memory
        self.on_start = on_start
        self.reset()

    def reset(self) -> None:
        """Go to the state after power-on."""
        self.command = 0
        self.status = 0
        self.table = 0
        """Descriptor table pointer register."""
        self.entry = 0
        """Address of the next descriptor."""
        self.address = 0
        self.left = 0
        """Bytes left of the current region, at ``address``."""
        self.last = False
        """The current region is the last one."""

    # -- registers

    def write_command(self, value: int) -> None:
        """Take the command register; setting Start starts over from the table's first descriptor, clearing it aborts."""
        started = value & START and not self.command & START
        if value & START and self.status & ACTIVE:
            value = value & ~TO_MEMORY | self.command & TO_MEMORY  # the direction must not change while active
        self.command = value & (START | TO_MEMORY)
        if started:
            self.status |= ACTIVE
            self.entry, self.left, self.last = self.table, 0, False
            self.on_start()
        elif not value & START:
            self.status &= ~ACTIVE

    def write_status(self, value: int) -> None:
        """Take the status register: drive capability bits are stored, Error and Interrupt cleared by writing ones."""
        self.status = self.status & ~DRIVES_CAPABLE | value & DRIVES_CAPABLE
        self.status &= ~(value & (ERROR | INTERRUPT))

    # -- what the channel calls

    def store(self, data: memoryview) -> int:
        """Move bytes from the drive to memory as far as the table goes; return how many."""
        moved = 0
        while moved < len(data) and self._region(to_memory=True):
            size = min(self.left, len(data) - moved)
            self.memory.write(self.address, data[moved : moved + size])
            moved += size
            self._advance(size)
        return moved

    def fetch(self, count: int) -> bytes:
        """Return up to ``count`` bytes from memory as far as the table goes."""
        parts: list[bytes] = []
        while count and self._region(to_memory=False):
            size = min(self.left, count)
            parts.append(self.memory.read(self.address, size))
            count -= size
            self._advance(size)
        if len(parts) > 1:
            self.memory.copied += sum(map(len, parts))
        return b"".join(parts)

    def runs(self, *, to_memory: bool) -> bool:
        """Whether the engine is active in that direction."""
        return bool(self.status & ACTIVE) and bool(self.command & TO_MEMORY) is to_memory

    def ahead(self, count: int) -> Stretch | None:
        """Return where the next ``count`` bytes lie; None when the table ends before, leads out of memory or is in many small pieces."""
        segments: list[Segment] = []
        entry, last, left = self.entry, self.last, self.left
        run = self.address  # regions that follow each other in memory are one segment: it begins at `run`
        end = run + left
        table: Iterator[tuple[int, int]] = iter(())
        for number in range(FORESIGHT + 1):
            if left >= count:
                behind = end - left + count
                segments.append((run, behind - run))
                return Stretch(segments, entry, behind, left - count, last)
            count -= left
            if last:
                return None
            if not number % AT_A_TIME:
                table = self._table(entry)
            descriptor = next(table, None)
            if descriptor is None:
                return None
            begin, left, last = _parse(*descriptor)
            entry += DESCRIPTOR_SIZE
            if begin != end:
                if end > run:
                    segments.append((run, end - run))
                run = begin
            end = begin + left
            if end > self.memory.size:
                return None
        return None

    def passed(self, stretch: Stretch) -> None:
        """Go on behind a stretch that :meth:`ahead` returned just now."""
        self.entry, self.address, self.left, self.last = stretch.entry, stretch.address, stretch.left, stretch.last
        self._advance(0)

    def interrupt(self) -> None:
        """Latch a rising INTRQ."""
        self.status |= INTERRUPT

    # -- the table

    def _table(self, entry: int) -> Iterator[tuple[int, int]]:
        """Return a copy of the next descriptors, as far as there is memory."""
        count = max(0, min(AT_A_TIME, (self.memory.size - entry) // DESCRIPTOR_SIZE))
        return DESCRIPTOR.iter_unpack(self.memory.read(entry, count * DESCRIPTOR_SIZE))

    def _region(self, *, to_memory: bool) -> bool:
        """Return whether there is a region to move bytes to or from; reads the next descriptor when one is used up."""
        if not self.runs(to_memory=to_memory):
            return False
        if self.left:
            return True
        if self.entry + DESCRIPTOR_SIZE > self.memory.size:
            return self._fault()
        self.address, self.left, self.last = _parse(*DESCRIPTOR.unpack(self.memory.read(self.entry, DESCRIPTOR_SIZE)))
        self.entry += DESCRIPTOR_SIZE
        if self.address + self.left > self.memory.size:
            return self._fault()
        return True

    def _fault(self) -> bool:
        """Nobody answers on the bus at that address: master abort."""
        self.left = 0
        self.status = self.status & ~ACTIVE | ERROR
        return False

    def _advance(self, size: int) -> None:
        self.address += size
        self.left -= size
        if not self.left and self.last:
            self.status &= ~ACTIVE

    # -- saved state

    def save(self) -> EngineState:
        """Return the engine's state."""
        return EngineState(self.command, self.status, self.table, self.entry, self.address, self.left, self.last)

    def restore(self, state: EngineState) -> None:
        """Continue from ``state``; nothing is moved by that."""
        self.command, self.status, self.table = state.command, state.status, state.table
        self.entry, self.address, self.left, self.last = state.entry, state.address, state.left, state.last


@dataclass(frozen=True, slots=True)
@mypyc_attr(native_class=False)
class State:
    """The saved bus master; where its ports are is the PCI function's state."""

    engines: tuple[EngineState, ...]
    version: int = 1


class BusMaster(Device):
    """The bus master of the given channels. It has no ports until :meth:`move` is told where PCI put them."""

    name = "bmide"

    def __init__(self, board: Board, channels: Sequence[AtaChannel], *, serve: bool = True) -> None:
        super().__init__(board)
        if not 1 <= len(channels) <= 2:
            raise ValueError("a bus master serves one or two ATA channels")
        self.base: int | None = None
        self.engines = [Engine(board.memory, _nobody) for _ in channels]
        self.shown: list[Registers] = [*self.engines]
        """Who answers at each channel's registers: its engine, unless that is another's to drive (see avmm.interpose)."""
        self.channels = tuple(channels)
        if serve:
            self.serve(channels)

    def serve(self, channels: Sequence[AtaChannel]) -> None:
        """Be the bus master of these channels from now on, in the place of those before."""
        self.channels = tuple(channels)
        for engine, channel in zip(self.engines, channels, strict=True):
            engine.on_start = channel.sequencer.dma_ready
            channel.sequencer.engine = engine

    def move(self, base: int | None) -> None:
        """Be at I/O address ``base`` from now on, None for nowhere. The integrator tells the bus (``ports`` has changed)."""
        self.base = base
        self.ports = () if base is None else (PortRange(base, 16, 4),)

    def plain(self, port: int, size: int, value: int | None = None) -> bool:
        """All but setting Start; nothing while bytes are moved."""
        offset = port - (self.base or 0)
        number, offset = offset >> 3, offset & 7
        if number >= len(self.shown) or self.shown[number].status & ACTIVE:
            return False
        if value is None or (offset == 4 and size == 4):
            return True
        return size == 1 and (offset != 0 or not value & START)

    def read(self, port: int, size: int) -> int:
        offset = port - (self.base or 0)
        if size == 1:
            return self._read_byte(offset)
        value = 0
        for index in range(size):
            value |= self._read_byte(offset + index) << 8 * index
        return value

    def _read_byte(self, offset: int) -> int:
        number, offset = offset >> 3, offset & 7
        if number >= len(self.shown):
            return 0
        engine = self.shown[number]
        if offset == 0:
            return engine.command
        if offset == 2:
            return engine.status
        return engine.table >> 8 * (offset - 4) & 0xFF if offset >= 4 else 0

    def write(self, port: int, size: int, value: int) -> None:
        offset = port - (self.base or 0)
        if size == 4 and offset & 7 == 4 and offset >> 3 < len(self.shown):
            self.shown[offset >> 3].table = value & ~3
            return
        for index in range(size):
            self._write_byte(offset + index, value >> 8 * index & 0xFF)

    def _write_byte(self, offset: int, value: int) -> None:
        number, offset = offset >> 3, offset & 7
        if number >= len(self.shown):
            return
        engine = self.shown[number]
        if offset == 0:
            engine.write_command(value)
        elif offset == 2:
            engine.write_status(value)
        elif offset >= 4:
            shift = 8 * (offset - 4)
            engine.table = (engine.table & ~(0xFF << shift) | value << shift) & 0xFFFFFFFC

    def reset(self) -> None:
        for engine in self.shown:
            engine.reset()

    def save(self) -> State:
        return State(tuple(engine.save() for engine in self.shown))

    def restore(self, state: State) -> None:
        if state.version != 1 or len(state.engines) != len(self.shown):
            raise ValueError("bmide: the saved bus master has other channels, or its version is not known")
        for engine, saved in zip(self.shown, state.engines, strict=True):
            engine.restore(saved)


def _parse(address: int, control: int) -> tuple[int, int, bool]:
    """Return a descriptor's address, bytes and whether it is the last one."""
    return address & ~1, control & 0xFFFE or 0x10000, bool(control & END_OF_TABLE)


def _nobody() -> None:
    """Hear that an engine was started, before it has a channel."""
