"""The key menu: every key of a PC keyboard, also those that a terminal cannot send.

Typing narrows the list, arrows choose, Space marks keys that are held together with the one that Enter presses. The invariant: what comes
out are names of keys that there are.
"""

from __future__ import annotations

from collections.abc import Callable

from avmm.devices.keys import KEYS

from .keys import Event
from .pager import pressed

WIDTH = 16
HEAD = "type to find, arrows choose, Space holds, Enter presses, Esc leaves"


class KeyMenu:
    """A page; ``press`` is given the keys that were chosen."""

    def __init__(self, press: Callable[[tuple[str, ...]], None]) -> None:
        self.held: list[str] = []
        self.at = 0
        self._typed = ""
        self._press = press
        self._columns = 1

    @property
    def found(self) -> list[str]:
        """The keys that match what was typed, the best first."""
        matching = [name for name in KEYS if self._typed in name]
        return sorted(matching, key=lambda name: (name != self._typed, not name.startswith(self._typed)))

    def take(self, event: Event, height: int) -> bool:
        """Take what was pressed; returns whether the menu stays."""
        key = pressed(event)
        found = self.found
        steps = {"up": -self._columns, "down": self._columns, "left": -1, "right": 1, "home": -len(KEYS), "end": len(KEYS)}
        if key in steps:
            self.at = max(0, min(self.at + steps[key], len(found) - 1))
        elif key in (" ", "spc", "tab") and found:
            self._hold(found[self.at])
        elif key == "backspace":
            self._typed, self.at = self._typed[:-1], 0
        elif key == "ret" and (found or self.held):
            chosen = found[self.at : self.at + 1] if self._typed or not self.held else []
            self._press((*(name for name in self.held if name not in chosen), *chosen))
            return False
        elif key == "esc":
            return False
        elif len(key) == 1 and any(self._typed + key in name for name in KEYS):
            self._typed, self.at = self._typed + key, 0
        return True

    def _hold(self, name: str) -> None:
        if name in self.held:
            self.held.remove(name)
        else:
            self.held.append(name)
        self._typed, self.at = "", 0

    def text(self, width: int, height: int) -> str:
        """Return what fills a window of this size."""
        self._columns = max(1, width // WIDTH)
        found = self.found
        held = f"   held: {' '.join(self.held)}" if self.held else ""
        lines = [f"keys: {self._typed}_   {HEAD}{held}"[:width]]
        cells = [f"{'>' if n == self.at else ' '}{'*' if name in self.held else ' '}{name}"[: WIDTH - 1] for n, name in enumerate(found)]
        rows = [cells[n : n + self._columns] for n in range(0, len(cells), self._columns)]
        room = height - 1
        top = max(0, min(self.at // self._columns - room + 1, len(rows) - room))
        lines += ["".join(f"{cell:<{WIDTH}}" for cell in row) for row in rows[top : top + room]]
        return "\n".join(lines)
