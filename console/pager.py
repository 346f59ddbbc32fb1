"""A text over the guest's screen that can be scrolled: answers of the command line, and what scrolled away.

The invariant: what is shown is always a part of the text, however often somebody scrolls.
"""

from __future__ import annotations

from .keys import Chord, Event, Text

LEAVE = ("q", "esc", "ret")


class Pager:
    """A text and where in it somebody is. ``sticky`` ones are left with q, Esc or Enter, others with any key that does not scroll."""

    def __init__(self, text: str, *, title: str = "", at_end: bool = False, sticky: bool = False) -> None:
        self.lines = text.split("\n")
        self.title = title
        self.sticky = sticky
        self.top = len(self.lines) if at_end else 0

    def visible(self, height: int) -> list[str]:
        """Return the lines to be shown in ``height`` rows."""
        self.top = max(0, min(self.top, len(self.lines) - height))
        return self.lines[self.top : self.top + height]

    def take(self, event: Event, height: int) -> bool:
        """Take what was pressed; returns whether the pager stays."""
        self.visible(height)
        match event:
            case Text(text):
                key = text
            case Chord((key,), _):
                pass
            case _:
                key = ""
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
        where = f"lines {self.top + 1}-{last} of {len(self.lines)}; PgUp PgDn scroll, {'q leaves' if self.sticky else 'other keys close'}"
        return "\n".join(line[:width] for line in (f"{self.title}  {where}".strip(), *body))
