"""A serial line in a terminal: what came over it, as a terminal of 80x25 would show it (pyte).

The invariant: the guest is never held up by it: what nobody has looked at yet is kept, up to a limit, and interpreted when somebody does.
"""

from __future__ import annotations

from itertools import groupby

import pyte
from prompt_toolkit.output import ColorDepth

from .screen_view import Frame, scrolled
from .sequences import Sequences

COLUMNS, LINES = 80, 25
KEPT = 64 << 10
"""Bytes that wait until somebody looks."""
PAST = 1 << 20
"""Bytes that can be scrolled back to."""


class SerialView:
    """The terminal at the other end of a serial line."""

    def __init__(self, depth: ColorDepth) -> None:
        self._sequences = Sequences(depth)
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self._waiting = bytearray()
        self._past = bytearray()
        self._bell = False
        self.screen.bell = self._ring

    def _ring(self, *_: object) -> None:
        self._bell = True

    def take(self, data: bytes) -> None:
        """Take a piece of the guest's output."""
        self._waiting += data
        self._past += data
        if len(self._waiting) > 2 * KEPT:
            del self._waiting[:KEPT]
        if len(self._past) > 2 * PAST:
            del self._past[:PAST]

    def rang(self) -> bool:
        """Whether the bell rang since this was last asked."""
        rang, self._bell = self._bell, False
        return rang

    def text(self) -> str:
        """Return what came, as far as it is kept."""
        return self._past.decode("utf-8", "replace")

    def frame(self, width: int, height: int) -> Frame:
        """Return the terminal's contents."""
        if self._waiting:
            self._stream.feed(bytes(self._waiting))
            self._waiting.clear()
        cursor = self.screen.cursor
        top = scrolled(cursor.y, LINES, height)
        rows = [self._row(y, min(width, COLUMNS)) for y in range(top, min(top + height, LINES))]
        return Frame(rows, min(width, COLUMNS))

    def _row(self, y: int, width: int) -> str:
        line, cursor = self.screen.buffer[y], self.screen.cursor
        cells = [line[x] for x in range(width)]
        if width < COLUMNS and not line[width].data:  # half of a wide character
            cells[-1] = cells[-1]._replace(data=" ")
        at = min(cursor.x, COLUMNS - 1)
        if y == cursor.y and at < width and not cursor.hidden:
            cells[at] = cells[at]._replace(reverse=not cells[at].reverse)
        runs = groupby(cells, key=_style)
        return "".join([self._sequences[style] + "".join([cell.data for cell in run]) for style, run in runs])


def _style(cell: pyte.screens.Char) -> str:
    parts = [f"{where}:{_colour(colour)}" for where, colour in (("fg", cell.fg), ("bg", cell.bg)) if colour != "default"]
    flags = (("bold", cell.bold), ("underline", cell.underscore), ("reverse", cell.reverse), ("italic", cell.italics))
    return " ".join([*parts, *(name for name, on in flags if on)])


def _colour(name: str) -> str:
    """A colour by pyte's name, or as six hexadecimal digits, in prompt_toolkit's words."""
    if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name):
        return f"#{name}"
    known = {"brown": "yellow", "white": "gray", "brightbrown": "brightyellow", "brightwhite": "white", "bfightmagenta": "brightmagenta"}
    return f"ansi{known.get(name, name)}"
