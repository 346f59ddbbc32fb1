"""Pages over the guest's screen: a text that can be scrolled, such as an answer of the command line, and views that are made anew.

The invariant: what is shown is always a part of the text, however often somebody scrolls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from .keys import Chord, Event, Text

LEAVE = ("q", "esc", "ret")


class Page(Protocol):
    """What can be in front of the guests."""

    def text(self, width: int, height: int) -> str:
        """Return what fills a window of this size."""

    def take(self, event: Event, height: int) -> bool:
        """Take what was pressed; returns whether the page stays."""


class Pager:
    """A text and where in it somebody is. ``sticky`` ones are left with q, Esc or Enter, others with any key that does not scroll."""

    def __init__(
        self,
        text: str,
        *,
        title: str = "",
        at_end: bool = False,
        sticky: bool = False,
        save: Callable[[str], None] | None = None,
        copy: Callable[[str], None] | None = None,
    ) -> None:
        self.lines = text.split("\n")
        self.title = title
        self.sticky = sticky
        self.top = len(self.lines) if at_end else 0
        self._save, self._copy = save, copy

    def visible(self, height: int) -> list[str]:
        """Return the lines to be shown in ``height`` rows."""
        self.top = max(0, min(self.top, len(self.lines) - height))
        return self.lines[self.top : self.top + height]

    def take(self, event: Event, height: int) -> bool:
        """Take what was pressed; returns whether the pager stays."""
        self.visible(height)
        key = pressed(event)
        if key == "w" and self._save is not None:
            self._save("\n".join(self.lines) + "\n")
            return True
        if key == "y" and self._copy is not None:
            self._copy("\n".join(self.visible(height)))
            return True
        steps = {"up": -1, "down": 1, "pgup": -height, "pgdn": height, " ": height, "home": -len(self.lines), "end": len(self.lines)}
        if key in steps:
            self.top += steps[key]
            self.visible(height)
            return True
        return self.sticky and key not in LEAVE

    def text(self, width: int, height: int) -> str:
        """Return what fills a window of this size: a head line and the lines."""
        body = self.visible(height - 1)
        last = self.top + len(body)
        keys = f"PgUp PgDn scroll{', y copies, w writes a file' if self._save else ''}, {'q leaves' if self.sticky else 'other keys close'}"
        where = f"lines {self.top + 1}-{last} of {len(self.lines)}; {keys}"
        return "\n".join(line[:width] for line in (f"{self.title}  {where}".strip(), *body))


class LiveView(Pager):
    """A text that is asked for again and again: ``await view.refresh()``."""

    def __init__(self, title: str, ask: Callable[[], Awaitable[str]], *, follow: bool = False) -> None:
        super().__init__("...", title=title, sticky=True, at_end=follow)
        self._ask = ask
        self._follow = follow

    async def refresh(self) -> None:
        """Ask, and show the answer; what is followed is shown from its end, until somebody scrolls."""
        self.lines = (await self._ask()).split("\n")
        if self._follow:
            self.top = len(self.lines)

    def take(self, event: Event, height: int) -> bool:
        """Take what was pressed."""
        before = self.top
        stays = super().take(event, height)
        self._follow = self._follow and self.top >= before
        return stays


def pressed(event: Event) -> str:
    """Return the one key that was pressed: a character, or a key's name; empty for more than one."""
    match event:
        case Text(text):
            return text
        case Chord((key,), _):
            return key
    return ""
