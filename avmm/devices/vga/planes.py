"""Planar display memory: four planes of 64 KB behind one window, with the VGA's write and read modes.

IBM VGA technical reference, "Video memory read/write" and the graphics controller registers. The memory is one array of
32-bit words, one per offset, plane 0 in the lowest byte; all four planes are worked on at once. Chain-4 (mode 13h) is the
same memory read as plain bytes: byte n is plane n & 3, offset n >> 2 (the real chip leaves three of four offsets unused;
a program cannot tell unless it changes the addressing without clearing the screen).

The invariant: only planes in the map mask are changed by a store, and only a load changes the latches.
"""

from __future__ import annotations

from collections.abc import Callable

SIZE = 0x40000

EXPAND = [sum(0xFF << 8 * plane for plane in range(4) if mask >> plane & 1) for mask in range(16)]
"""A mask of four planes as 32 bits."""
EVERY = 0x01010101
"""Times a byte: that byte in every plane."""

_ODD_EVEN = (0x00FF00FF, 0xFF00FF00)


class Planes:
    """The display memory and the data path in front of it. ``gc`` and ``sequencer`` are the live register files."""

    __slots__ = ("gc", "latches", "ram", "sequencer", "words", "writes")

    def __init__(self, ram: memoryview, gc: bytearray, sequencer: bytearray) -> None:
        self.ram = ram
        self.words = ram.cast("I")
        self.gc = gc
        self.sequencer = sequencer
        self.latches = 0
        self.writes = 0
        """Stores so far, so that a watcher can tell that something was drawn."""

    def read(self, offset: int) -> int:
        """Load a byte: fill the latches and answer with one plane (mode 0) or the colour compare (mode 1)."""
        gc = self.gc
        latches = self.latches = self.words[offset & 0xFFFF]
        if gc[5] & 0x08:
            differ = (latches ^ _colour(gc[2])) & EXPAND[gc[7] & 15]
            return ~(differ | differ >> 8 | differ >> 16 | differ >> 24) & 0xFF
        if gc[5] & 0x10:  # odd/even: the address selects the plane within the pair
            latches = self.latches = self.words[offset & 0xFFFE]
            return latches >> 8 * (gc[4] & 2 | offset & 1) & 0xFF
        return latches >> 8 * (gc[4] & 3) & 0xFF

    def write(self, offset: int, value: int) -> None:
        """Store a byte through the data path."""
        mask = EXPAND[self.sequencer[2] & 15]
        if self.gc[5] & 0x10:
            mask &= _ODD_EVEN[offset & 1]
            offset &= 0xFFFE
        offset &= 0xFFFF
        self.writes += 1
        self.words[offset] = (self.words[offset] & ~mask) | (self._data(value) & mask)

    def write_many(self, offset: int, size: int, value: int) -> None:
        """Store ``size`` bytes, the lowest first; whole bytes in write mode 0 do not need the data path."""
        gc = self.gc
        plain = not (gc[1] & 15 or gc[3] & 0x1F or gc[5] & 0x13) and gc[8] == 0xFF
        if not plain:
            for i in range(size):
                self.write(offset + i, value >> 8 * i & 0xFF)
            return
        words = self.words
        mask = EXPAND[self.sequencer[2] & 15]
        keep = ~mask
        self.writes += 1
        for i in range(offset, offset + size):
            words[i & 0xFFFF] = (words[i & 0xFFFF] & keep) | ((value & 0xFF) * EVERY & mask)
            value >>= 8

    def _data(self, value: int) -> int:
        """What the four planes would get from ``value``, before the map mask."""
        gc = self.gc
        latches = self.latches
        mode = gc[5] & 3
        if mode == 1:
            return latches
        bits = gc[8]
        if mode != 2:
            turn = gc[3] & 7
            value = (value >> turn | value << 8 - turn) & 0xFF
        if mode == 3:
            bits &= value
            return _merge(_colour(gc[0]), latches, bits)
        if mode == 2:
            data = _colour(value)
        else:
            enabled = EXPAND[gc[1] & 15]
            data = (value * EVERY & ~enabled) | (_colour(gc[0]) & enabled)
        return _merge(_FUNCTIONS[gc[3] >> 3 & 3](data, latches), latches, bits)


def _colour(value: int) -> int:
    return EXPAND[value & 15]


def _merge(data: int, latches: int, bits: int) -> int:
    """``data`` where ``bits`` is one, else the latches."""
    wide = bits * EVERY
    return (data & wide) | (latches & ~wide)


_FUNCTIONS: tuple[Callable[[int, int], int], ...] = (
    lambda data, latches: data,
    lambda data, latches: data & latches,
    lambda data, latches: data | latches,
    lambda data, latches: data ^ latches,
)
