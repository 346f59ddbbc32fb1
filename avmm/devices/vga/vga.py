"""The video adapter: an IBM-compatible VGA with 256 KB.

IBM PS/2 hardware interface technical reference, "Video subsystem": ports 3B4h-3DAh, memory A0000h-BFFFFh.

Text (B8000h, or B0000h with the monochrome map) and chain-4 graphics (mode 13h) are plain memory: the guest stores straight
into our buffers, with no exit and no call. Only planar graphics need the data path of :mod:`avmm.devices.vga.planes`. Text has a
buffer of its own, apart from the planes (in the real chip it is planes 0 and 1): who loads a font does not touch the screen.

The invariant: what is mapped without exits is a function of misc, sequencer 4 and graphics controller 6 alone, and is brought
up to date with the write that changed it.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avmm.devices.device import Board, Device, MemoryRange, PortRange
from avmm.devices.vga import render
from avmm.devices.vga.font import font
from avmm.devices.vga.planes import SIZE, Planes
from avmm.devices.vga.registers import Registers, RegisterState

LINE_NS = 31_778
"""One scan line: 800 dots at 25.175 MHz."""
_LINE_SHOWN_NS = LINE_NS * 4 // 5
_GRAPHICS, _MONO, _TEXT = 0xA0000, 0xB0000, 0xB8000
_WINDOWS = ((_GRAPHICS, 0x10000), (_MONO, 0x8000), (_TEXT, 0x8000))
_NOTHING = 0xFF
_INDEXES = (0x3C4, 0x3CE, 0x3D4, 0x3B4)


@dataclass(frozen=True)
class State:
    """Saved state: the registers, the latches and both memories."""

    registers: RegisterState
    latches: int
    ram: bytes
    text: bytes
    version: int = 1


class Vga(Device):
    """The video adapter. The picture is computed when asked for; nothing runs in between."""

    name = "video"
    ports = (PortRange(0x3B4, 2), PortRange(0x3BA, 1), PortRange(0x3C0, 16), PortRange(0x3D4, 2), PortRange(0x3DA, 1))
    memory = (MemoryRange(_GRAPHICS, 0x20000),)

    def __init__(self, board: Board) -> None:
        super().__init__(board)
        # Page-aligned: the guest is given these very pages.
        self.ram = memoryview(mmap.mmap(-1, SIZE))
        """The display memory, plane 0 to 3 of each offset in turn."""
        self.text_memory = memoryview(mmap.mmap(-1, render.TEXT_SIZE))
        """What text and CGA modes show: the guest's B8000h-BFFFFh."""
        self.registers = Registers()
        self.planes = Planes(self.ram, self.registers.gc, self.registers.sequencer)
        self._mapped: list[memoryview | None] = [None, None, None]
        self._seen = b""
        self._generation = 0
        self._power_on()

    def reset(self) -> None:
        self._power_on()
        self._remap()

    def _power_on(self) -> None:
        self.registers.power_on()
        self.ram[:] = bytes(SIZE)
        self.text_memory[:] = b" \x07" * (render.TEXT_SIZE // 2)
        self.planes.latches = 0
        self.load_glyphs(font(16), 16)

    # -- ports

    def plain(self, port: int, size: int, value: int | None = None) -> bool:
        """The indexes of sequencer, graphics controller and CRT controller."""
        return value is not None and port in _INDEXES

    def read(self, port: int, size: int) -> int:
        registers = self.registers
        if port < 0x3C0 or port >= 0x3D0:
            if self._elsewhere(port):
                return _NOTHING
            if port & 15 == 4:
                return registers.crtc_index
            if port & 15 == 5:
                return registers.read_crtc()
            return self._input_status_1()
        dac = registers.dac
        match port:
            case 0x3C0:
                return registers.attribute_index
            case 0x3C1:
                return registers.attribute[registers.attribute_index & 0x1F]
            case 0x3C2:
                return 0x10  # input status 0: switch sense, a monitor is there
            case 0x3C3:
                return 1  # the video subsystem is enabled
            case 0x3C4:
                return registers.sequencer_index
            case 0x3C5:
                return registers.sequencer[registers.sequencer_index]
            case 0x3C6:
                return dac.mask
            case 0x3C7:
                return 3 if dac.reading else 0
            case 0x3C8:
                return dac.write_index
            case 0x3C9:
                return dac.read()
            case 0x3CA:
                return registers.feature
            case 0x3CC:
                return registers.misc
            case 0x3CE:
                return registers.gc_index
            case 0x3CF:
                return registers.gc[registers.gc_index]
        return _NOTHING

    def write(self, port: int, size: int, value: int) -> None:
        registers = self.registers
        value &= 0xFF
        if port < 0x3C0 or port >= 0x3D0:
            if self._elsewhere(port):
                return
            if port & 15 == 4:
                registers.crtc_index = value & 0x1F
            elif port & 15 == 5:
                registers.write_crtc(value)
            else:
                registers.feature = value & 3
            return
        match port:
            case 0x3C0:
                registers.write_attribute(value)
            case 0x3C2:
                registers.misc = value & 0xEF
                self._remap()
            case 0x3C4:
                registers.sequencer_index = value & 7
            case 0x3C5:
                registers.write_sequencer(value)
                if registers.sequencer_index == 4:
                    self._remap()
            case 0x3C6:
                registers.dac.mask = value
            case 0x3C7:
                registers.dac.set_read_index(value)
            case 0x3C8:
                registers.dac.set_write_index(value)
            case 0x3C9:
                registers.dac.write(value)
            case 0x3CE:
                registers.gc_index = value & 15
            case 0x3CF:
                registers.write_gc(value)
                if registers.gc_index == 6:
                    self._remap()

    def _elsewhere(self, port: int) -> bool:
        """Misc bit 0 decides whether the CRTC answers at 3Dxh or at 3Bxh."""
        return (port >= 0x3D0) != bool(self.registers.misc & 1)

    def _input_status_1(self) -> int:
        """Bit 0: not showing pixels now; bit 3: vertical retrace. Reading it makes 3C0h take an index next."""
        registers = self.registers
        registers.flip_flop = False
        total, shown = registers.vertical_total, registers.scan_lines
        first, count = registers.retrace
        if not shown <= first < total - 1:  # nonsense timing must not make a program wait for ever
            total, shown, first, count = 449, 400, 412, 2
        line, within = divmod(self.clock.now() % (total * LINE_NS), LINE_NS)
        status = 1 if line >= shown or within >= _LINE_SHOWN_NS else 0
        return status | (8 if first <= line < first + count else 0)

    # -- memory

    def _remap(self) -> None:
        """Give the guest the pages it may store to by itself, and take back the others."""
        registers = self.registers
        window = registers.window
        wanted = (
            self.ram[:0x10000] if window in (0, 1) and registers.chain4 else None,
            self.text_memory if window == 2 else None,
            self.text_memory if window == 3 else None,
        )
        for i, (first, size) in enumerate(_WINDOWS):
            if (wanted[i] is None) != (self._mapped[i] is None):
                self._mapped[i] = wanted[i]
                self.board.map_ram(first, size, wanted[i])

    def _plain(self, address: int) -> tuple[memoryview, int] | None:
        """The plain memory behind ``address``, mapped or not, and the position in it."""
        registers = self.registers
        window = registers.window
        if window == 3 and _TEXT <= address < _TEXT + 0x8000:
            return self.text_memory, address - _TEXT
        if window == 2 and _MONO <= address < _MONO + 0x8000:
            return self.text_memory, address - _MONO
        if window in (0, 1) and registers.chain4 and _GRAPHICS <= address < _GRAPHICS + 0x10000:
            return self.ram, address - _GRAPHICS
        return None

    def _is_planar(self, address: int) -> bool:
        return self.registers.window in (0, 1) and _GRAPHICS <= address < _GRAPHICS + 0x10000

    def read_memory(self, address: int, size: int) -> int:
        if (plain := self._plain(address)) is not None:
            memory, at = plain
            return int.from_bytes(bytes(memory[at : at + size]).ljust(size, b"\xff"), "little")
        if self._is_planar(address):
            read = self.planes.read
            return int.from_bytes(bytes(read(address - _GRAPHICS + i) for i in range(size)), "little")
        return (1 << 8 * size) - 1

    def write_memory(self, address: int, size: int, value: int) -> None:
        if (plain := self._plain(address)) is not None:
            memory, at = plain
            data = value.to_bytes(size, "little")[: len(memory) - at]
            memory[at : at + len(data)] = data
        elif self._is_planar(address):
            self.planes.write_many(address - _GRAPHICS, size, value)

    def load_glyphs(self, data: bytes, height: int, *, first: int = 0, block: int = 0) -> None:
        """Put glyphs of ``height`` lines into font ``block`` (0-7) of plane 2, from character ``first`` on."""
        at = 0x4000 * (block & 3) + 0x2000 * (block >> 2 & 1)
        for code in range(first, min(256, first + len(data) // height)):
            glyph = data[(code - first) * height : (code - first + 1) * height][:32]
            where = 4 * (at + 32 * code) + 2
            self.ram[where : where + 128 : 4] = glyph.ljust(32, b"\0")
        self.planes.writes += 1

    # -- for the world

    def mode(self) -> str:
        """Return "text" or "graphics"."""
        return "graphics" if self.registers.graphics else "text"

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of a text mode, width and height of a graphics mode."""
        return self.registers.pixel_size if self.registers.graphics else self.registers.text_size

    def text_rows(self) -> list[str]:
        """Return what a text mode shows, one string a row; an empty list in graphics modes."""
        if self.registers.graphics:
            return []
        return [render.decode(row[::2]) for row in render.text_lines(self.registers, self.text_memory)]

    def text_bytes(self) -> bytes:
        """Return what a text mode shows as character and attribute in turn, row by row; nothing in graphics modes."""
        return b"" if self.registers.graphics else b"".join(render.text_lines(self.registers, self.text_memory))

    def cells(self) -> list[list[tuple[int, int]]]:
        """Return the rows of a text mode as (character, attribute) pairs."""
        if self.registers.graphics:
            return []
        return [list(zip(row[::2], row[1::2], strict=True)) for row in render.text_lines(self.registers, self.text_memory)]

    def cursor(self) -> tuple[int, int, bool, int, int]:
        """Return row, column, whether it can be seen, first and last scan line."""
        row, column, visible, first, last = render.cursor(self.registers)
        return row, column, visible and not self.registers.graphics, first, last

    def pixels(self) -> tuple[int, int, bytes]:
        """Return width, height and the picture as red, green, blue bytes; text modes too."""
        return render.pixels(self.registers, self.ram, self.text_memory)

    def png(self, path: str | Path) -> None:
        """Write the picture to a PNG file."""
        render.save_png(path, self.pixels())

    @property
    def generation(self) -> int:
        """A number that grows when what is shown may have changed since it was last asked for."""
        registers = self.registers
        parts: list[bytes | bytearray | memoryview] = [
            registers.sequencer, registers.crtc, registers.gc, registers.attribute, registers.dac.colours,
            bytes((registers.misc, registers.attribute_index & 0x20, registers.dac.mask)),
        ]  # fmt: skip
        if not registers.graphics or registers.window >= 2:
            parts.append(self.text_memory)
        if registers.graphics:
            parts.append(self.ram)
        else:
            parts.append(self.planes.writes.to_bytes(8, "little"))  # a font may have been loaded
        shown = b"".join(parts)  # to keep and compare all of it takes a tenth of the time of a digest
        if shown != self._seen:
            self._seen = shown
            self._generation += 1
        return self._generation

    def continue_generations(self, other: Vga) -> None:
        """Go on counting where an adapter counted whose place this one takes."""
        self._generation = max(self._generation, other._generation)
        self._seen = b""

    # -- saved state

    def save(self) -> State:
        return State(self.registers.save(), self.planes.latches, bytes(self.ram), bytes(self.text_memory))

    def restore(self, state: Any) -> None:
        if not isinstance(state, State) or state.version != 1:
            raise ValueError("not a saved state of this VGA")
        if len(state.ram) != SIZE or len(state.text) != render.TEXT_SIZE:
            raise ValueError("saved VGA memory has another size")
        self.registers.restore(state.registers)
        self.planes.latches = state.latches
        self.ram[:] = state.ram
        self.text_memory[:] = state.text
        self.planes.writes += 1  # the fonts may be others
        self._remap()
