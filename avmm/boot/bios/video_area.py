"""The video part of the BIOS data area, 40:49-66 and 40:84-8A, as typed fields over guest memory.

IBM PS/2 BIOS Interface Technical Reference, "Video display data areas". The invariant: nothing is cached, programs change it.
"""

from __future__ import annotations

from avmm.memory import GuestMemory


class Field:
    """One little-endian number at a fixed address."""

    __slots__ = ("address", "size")

    def __init__(self, address: int, size: int = 1) -> None:
        self.address = address
        self.size = size

    def __get__(self, area: VideoArea, owner: type[VideoArea]) -> int:
        return int.from_bytes(area.memory.read(self.address, self.size), "little")

    def __set__(self, area: VideoArea, value: int) -> None:
        area.memory.write(self.address, (value & (1 << 8 * self.size) - 1).to_bytes(self.size, "little"))


class VideoArea:
    """The fields by name."""

    __slots__ = ("memory",)

    mode = Field(0x449)
    columns = Field(0x44A, 2)
    page_size = Field(0x44C, 2)
    page_start = Field(0x44E, 2)
    cursor_shape = Field(0x460, 2)
    page = Field(0x462)
    crtc_port = Field(0x463, 2)
    mode_control = Field(0x465)
    cga_palette = Field(0x466)
    last_row = Field(0x484)
    height = Field(0x485, 2)
    control = Field(0x487)
    """Bit 7: the mode was set without clearing; bit 0: cursor sizes are not scaled."""
    switches = Field(0x488)
    options = Field(0x489)
    """Bit 0 VGA active, 1 grey summing, 3 no default palette, 4 400 lines in text modes."""
    combination = Field(0x48A)

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory

    @property
    def lines(self) -> int:
        """Scan lines of a character, within what a font can have whatever a program wrote to ``height``."""
        return min(self.height, 32) or 16

    def cursor(self, page: int) -> tuple[int, int]:
        """Return row and column of the cursor of a page (0-7)."""
        column, row = self.memory.read(0x450 + 2 * (page & 7), 2)
        return row, column

    def set_cursor(self, page: int, row: int, column: int) -> None:
        """Note where the cursor of a page is."""
        self.memory.write(0x450 + 2 * (page & 7), bytes((column & 0xFF, row & 0xFF)))
