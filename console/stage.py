"""Where guests are painted, and how often: the painter's places as the layout gives them, and its part of a core.

The invariant: guests are painted only where prompt_toolkit has drawn nothing, and what is in a place is what was last painted there.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from prompt_toolkit.application import Application

from .painter import Painter, Place
from .panes import Panes, Tab

LOAD = 20
"""Painting is followed by a pause of so many times the processor time it took: a twentieth of a core."""


class Stage:
    """Paints the panes. Its two hooks go before and after each of prompt_toolkit's redraws."""

    def __init__(self, panes: Panes) -> None:
        self._panes = panes
        self._painter: Painter | None = None
        self._places: list[Place | None] = []
        self._fresh = True
        self._next: asyncio.TimerHandle | None = None
        self._rested = 0.0
        """When may be painted again."""

    def before_render(self, app: Application[Any]) -> None:
        """Forget where the panes are: the layout says it anew."""
        for pane in self._panes.shown:
            pane.area.place = None
        self._fresh = app.renderer.last_rendered_screen is None

    def after_render(self, app: Application[Any]) -> None:
        """The lines around are drawn. Where the places have moved, they are drawn once more, on an empty terminal."""
        if self._painter is None:
            self._painter = Painter(app.output)
        places = [pane.area.place for pane in self._panes.shown]
        if places != self._places:
            self._places = places
            self._tell_room()
            app.renderer.erase(leave_alternate_screen=False)
            app.renderer.render(app, app.layout)
            self._fresh = True
        if self._fresh:
            self._painter.forget()
        self._paint(self._painter)

    def redraw(self, app: Application[Any]) -> None:
        """Draw everything anew: the terminal may show anything."""
        if app.is_running:
            app.renderer.erase(leave_alternate_screen=False)
            app.invalidate()

    def paint_soon(self, tab: Tab, delay: float = 0.0) -> None:
        """Paint after a delay, and after the pause that the last painting has earned, if a tab is shown."""
        if self._next is not None or self._painter is None or not any(pane.tab == tab for pane in self._panes.shown):
            return
        loop = asyncio.get_running_loop()
        delay = max(delay, self._rested - loop.time())
        if delay <= 0:
            self._paint(self._painter)
        else:
            self._next = loop.call_later(delay, self._paint, self._painter)

    def close(self) -> None:
        """Paint no more."""
        if self._next is not None:
            self._next.cancel()
        self._painter = None

    def _paint(self, painter: Painter) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        began = time.thread_time()
        for pane in self._panes.shown:
            place = pane.area.place
            if place is not None:
                painter.paint(place, pane.tab.machine.frame(pane.tab.serial, place.width, place.height))
        self._rested = asyncio.get_running_loop().time() + LOAD * (time.thread_time() - began)

    def _tell_room(self) -> None:
        for machine in self._panes.machines:
            places = [pane.area.place for pane in self._panes.shown if pane.tab.machine is machine and pane.area.place is not None]
            if places:
                machine.seat.room(max(place.width for place in places), max(2 * place.height for place in places))
