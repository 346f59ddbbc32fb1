"""A memory-mapped frame device: pixels in memory, and an engine that fills and copies rectangles of them. This is its data sheet.

One page of 32-bit registers, then 256 KiB of frame memory, a byte a pixel, row after row. Other than aligned 32-bit accesses to
the registers read as ones and are lost.

====== ======= ===============================================================================================================
offset name    meaning
====== ======= ===============================================================================================================
00h    ID      reads 314D5246h ("FRM1")
04h    CONTROL bit 0: interrupt enable
08h    STATUS  bit 0 BUSY; bit 1 DONE, cleared by writing 1, the interrupt line is high while it is set and enabled; bit 2 BAD,
               the last command was refused
0Ch    MODE    pixels a row, and rows << 16
10h    ORIGIN  x, and y << 16, of the rectangle
14h    SIZE    its width, and height << 16; a rectangle of no pixels is DONE at once
18h    SOURCE  x, and y << 16, of what is copied
1Ch    COLOUR  what it is filled with, bits 7:0
20h    COMMAND write only: 1 FILL, 2 COPY; anything else, or a rectangle that is not inside the frame, is BAD and DONE at once
====== ======= ===============================================================================================================

While BUSY, writes to registers other than CONTROL and STATUS are lost. The frame memory may be used at any time.

The invariant: DONE is set once for each command, BUSY, if at all, from the command until then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from avmm.clock import MICROSECOND
from avmm.devices.device import Board, Device, MemoryRange
from avmm.platform.cable import Cable

BASE, IRQ = 0xD000_0000, 10
REGISTERS = 4096
PIXELS = 256 << 10
ID, CONTROL, STATUS, MODE, ORIGIN, SIZE, SOURCE, COLOUR, COMMAND = range(0, 0x24, 4)
IDENTITY = int.from_bytes(b"FRM1", "little")
INTERRUPT = 1
BUSY, DONE, BAD = 1, 2, 4
FILL, COPY = 1, 2
COMMAND_NS, PIXEL_NS = MICROSECOND, 2
WRITABLE = (MODE, ORIGIN, SIZE, SOURCE, COLOUR)


@dataclass(frozen=True, slots=True)
class State:
    """A saved frame device."""

    registers: tuple[int, ...]
    control: int
    status: int
    command: int
    due: int | None
    pixels: bytes
    version: int = 1


class FrameDevice(Device):
    """The frame device."""

    def __init__(self, board: Board, base: int = BASE, irq: int = IRQ, name: str = "frame0", *, pixels: int = PIXELS) -> None:
        super().__init__(board)
        self.name = name
        self.base = base
        self.memory = (MemoryRange(base, REGISTERS + PIXELS),)
        self.line = board.line(irq)
        self.pixels = bytearray(pixels)
        self._timer = board.clock.timer(self._perform)
        self.reset()

    def reset(self) -> None:
        """Go to the state after power-on; the pixels stay."""
        self.registers = dict.fromkeys(WRITABLE, 0)
        self.registers[MODE] = 320 | 200 << 16
        self.control = self.status = self.command = 0
        self._timer.cancel()
        self.update()

    def update(self) -> None:
        """Drive the line."""
        self.line.set(bool(self.status & DONE and self.control & INTERRUPT))

    # -- accesses

    def read_memory(self, address: int, size: int) -> int:
        offset = address - self.base
        if offset >= REGISTERS:
            return int.from_bytes(self.load(offset - REGISTERS, size), "little")
        if size != 4 or offset & 3:
            return (1 << 8 * size) - 1
        if offset in self.registers:
            return self.registers[offset]
        return {ID: IDENTITY, CONTROL: self.control, STATUS: self.status}.get(offset, 0)

    def write_memory(self, address: int, size: int, value: int) -> None:
        offset = address - self.base
        if offset >= REGISTERS:
            self.store(offset - REGISTERS, value.to_bytes(size, "little"))
        elif size != 4 or offset & 3:
            return
        elif offset == CONTROL:
            self.control = value & INTERRUPT
            self.update()
        elif offset == STATUS:
            self.status &= ~(value & DONE)
            self.update()
        elif self.status & BUSY:
            return
        elif offset == COMMAND:
            self._accept(value)
        elif offset in self.registers:
            self.registers[offset] = value

    def load(self, at: int, size: int) -> bytes:
        """Read frame memory."""
        return bytes(self.pixels[at : at + size]).ljust(size, b"\xff")

    def store(self, at: int, data: bytes) -> None:
        """Write frame memory."""
        end = min(at + len(data), len(self.pixels))
        self.pixels[at:end] = data[: end - at]

    # -- the engine

    def _accept(self, command: int) -> None:
        self.status &= ~BAD
        self.command = command
        if not self._possible(command):
            self.status |= BAD
            self.complete()
            return
        if not all(self._pair(SIZE)):
            self.complete()
            return
        self.status |= BUSY
        self.execute()

    def _possible(self, command: int) -> bool:
        (row, rows), (width, height) = self._pair(MODE), self._pair(SIZE)
        corners = [self._pair(ORIGIN), *([self._pair(SOURCE)] if command == COPY else [])]
        inside = all(x + width <= row and y + height <= rows for x, y in corners)
        return command in (FILL, COPY) and inside and row * rows <= PIXELS

    def _pair(self, register: int) -> tuple[int, int]:
        value = self.registers[register]
        return value & 0xFFFF, value >> 16 & 0xFFFF

    def execute(self) -> None:
        """Carry the command out, in the time it takes."""
        width, height = self._pair(SIZE)
        self._timer.arm(self.clock.now() + COMMAND_NS + PIXEL_NS * width * height)

    def _perform(self) -> None:
        row, (x, y), (width, height) = self._pair(MODE)[0], self._pair(ORIGIN), self._pair(SIZE)
        source_x, source_y = self._pair(SOURCE)
        if self.command == FILL:
            lines = [bytes([self.registers[COLOUR] & 0xFF]) * width] * height
        else:
            starts = [(source_y + n) * row + source_x for n in range(height)]
            lines = [bytes(self.pixels[start : start + width]) for start in starts]
        for n, line in enumerate(lines):
            at = (y + n) * row + x
            self.pixels[at : at + width] = line
        self.complete()

    def complete(self) -> None:
        """The command has been carried out, or refused."""
        self.status = self.status & ~BUSY | DONE
        self.update()

    # -- saved state

    def save(self) -> State:
        values = tuple(self.registers[register] for register in WRITABLE)
        return State(values, self.control, self.status, self.command, self._timer.due, bytes(self.pixels))

    def restore(self, state: Any) -> None:
        if not isinstance(state, State) or state.version != 1 or len(state.pixels) != len(self.pixels):
            raise ValueError("this is not a frame device's state of version 1")
        self.registers = dict(zip(WRITABLE, state.registers, strict=True))
        self.control, self.status, self.command = state.control, state.status, state.command
        self.pixels[:] = state.pixels
        self._timer.cancel()
        if state.due is not None:
            self._timer.arm(state.due)
        self.update()


class FrameLink:
    """A frame device and the cable to it. ``read`` and ``write`` are for the VMM's end."""

    def __init__(self, cable: Cable, device: FrameDevice) -> None:
        self.cable = cable
        self.device = device
        self.irq = device.line
        self.base = device.base

    @property
    def handlers(self) -> tuple[Callable[[int, int], Any], Callable[[int, int, int], Any]]:
        """What answers loads and stores."""
        return self.device.read_memory, self.device.write_memory

    def read(self, address: int, size: int = 4) -> int:
        """Load from ``address``."""
        return self.device.read_memory(address, size)

    def write(self, address: int, value: int, size: int = 4) -> None:
        """Store to ``address``."""
        self.device.write_memory(address, size, value)

    def give_to(self, *, guest: bool) -> None:
        """Put the other end of the cable into the guest's hands, or the VMM's: then its memory traps."""
        self.cable.give_to(guest=guest)

    def reset(self) -> None:
        """RESET#."""
        self.device.reset()

    def save(self) -> State:
        """Return the device's state."""
        return self.device.save()

    def restore(self, state: State) -> None:
        """Continue from ``state``."""
        self.device.restore(state)


class PhysicalFrame(FrameDevice):
    """The real one: its frame memory is the guest's own memory, as long as the guest drives it."""

    def __init__(self, cable: Cable) -> None:
        super().__init__(cable)
        cable.map_ram(self.base + REGISTERS, PIXELS, memoryview(self.pixels))
