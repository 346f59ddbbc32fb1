"""What is painted, where, and how often: the areas as the layout places them, and the painter's part of a core.

The invariant: it is painted only where prompt_toolkit has drawn nothing, and what is in a place is what was last painted there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from prompt_toolkit.application import Application

from .painter import Area, Painter, Place

LOAD = 30
"""Painting is followed by a pause of so many times the processor time it took: a twentieth of a core, with what comes before it ..."""
LONGEST = 0.2
"""... at most so many seconds: the first picture, for which tables are filled, must not hold up the first key ..."""
SAVED = 0.25
"""... and so many seconds without painting are taken from it, so that an echo does not wait because a line was painted just before."""


class Stage:
    """Paints areas. Its two hooks go before and after each of prompt_toolkit's redraws; ``moved`` is called when places are others."""

    def __init__(self, areas: Callable[[], Sequence[Area]], moved: Callable[[], None]) -> None:
        self._areas = areas
        self._moved = moved
        self._painter: Painter | None = None
        self._places: list[Place | None] = []
        self._fresh = True
        self._next: asyncio.TimerHandle | None = None
        self._rested = 0.0
        """When may be painted again."""

    def before_render(self, app: Application[Any]) -> None:
        """Forget where the areas are: the layout says it anew."""
        for area in self._areas():
            area.place = None
        self._fresh = app.renderer.last_rendered_screen is None

    def after_render(self, app: Application[Any]) -> None:
        """The rest is drawn. Where places have moved, it is drawn once more, on an empty terminal."""
        if self._painter is None:
            self._painter = Painter(app.output)
        places = [area.place for area in self._areas()]
        if places != self._places:
            self._places = places
            self._moved()
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

    def paint_soon(self, delay: float = 0.0) -> None:
        """Paint after a delay, and after the pause that the last painting has earned."""
        if self._next is not None or self._painter is None:
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
        now = asyncio.get_running_loop().time
        began, used = now(), time.thread_time()
        painter.paint(self._areas())
        ended = now()
        pause = max(ended - began, min(LONGEST, LOAD * (time.thread_time() - used)))  # a terminal may be slow to take it, too
        self._rested = max(self._rested, began - SAVED) + pause
