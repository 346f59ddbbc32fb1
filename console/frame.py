"""What is around the guests: the tabs, the panes' titles, the path's panel, pages, the command line, the status line.

The invariant: bands lie above and below the guests, never over them, so that the painter and prompt_toolkit never draw in one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.layout import (
    AnyContainer,
    ConditionalContainer,
    DynamicContainer,
    FormattedTextControl,
    HSplit,
    Layout,
    VSplit,
    Window,
)

from .doctor import ROWS
from .keys import prefix_name
from .panes import Pane
from .path_view import PathView
from .status import pane_title, status, tab_bar

if TYPE_CHECKING:
    from .app import Console

AROUND = 3
"""Rows that are no page's: tabs, status, and one to spare."""


class Surroundings:
    """Builds and keeps the layout of a console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._panes: AnyContainer = self._arranged()
        self._page = Window(FormattedTextControl(self._page_text, focusable=True, show_cursor=False), style="class:page")

    def layout(self) -> Layout:
        """Return the layout."""
        console = self._console
        tabs = Window(FormattedTextControl(lambda: tab_bar(console.panes)), height=1)
        path = Window(FormattedTextControl(self._path_text), height=PathView.HEIGHT)
        body = DynamicContainer(lambda: self._panes if console.page is None else self._page)
        root = HSplit(
            [
                ConditionalContainer(tabs, Condition(self._roomy)), body, ConditionalContainer(path, Condition(lambda: console.show_path)),
                console.prompt.container, Window(FormattedTextControl(self._status), height=1, style="class:status"),
            ]
        )  # fmt: skip
        return Layout(root, focused_element=console.panes.current.area)

    def _path_text(self) -> str:
        return self._console.machine.path.text()

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
        if len(panes.shown) == 1:
            return panes.current.area
        titled = [HSplit([self._title(pane), pane.area]) for pane in panes.shown]
        return VSplit(titled, padding=1, padding_char="│") if panes.beside else HSplit(titled)

    def _title(self, pane: Pane) -> Window:
        panes = self._console.panes
        return Window(FormattedTextControl(lambda: pane_title(pane.tab, pane is panes.current)), height=1)

    def page_height(self) -> int:
        """Return how many rows a page has."""
        taken = AROUND + (PathView.HEIGHT if self._console.show_path else 0)
        return max(2, self._console.app.output.get_size().rows - taken)

    def _page_text(self) -> str:
        page = self._console.page
        return page.text(self._console.app.output.get_size().columns, self.page_height()) if page is not None else ""

    def _status(self) -> StyleAndTextTuples:
        console = self._console
        message = console.message()
        if message:
            return [("class:message", message)]
        return [("", status(console.panes.tab, prefix_name(console.router.prefix), console.width()))]
