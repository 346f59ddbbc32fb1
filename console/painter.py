"""Drawing guests straight onto the terminal, past prompt_toolkit, which draws what is around them.

prompt_toolkit builds the whole screen anew for each redraw, which is too slow for 30 of them a second. To it a guest's place is an empty
window; what belongs there is written by the painter, only the rows that changed, in one piece, with the cursor saved before and restored
after, so that it is where prompt_toolkit left it. A guest's cursor is a cell in reverse.

The invariant: the painter writes only inside places that the last layout gave it, and leaves cursor and attributes as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

from prompt_toolkit.layout import FormattedTextControl, Window
from prompt_toolkit.layout.mouse_handlers import MouseHandlers
from prompt_toolkit.layout.screen import Screen, WritePosition
from prompt_toolkit.output import Output

from .screen_view import Frame
from .sequences import PLAIN

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

    def __init__(self, output: Output) -> None:
        self._output = output
        self._painted: dict[Place, list[str]] = {}
        """The rows of each place, as they were written."""

    def forget(self) -> None:
        """The terminal was cleared: nothing is there any more."""
        self._painted.clear()

    def paint(self, place: Place, frame: Frame) -> bool:
        """Bring a place up to date, the frame in its middle; returns whether anything was written."""
        above, left = max(0, (place.height - len(frame.rows)) // 2), max(0, (place.width - frame.width) // 2)
        right = " " * (place.width - left - frame.width)
        empty = " " * place.width
        rows = [*[empty] * above, *(f"{' ' * left}{row}{PLAIN}{right}" for row in frame.rows)]
        rows += [empty] * (place.height - len(rows))
        before = self._painted.get(place, [""] * place.height)
        changed = [
            f"\x1b[{y};{place.x + 1}H{row}"
            for y, (row, old) in enumerate(zip(rows, before, strict=True), place.y + 1) if row != old
        ]  # fmt: skip
        if not changed:
            return False
        self._painted[place] = rows
        self._output.write_raw("".join((SAVE, PLAIN, *changed, RESTORE)))
        self._output.flush()
        return True
