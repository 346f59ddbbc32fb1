"""Int 10h AH=11h: character generator. IBM PS/2 BIOS Interface Technical Reference, "Character generator"."""

from __future__ import annotations

from collections.abc import Mapping

from avmm.boot.bios.caller import Caller
from avmm.boot.bios.video_area import VideoArea
from avmm.devices.vga.font import font
from avmm.devices.vga.vga import Vga

GRAPHICS_VECTOR = 0x43 * 4
"""Int 43h points to the font of graphics modes, int 1Fh to the upper half of the 8x8 one."""
UPPER_VECTOR = 0x1F * 4
_HEIGHTS = {0x01: 14, 0x02: 8, 0x04: 16}


class FontServices:
    """The sub-functions in AL; unknown ones do nothing."""

    def __init__(self, caller: Caller, vga: Vga, area: VideoArea, pointers: Mapping[int, tuple[int, int]]) -> None:
        self.caller = caller
        self.vga = vga
        self.area = area
        self.pointers = pointers

    def call(self) -> None:
        """Serve AH=11h."""
        caller, function = self.caller, self.caller["al"]
        low = function & 0x0F
        if function < 0x20 and low in (0, *_HEIGHTS):
            height = caller["bh"] if low == 0 else _HEIGHTS[low]
            if 1 <= height <= 32:
                self._load(height, low == 0)
                if function & 0x10:
                    self.fit_screen(height)
        elif function == 0x03:
            self.vga.write(0x3C4, 1, 3)
            self.vga.write(0x3C5, 1, caller["bl"])
        elif function == 0x20:
            self._set_vector(UPPER_VECTOR, caller["es"], caller["bp"])
        elif function == 0x21:
            self._set_vector(GRAPHICS_VECTOR, caller["es"], caller["bp"])
            self._graphics_rows(caller["cx"])
        elif function in (0x22, 0x23, 0x24):
            height = _HEIGHTS[1 << function - 0x22]
            self.point_to(height)
            self._graphics_rows(height)
        elif function == 0x30:
            self._information()

    def _load(self, height: int, user: bool) -> None:
        caller = self.caller
        first, block = 0, caller["bl"] & 7
        if user:
            first = caller["dx"]
            count = min(caller["cx"], 256)
            data = caller.read(caller.address("es", "bp"), count * height)
        else:
            data = font(height)
        self.vga.load_glyphs(data, height, first=first, block=block)

    def fit_screen(self, height: int) -> None:
        """Program the CRTC for characters of ``height`` lines: as many rows as the text mode's scan lines hold."""
        area, registers = self.area, self.vga.registers
        if registers.graphics:
            return
        lines = 400 if registers.scan_lines > 350 else 350
        rows = lines // height
        end = rows * height - 1
        self._crtc(0x09, (registers.crtc[9] & 0xE0) | height - 1)
        self._crtc(0x07, (registers.crtc[7] & ~0x42) | (end >> 7 & 0x02) | (end >> 3 & 0x40))
        self._crtc(0x12, end & 0xFF)
        first, last = (6, 7) if height <= 8 else (height - 3, height - 2)
        self._crtc(0x0A, first)
        self._crtc(0x0B, last)
        area.last_row = rows - 1
        area.height = height
        area.page_size = (rows * area.columns * 2 + 0x7FF) & ~0x7FF

    def _crtc(self, index: int, value: int) -> None:
        base = 0x3D4 if self.vga.registers.misc & 1 else 0x3B4
        locked = index < 8 and self.vga.registers.crtc[0x11]
        if locked:
            self._crtc(0x11, locked & 0x7F)
        self.vga.write(base, 1, index)
        self.vga.write(base + 1, 1, value)
        if locked:
            self._crtc(0x11, locked)

    def _graphics_rows(self, height: int) -> None:
        """BL says how many rows: 1 14, 2 25, 3 43, 0 what DL says."""
        rows = {1: 14, 2: 25, 3: 43}.get(self.caller["bl"], self.caller["dl"])
        self.area.height = height
        self.area.last_row = max(rows, 1) - 1

    def _set_vector(self, at: int, segment: int, offset: int) -> None:
        self.area.memory.pack("<HH", at, offset, segment)

    def point_to(self, height: int) -> None:
        """Let int 43h point to our font of ``height`` lines."""
        if height in self.pointers:
            self._set_vector(GRAPHICS_VECTOR, *self.pointers[height])

    def point_upper(self) -> None:
        """Let int 1Fh point to characters 128-255 of our 8x8 font."""
        if 8 in self.pointers:
            segment, offset = self.pointers[8]
            self._set_vector(UPPER_VECTOR, segment, offset + 1024)

    def glyph(self, code: int) -> bytes:
        """Return a character's shape in graphics modes: where int 43h (or 1Fh) points, or ours if that is where it points."""
        area = self.area
        height = area.lines
        offset, segment = area.memory.unpack("<HH", GRAPHICS_VECTOR)
        upper = code >= 128 and height == 8 and area.mode <= 6
        if upper:
            offset, segment = area.memory.unpack("<HH", UPPER_VECTOR)
            ours = segment == 0 or (segment, offset - 1024) == self.pointers.get(8)
        else:
            ours = segment == 0 or (segment, offset) == self.pointers.get(height)
        if ours:
            stored = height if height in (8, 14, 16) else 16
            return font(stored)[code * stored : (code + 1) * stored]
        return self.caller.read((segment << 4) + offset + (code & 127 if upper else code) * height, height)

    def _information(self) -> None:
        caller, area = self.caller, self.area
        which = caller["bh"]
        if which in (0, 1):
            offset, segment = area.memory.unpack("<HH", UPPER_VECTOR if which == 0 else GRAPHICS_VECTOR)
        else:
            height = {2: 14, 3: 8, 4: 8, 5: 14, 6: 16, 7: 16}.get(which)
            if height is None or height not in self.pointers:
                return
            segment, offset = self.pointers[height]
            offset += 1024 if which == 4 else 0
        caller["es"] = segment
        caller["bp"] = offset
        caller["cx"] = area.height
        caller["dl"] = area.last_row
