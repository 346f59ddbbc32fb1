"""Drawing guests straight onto the terminal, past prompt_toolkit, which draws what is around them.

prompt_toolkit builds the whole screen anew for each redraw, which is too slow for 30 of them a second. To it a guest's place is an empty
window; what belongs there is written by the painter, only the rows that changed, with the cursor saved before and restored after, so that
it is where prompt_toolkit left it. A guest's cursor is a cell in reverse.

The invariant: the painter writes only inside places that the last layout gave it, and leaves cursor and attributes as they were.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

from prompt_toolkit.data_structures import Size
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.layout import FormattedTextControl, Window
from prompt_toolkit.layout.mouse_handlers import MouseHandlers
from prompt_toolkit.layout.screen import Screen, WritePosition
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import DEFAULT_ATTRS, Attrs, Style

from .screen_view import Frame

SAVE, RESTORE = "\x1b7", "\x1b8"
_PIXELS = re.compile(r"fg:#([0-9a-f]{6}) bg:#([0-9a-f]{6})")
STYLES = 1 << 16
"""Styles whose sequences are kept."""


@dataclass(frozen=True, slots=True)
class Place:
    """A rectangle of the terminal, in cells."""

    x: int
    y: int
    width: int
    height: int


class GuestArea(Window):
    """An empty window that knows where it is."""

    def __init__(self) -> None:
        super().__init__(FormattedTextControl("", focusable=True, show_cursor=False), always_hide_cursor=True)
        self.place: Place | None = None
        """Where the last redraw put it; None when it was not drawn."""

    def write_to_screen(  # noqa: PLR0917 - as in the base class
        self,
        screen: Screen,
        mouse_handlers: MouseHandlers,
        write_position: WritePosition,
        parent_style: str,
        erase_bg: bool,
        z_index: int | None,
    ) -> None:
        """Remember where."""
        at = write_position
        self.place = Place(at.xpos, at.ypos, at.width, at.height) if at.width > 0 and at.height > 0 else None
        super().write_to_screen(screen, mouse_handlers, write_position, parent_style, erase_bg, z_index)


class Painter:
    """Paints frames into places."""

    def __init__(self, output: Output, style: Style, depth: ColorDepth) -> None:
        self._output = output
        self._depth = depth
        self._painted: dict[tuple[Place, int], StyleAndTextTuples] = {}
        self._style = style
        self._codes: dict[str, str] = {}
        """The escape sequence of each style that was met."""
        self._written = io.StringIO()
        self._scratch = Vt100_Output(self._written, lambda: Size(1, 1))
        """Tells what prompt_toolkit would write."""

    def forget(self) -> None:
        """The terminal was cleared: nothing is there any more."""
        self._painted.clear()

    def paint(self, place: Place, frame: Frame) -> bool:
        """Bring a place up to date, the frame in its middle; returns whether anything was written."""
        top, left = max(0, (place.height - len(frame.rows)) // 2), max(0, (place.width - frame.width) // 2)
        changed = []
        for y in range(place.height):
            row: StyleAndTextTuples = frame.rows[y - top] if 0 <= y - top < len(frame.rows) else []
            if frame.cursor is not None and frame.cursor[1] == y - top:
                row = with_cursor(row, frame.cursor[0])
            if row and left:
                row = [("", " " * left), *row]
            if self._painted.get((place, y)) != row:
                self._painted[place, y] = row
                changed.append((y, row))
        if not changed:
            return False
        rows = [f"\x1b[{place.y + y + 1};{place.x + 1}H{self._row(row, place.width)}" for y, row in changed]
        self._output.write_raw("".join((SAVE, *rows, self._code(""), RESTORE)))
        self._output.flush()
        return True

    def _row(self, row: StyleAndTextTuples, room: int) -> str:
        """Return what fills a row of the terminal."""
        codes, parts, before = self._codes, [], None
        for style, text, *_ in row:
            if style != before:
                parts.append(codes.get(style) or self._code(style))
                before = style
            parts.append(text[:room])
            room -= len(text)
            if room <= 0:
                break
        else:
            parts += [self._code(""), " " * room]
        return "".join(parts)

    def _code(self, style: str) -> str:
        if style not in self._codes:
            if len(self._codes) > STYLES:
                self._codes.clear()
            self._scratch.set_attributes(self._attributes(style), self._depth)
            self._scratch.flush()
            self._codes[style] = self._written.getvalue()
            self._written.seek(0)
            self._written.truncate()
        return self._codes[style]

    def _attributes(self, style: str) -> Attrs:
        pixels = _PIXELS.fullmatch(style)
        if pixels is None:
            return self._style.get_attrs_for_style_str(style)
        return DEFAULT_ATTRS._replace(color=pixels[1], bgcolor=pixels[2])  # a picture has thousands: this is ten times as fast


def with_cursor(row: StyleAndTextTuples, column: int) -> StyleAndTextTuples:
    """Return the row with the cell at ``column`` in reverse."""
    made: StyleAndTextTuples = []
    at = 0
    for style, text, *_ in row:
        inside = column - at
        if 0 <= inside < len(text):
            flip = "noreverse" if "reverse" in style.split() else "reverse"
            pieces = ((style, text[:inside]), (f"{style} {flip}", text[inside]), (style, text[inside + 1 :]))
            made += [piece for piece in pieces if piece[1]]
        else:
            made.append((style, text))
        at += len(text)
    return made if column < at else [*made, ("", " " * (column - at)), ("reverse", " ")]
