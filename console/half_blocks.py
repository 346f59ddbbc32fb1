"""Pictures as text: two pixels to a character cell, the upper one in the colour of a "▀", the lower one behind it.

What a colour is on the terminal is looked up, once as foreground and once as background, so that the number of pairs of colours does not
matter. The invariant: a row is drawn as if it were alone; colours are told only where they change.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from PIL import Image
from prompt_toolkit.output import ColorDepth

from .sequences import Sequences

UPPER, LOWER, BOTH = "▀", "▄", "█"
LEVELS = (0, 95, 135, 175, 215, 255)
"""Of red, green and blue in the cube of 6x6x6 colours that terminals with 256 have; those with 16 get what is nearest."""
_NEAREST = [min(range(6), key=lambda n: abs(LEVELS[n] - value)) for value in range(256)]
_IN_CUBE = (36.0, 6.0, 1.0, 0.0)
_FINE = [value & 0xF8 | value >> 5 for value in range(256)]
"""What counts of red, green and blue where there are 16 million colours: the tables have 32768 lines at most."""
DARK = 0x60
ROWS_KEPT = 400

Colours = Sequence[int]
"""A line's pixels, each the number of its colour."""


class HalfBlocks:
    """Draws pictures on a terminal of one depth of colours."""

    def __init__(self, depth: ColorDepth) -> None:
        self._rows: dict[bytes, str] = {}
        """What was made of two lines that were met."""
        self._numbered, self._format, self._drawn = _WAYS.get(depth, _by_cube)(depth)

    def rows(self, image: Image.Image) -> list[str]:
        """Return a picture with an even number of lines as rows for the terminal."""
        if len(self._rows) > ROWS_KEPT:
            self._rows.clear()
        pixels = self._numbered(image)
        pitch = 2 * len(pixels) // image.height
        return [self._row(pixels[at : at + pitch]) for at in range(0, len(pixels), pitch)]

    def _row(self, lines: bytes) -> str:
        made = self._rows.get(lines)
        if made is None:
            colours = memoryview(lines).cast(self._format)
            half = len(colours) // 2
            made = self._rows[lines] = self._drawn(colours[:half], colours[half:])
        return made


class _Table(dict[int, str]):
    """What is written for each colour, made when it is met."""

    def __init__(self, make: Callable[[int], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, colour: int) -> str:
        made = self[colour] = self._make(colour)
        return made


Way = tuple[Callable[[Image.Image], bytes], Literal["B", "I"], Callable[[Colours, Colours], str]]
"""What makes the numbers of a picture's pixels, their format, and what makes a row of two lines."""


def _without(_: ColorDepth) -> Way:
    return lambda image: image.convert("L").tobytes(), "B", _dots


def _by_cube(depth: ColorDepth) -> Way:
    def rgb(colour: int) -> bytes:
        return bytes((LEVELS[colour // 36], LEVELS[colour // 6 % 6], LEVELS[colour % 6]))

    return lambda image: image.point(_NEAREST * 3).convert("L", _IN_CUBE).tobytes(), "B", _coloured(depth, rgb)


def _true(depth: ColorDepth) -> Way:
    def rgb(colour: int) -> bytes:
        return colour.to_bytes(4, sys.byteorder)[:3]

    return lambda image: image.point(_FINE * 3).convert("RGBA").tobytes(), "I", _coloured(depth, rgb)


_WAYS = {ColorDepth.DEPTH_1_BIT: _without, ColorDepth.DEPTH_24_BIT: _true}


def _dots(upper: Colours, lower: Colours) -> str:
    return "".join([(" ", LOWER, UPPER, BOTH)[2 * (above > DARK) + (below > DARK)] for above, below in zip(upper, lower, strict=True)])


def _coloured(depth: ColorDepth, rgb: Callable[[int], bytes]) -> Callable[[Colours, Colours], str]:
    sequences = Sequences(depth)

    def only(style: str) -> str:  # without the reset that comes before
        return sequences[style].replace("[0;", "[")

    fore = _Table(lambda colour: only(f"fg:#{rgb(colour).hex()}"))
    back = _Table(lambda colour: only(f"bg:#{rgb(colour).hex()}") + UPPER)
    return partial(_blocks, fore, back)


def _blocks(fore: _Table, back: _Table, upper: Colours, lower: Colours) -> str:
    cells = list(zip(upper, lower, strict=True))
    return "".join([UPPER if now == was else fore[now[0]] + back[now[1]] for now, was in zip(cells, (None, *cells), strict=False)])
