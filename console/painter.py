"""Drawing guests straight onto the terminal, past prompt_toolkit, which draws what is around them.

prompt_toolkit builds the whole screen anew for each redraw, which is too slow for 30 of them a second. To it a guest's place is an empty
window; what belongs there is written by the painter, only the rows that changed, with the cursor saved before and restored after, so that
it is where prompt_toolkit left it. A guest's cursor is a cell in reverse.

The invariant: the painter writes only inside places that the last layout gave it, and leaves cursor and attributes as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.layout import FormattedTextControl, Window
from prompt_toolkit.layout.mouse_handlers import MouseHandlers
from prompt_toolkit.layout.screen import Screen, WritePosition
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.styles import Attrs, Style

from .screen_view import Frame

SAVE, RESTORE = "\x1b7", "\x1b8"


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
        self._attributes = lru_cache(1 << 16)(style.get_attrs_for_style_str)

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
        self._output.write_raw(SAVE)
        for y, row in changed:
            self._write_row(place, y, row)
        self._output.reset_attributes()
        self._output.write_raw(RESTORE)
        self._output.flush()
        return True

    def _write_row(self, place: Place, y: int, row: StyleAndTextTuples) -> None:
        output = self._output
        output.cursor_goto(place.y + y + 1, place.x + 1)
        room = place.width
        before: Attrs | None = None
        for style, text, *_ in row:
            attributes = self._attributes(style)
            if attributes != before:
                output.set_attributes(attributes, self._depth)
                before = attributes
            output.write(text[:room])
            room -= len(text)
            if room <= 0:
                return
        output.reset_attributes()
        output.write(" " * room)


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
