"""What is around the guests: the tabs, the panes' titles, the path's panel, pages, the command line, the status line.

The invariant: bands lie above and below the guests, never over them; prompt_toolkit itself draws only the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.layout import (
    AnyContainer,
    AnyDimension,
    ConditionalContainer,
    Dimension,
    DynamicContainer,
    HSplit,
    Layout,
    VSplit,
)
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style

from .doctor import ROWS
from .keys import prefix_name
from .lines import Lines
from .painter import Area
from .panes import Pane
from .path_view import PathView
from .screen_view import Frame
from .status import pane_title, status, tab_bar

if TYPE_CHECKING:
    from .app import Console

AROUND = 3
"""Rows that are no page's: tabs, status, and one to spare."""


class Surroundings:
    """Builds and keeps the layout of a console, and says what belongs into its lines."""

    def __init__(self, console: Console, style: Style, depth: ColorDepth) -> None:
        self._console = console
        self._lines = Lines(style, depth)
        self._tabs = self._area(lambda width: tab_bar(console.panes), height=1)
        shrinking = Dimension(min=0, preferred=PathView.HEIGHT, max=PathView.HEIGHT)
        self._path = self._area(lambda width: [("", console.machine.path.text())], height=shrinking)
        self._status = self._area(self._status_text, height=1)
        self._page = Area(self._page_frame)
        self._titles: list[Area] = []
        self._panes: AnyContainer = self._arranged()

    def _area(self, text: Callable[[int], StyleAndTextTuples], height: AnyDimension) -> Area:
        """A place for text that is as wide as the place."""
        return Area(lambda width, height: self._lines.frame(text(width), width, height), height)

    def layout(self) -> Layout:
        """Return the layout."""
        console = self._console
        body = DynamicContainer(lambda: self._panes if console.page is None else self._page)
        root = HSplit(
            [
                ConditionalContainer(self._tabs, Condition(self._roomy)), body,
                ConditionalContainer(self._path, Condition(lambda: console.show_path)), console.prompt.container, self._status,
            ]
        )  # fmt: skip
        return Layout(root, focused_element=console.panes.current.area)

    def areas(self) -> list[Area]:
        """Return all that is painted, whether it can be seen now or not."""
        return [self._tabs, *self._titles, *(pane.area for pane in self._console.panes.shown), self._page, self._path, self._status]

    def tell_room(self) -> None:
        """Say to each machine how many pixels its pictures may have."""
        panes = self._console.panes
        for machine in panes.machines:
            places = [pane.area.place for pane in panes.shown if pane.tab.machine is machine and pane.area.place is not None]
            if places:
                machine.seat.room(max(place.width for place in places), max(2 * place.height for place in places))

    def _roomy(self) -> bool:
        """Whether the tabs have a line: always with several machines, with one if 25 lines are left to its screen."""
        return len(self._console.machines) > 1 or self._console.app.output.get_size().rows > ROWS

    def arrange(self) -> None:
        """The panes have changed, or a page has come or gone: see that the layout follows, and where the keys go."""
        console = self._console
        self._panes = self._arranged()
        if not console.prompt.open:
            console.app.layout.focus(self._page if console.page is not None else console.panes.current.area)
        console.app.invalidate()

    def _arranged(self) -> AnyContainer:
        panes = self._console.panes
        self._titles = []
        if len(panes.shown) == 1:
            return panes.current.area
        self._titles = [self._title(pane) for pane in panes.shown]
        titled = [HSplit([title, pane.area]) for title, pane in zip(self._titles, panes.shown, strict=True)]
        return VSplit(titled, padding=1, padding_char="│") if panes.beside else HSplit(titled)

    def _title(self, pane: Pane) -> Area:
        panes = self._console.panes
        return self._area(lambda width: pane_title(pane.tab, pane is panes.current), height=1)

    def page_height(self) -> int:
        """Return how many rows a page has."""
        taken = AROUND + (PathView.HEIGHT if self._console.show_path else 0)
        return max(2, self._console.app.output.get_size().rows - taken)

    def _page_frame(self, width: int, height: int) -> Frame:
        page = self._console.page
        text = page.text(width, height) if page is not None else ""
        return self._lines.frame([("", text)], width, height, "class:page")

    def _status_text(self, width: int) -> StyleAndTextTuples:
        console = self._console
        message = console.message()
        if message:
            return [("class:status", f"{message:<{width}}")]
        return [("class:status", status(console.panes.tab, prefix_name(console.router.prefix), width))]
