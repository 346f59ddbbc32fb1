"""Drawing in graphics modes as int 10h does it: pixels, characters and scrolling, in the memory layout of each mode.

A *cell line* is one scan line of one character: eight pixels, in 1 (CGA 2 colours), 2 (CGA 4 colours), 4 (planar, a byte of
each plane) or 8 (mode 13h) bytes. The invariant: no register or latch of the adapter is touched, drawing goes to its memory.
"""

from __future__ import annotations

from functools import lru_cache

from avmm.devices.vga.modes import Layout, Mode
from avmm.devices.vga.vga import Vga

XOR = 0x80
"""In a colour: combine with what is there by exclusive or (not with 256 colours)."""

_CELL = {Layout.CGA2: 1, Layout.CGA4: 2, Layout.PLANAR: 4, Layout.LINEAR: 8}


@lru_cache(4096)
def encode(layout: Layout, bits: int, colour: int) -> bytes:
    """Return the cell line whose pixels are ``colour`` where ``bits`` is one, else 0."""
    if layout is Layout.PLANAR:
        return bytes(bits if colour >> plane & 1 else 0 for plane in range(4))
    if layout is Layout.LINEAR:
        return bytes(colour if bits & 0x80 >> x else 0 for x in range(8))
    if layout is Layout.CGA2:
        return bytes((bits if colour & 1 else 0,))
    pair = sum((colour & 3) << 14 - 2 * x for x in range(8) if bits & 0x80 >> x)
    return pair.to_bytes(2, "big")


class Canvas:
    """The pixels of one page in one mode."""

    def __init__(self, vga: Vga, mode: Mode, page: int, height: int) -> None:
        self.layout = mode.layout
        self.columns = mode.columns
        self.width = mode.width
        self.lines = vga.registers.pixel_size[1]
        self.height = height
        self._cell = _CELL[mode.layout]
        self._cga = mode.layout in (Layout.CGA2, Layout.CGA4)
        self._memory = vga.text_memory if self._cga else vga.ram
        self._base = 0 if self._cga else page * mode.page * (4 if mode.layout is Layout.PLANAR else 1)

    def _at(self, y: int, column: int) -> int:
        if self._cga:
            return (y & 1) * 0x2000 + ((y >> 1) * self.columns + column) * self._cell
        return self._base + (y * self.columns + column) * self._cell

    def _line(self, y: int, left: int, right: int) -> slice:
        """Where the cells from column ``left`` to ``right`` (inclusive) of line ``y`` are; empty outside the memory."""
        start, end = self._at(y, left), self._at(y, right) + self._cell
        return slice(start, end) if end <= len(self._memory) else slice(0, 0)

    def put(self, x: int, y: int, colour: int) -> None:
        """Set one pixel; outside the picture nothing happens."""
        if x < self.width and y < self.lines:
            self._store(self._line(y, x >> 3, x >> 3), 0x80 >> (x & 7), 0x80 >> (x & 7), colour)

    def get(self, x: int, y: int) -> int:
        """Return the colour of one pixel, 0 outside the picture."""
        if x >= self.width or y >= self.lines:
            return 0
        cell = bytes(self._memory[self._line(y, x >> 3, x >> 3)])
        if self.layout is Layout.LINEAR:
            return cell[x & 7] if cell else 0
        bit = 0x80 >> (x & 7)
        lit = bytes(a & b for a, b in zip(cell, encode(self.layout, bit, 15), strict=False))
        return next((colour for colour in range(16) if encode(self.layout, bit, colour) == lit), 0)

    def character(self, row: int, column: int, glyph: bytes, colour: int) -> None:
        """Draw a character over what is there, on colour 0; with :data:`XOR` into it."""
        top = row * self.height
        for y, bits in enumerate(glyph[: self.height], top):
            if y < self.lines and column < self.columns:
                self._store(self._line(y, column, column), bits, 0xFF, colour)

    def _store(self, where: slice, bits: int, mask: int, colour: int) -> None:
        layout, memory = self.layout, self._memory
        xor = layout is not Layout.LINEAR and colour & XOR
        new = encode(layout, bits, colour if layout is Layout.LINEAR else colour & 15)
        old = bytes(memory[where])
        if not old:
            return
        if xor:
            memory[where] = bytes(a ^ b for a, b in zip(old, new, strict=True))
        elif mask == 0xFF:
            memory[where] = new
        else:
            kept = encode(layout, mask, 0xFF)
            memory[where] = bytes((a & ~m & 0xFF) | b for a, b, m in zip(old, new, kept, strict=True))

    def look(self, row: int, column: int) -> bytes:
        """Return the shape of a character: one for every pixel that is not 0."""
        shape = bytearray()
        for y in range(row * self.height, (row + 1) * self.height):
            cell = bytes(self._memory[self._line(y, column, column)])
            if self.layout is Layout.LINEAR:
                shape.append(sum(0x80 >> x for x, value in enumerate(cell) if value))
            elif self.layout is Layout.CGA4:
                pair = int.from_bytes(cell, "big")
                shape.append(sum(0x80 >> x for x in range(8) if pair >> 14 - 2 * x & 3))
            else:
                bits = 0
                for byte in cell:
                    bits |= byte
                shape.append(bits)
        return bytes(shape)

    def scroll(self, rows: int, box: tuple[int, int, int, int], colour: int) -> None:
        """Move ``box`` (top, left, bottom, right, in characters, inclusive) up by ``rows``, or down if negative; 0 clears it."""
        top, left, bottom, right = box
        first, last = top * self.height, min((bottom + 1) * self.height, self.lines) - 1
        distance = rows * self.height if rows else last + 1 - first
        blank = encode(self.layout, 0xFF, colour if self.layout is Layout.LINEAR else colour & 15) * (right - left + 1)
        memory = self._memory
        lines = range(first, last + 1) if distance > 0 else range(last, first - 1, -1)
        for y in lines:
            to = self._line(y, left, right)
            new = bytes(memory[self._line(y + distance, left, right)]) if first <= y + distance <= last else blank
            if len(new) == to.stop - to.start:
                memory[to] = new
