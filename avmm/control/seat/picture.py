"""What a monitor shows at one moment, apart from the adapter that makes it.

The invariant: a picture never changes; two pictures are equal if and only if they look the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from avmm.control.screen import Screen
from avmm.devices.vga.render import decode
from avmm.devices.vga.vga import Vga

_ATTRIBUTE_MODE, _BLINK = 0x10, 8


@dataclass(frozen=True, slots=True)
class TextPicture:
    """A text mode's screen. ``cells`` has character and attribute in turn, row by row; ``palette`` is 16 times red, green, blue."""

    columns: int
    rows: int
    cells: bytes
    cursor: tuple[int, int] | None
    """Column and row, None when it cannot be seen."""
    palette: bytes
    blink: bool
    """Whether the highest bit of an attribute means blinking, and not a bright background."""

    def row(self, number: int) -> bytes:
        """Return a row's characters and attributes."""
        return self.cells[2 * self.columns * number : 2 * self.columns * (number + 1)]

    def lines(self) -> list[str]:
        """Return the rows as text."""
        return [decode(self.row(number)[::2]) for number in range(self.rows)]

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        return self.columns, self.rows


@dataclass(frozen=True, slots=True)
class PixelPicture:
    """A graphics mode's screen, three bytes a pixel; ``size`` is the mode's, larger than the picture if that was shrunk on its way."""

    width: int
    height: int
    rgb: bytes
    size: tuple[int, int]

    def within(self, width: int, height: int) -> PixelPicture:
        """Return the picture with at most so many pixels each way."""
        wide, high = min(self.width, width), min(self.height, height)
        if (wide, high) == (self.width, self.height):
            return self
        picture = Image.frombytes("RGB", (self.width, self.height), self.rgb)
        return PixelPicture(wide, high, picture.resize((wide, high), Image.Resampling.BOX).tobytes(), self.size)


Picture = TextPicture | PixelPicture


def look(screen: Screen) -> Picture:
    """Return what a screen shows now."""
    vga = screen.display
    if not isinstance(vga, Vga) or vga.mode() != "text":
        width, height, rgb = screen.pixels()
        return PixelPicture(width, height, rgb, (width, height))
    columns, rows = vga.size
    row, column, visible, _, _ = vga.cursor()
    registers = vga.registers
    return TextPicture(
        columns, rows, vga.text_bytes(), (column, row) if visible else None,
        b"".join(map(bytes, registers.colour_table()[:16])), bool(registers.attribute[_ATTRIBUTE_MODE] & _BLINK),
    )  # fmt: skip
