"""Drawing straight onto the terminal, past prompt_toolkit: the guests, and the lines around them.

prompt_toolkit builds the whole screen anew for each redraw, which takes longer than a guest's echo may and is too slow for 30 of them a
second. It says where everything is; to it these areas are empty. What belongs there is written by the painter, only the rows that changed,
in one piece, with the cursor saved before and restored after, so that it is where prompt_toolkit left it. A guest's cursor is a cell in
reverse.

The invariant: the painter writes only inside places that the last layout gave it, and leaves cursor and attributes as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prompt_toolkit.layout import FormattedTextControl, Window
from prompt_toolkit.layout.dimension import AnyDimension
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


class Area(Window):
    """A window that prompt_toolkit leaves empty. It knows where it is, and ``frame`` what belongs there, given its width and height."""

    def __init__(self, frame: Callable[[int, int], Frame], height: AnyDimension = None) -> None:
        super().__init__(FormattedTextControl("", focusable=True, show_cursor=False), height=height, always_hide_cursor=True)
        self.frame = frame
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
        screen.visible_windows_to_write_positions[self] = at


class Painter:
    """Paints frames into places."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._painted: dict[Place, list[str]] = {}
        """The rows of each place, as they were written."""

    def forget(self) -> None:
        """The terminal was cleared: nothing is there any more."""
        self._painted.clear()

    def paint(self, areas: Iterable[Area]) -> None:
        """Bring all that can be seen up to date, a frame in the middle of its place."""
        places = [(area.place, area.frame(area.place.width, area.place.height)) for area in areas if area.place is not None]
        changed = [row for place, frame in places for row in self._changed(place, frame)]
        if changed:
            self._output.write_raw("".join((SAVE, PLAIN, *changed, RESTORE)))
            self._output.flush()

    def _changed(self, place: Place, frame: Frame) -> list[str]:
        """Return what is to be written for the rows that show something else."""
        above, left = max(0, (place.height - len(frame.rows)) // 2), max(0, (place.width - frame.width) // 2)
        right = " " * (place.width - left - frame.width)
        empty = " " * place.width
        rows = [*[empty] * above, *(f"{' ' * left}{row}{PLAIN}{right}" for row in frame.rows)]
        rows += [empty] * (place.height - len(rows))
        before = self._painted.get(place, [""] * place.height)
        self._painted[place] = rows
        return [
            f"\x1b[{y};{place.x + 1}H{row}"
            for y, (row, old) in enumerate(zip(rows, before, strict=True), place.y + 1) if row != old
        ]  # fmt: skip
