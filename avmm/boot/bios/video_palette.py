"""Int 10h AH=10h: attribute palette and DAC. IBM PS/2 BIOS Interface Technical Reference, "Set palette registers"."""

from __future__ import annotations

from collections.abc import Callable

from avmm.boot.bios.caller import Caller
from avmm.devices.vga.vga import Vga


class PaletteServices:
    """The sub-functions in AL; unknown ones do nothing."""

    def __init__(self, caller: Caller, vga: Vga) -> None:
        self.caller = caller
        self.vga = vga
        self._functions: dict[int, Callable[[], None]] = {
            0x00: self._set_register,
            0x01: lambda: self.set_attribute(0x11, caller["bh"]),
            0x02: self._set_registers,
            0x03: self._set_blinking,
            0x07: self._get_register,
            0x08: lambda: self._answer("bh", self.attribute(0x11)),
            0x09: self._get_registers,
            0x10: lambda: self.set_colours(caller["bx"], bytes((caller["dh"], caller["ch"], caller["cl"]))),
            0x12: lambda: self.set_colours(caller["bx"], caller.read(caller.address("es", "dx"), 3 * self._count())),
            0x13: self._select_page,
            0x15: self._get_colour,
            0x17: lambda: caller.write(caller.address("es", "dx"), self.colours(caller["bx"], self._count())),
            0x18: lambda: self.vga.write(0x3C6, 1, caller["bl"]),
            0x19: lambda: self._answer("bl", self.vga.read(0x3C6, 1)),
            0x1A: self._get_page,
            0x1B: lambda: self.sum_to_grey(caller["bx"], self._count()),
        }

    def call(self) -> None:
        """Serve AH=10h."""
        function = self._functions.get(self.caller["al"])
        if function is not None:
            function()

    def _answer(self, register: str, value: int) -> None:
        self.caller[register] = value

    def _count(self) -> int:
        return min(self.caller["cx"], 256)

    # -- attribute controller

    def _index(self, index: int) -> None:
        """Select an attribute register, the flip-flop in a known state first."""
        self.vga.read(0x3DA if self.vga.registers.misc & 1 else 0x3BA, 1)
        self.vga.write(0x3C0, 1, index)

    def attribute(self, index: int) -> int:
        """Read an attribute register; the display stays on."""
        self._index(index | 0x20)
        value = self.vga.read(0x3C1, 1)
        self._index(0x20)
        return value

    def set_attribute(self, index: int, value: int) -> None:
        """Write an attribute register; the display stays on."""
        self._index(index)
        self.vga.write(0x3C0, 1, value)
        self._index(0x20)

    def _set_register(self) -> None:
        if self.caller["bl"] <= 0x14:
            self.set_attribute(self.caller["bl"], self.caller["bh"])

    def _set_registers(self) -> None:
        data = self.caller.read(self.caller.address("es", "dx"), 17)
        for index, value in enumerate(data[:16]):
            self.set_attribute(index, value)
        self.set_attribute(0x11, data[16])

    def _set_blinking(self) -> None:
        self.set_attribute(0x10, (self.attribute(0x10) & ~0x08) | (self.caller["bl"] & 1) << 3)

    def _get_register(self) -> None:
        if self.caller["bl"] <= 0x14:
            self.caller["bh"] = self.attribute(self.caller["bl"])

    def _get_registers(self) -> None:
        values = [self.attribute(index) for index in (*range(16), 0x11)]
        self.caller.write(self.caller.address("es", "dx"), bytes(values))

    def _select_page(self) -> None:
        """BL=0: four pages of 64 colours (BH=0) or sixteen of 16 (BH=1); BL=1: page BH."""
        value, mode = self.caller["bh"], self.attribute(0x10)
        if self.caller["bl"] & 1:
            self.set_attribute(0x14, value if mode & 0x80 else value << 2 & 0x0C)
        else:
            self.set_attribute(0x10, (mode & 0x7F) | (value & 1) << 7)

    def _get_page(self) -> None:
        wide = self.attribute(0x10) >> 7
        self.caller["bl"] = wide
        self.caller["bh"] = self.attribute(0x14) >> (0 if wide else 2)

    # -- DAC

    def set_colours(self, first: int, parts: bytes) -> None:
        """Load colours from ``first`` on, three bytes each."""
        write = self.vga.write
        write(0x3C8, 1, first & 0xFF)
        for part in parts:
            write(0x3C9, 1, part)

    def colours(self, first: int, count: int) -> bytes:
        """Return ``count`` colours, three bytes each."""
        self.vga.write(0x3C7, 1, first & 0xFF)
        return bytes(self.vga.read(0x3C9, 1) for _ in range(3 * count))

    def _get_colour(self) -> None:
        self.caller["dh"], self.caller["ch"], self.caller["cl"] = self.colours(self.caller["bx"], 1)

    def sum_to_grey(self, first: int, count: int) -> None:
        """Replace colours by greys of the same brightness (30 % red, 59 % green, 11 % blue)."""
        data = self.colours(first, count)
        greys = bytearray()
        for red, green, blue in zip(data[::3], data[1::3], data[2::3], strict=True):
            greys += bytes((min(63, (77 * red + 151 * green + 28 * blue + 128) >> 8),)) * 3
        self.set_colours(first, bytes(greys))
