"""The terminal's mouse as the guest's: reports of positions become the movements of a PS/2 mouse.

Reports as xterm sends them in its SGR mode ("Control Sequences", "Extended coordinates"): CSI < button ; column ; row M, or m when a
button is let go. The invariant: a button that is down at the guest is down here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_REPORT = re.compile(r"\x1b\[<(\d+);(\d+);(\d+)([Mm])")
_BUTTONS = {0: 1, 1: 4, 2: 2}
"""The terminal's left, middle and right as the bits of the packet."""
MOTION, WHEEL = 32, 64


@dataclass(frozen=True, slots=True)
class Moved:
    """What the guest's mouse does: counts right and down, the wheel up, and the buttons that are down."""

    dx: int
    dy: int
    wheel: int
    buttons: int


class MouseTracker:
    """Turns reports into movements. A cell is so many counts of the mouse: the size that the guest's picture gives it."""

    def __init__(self) -> None:
        self.buttons = 0
        self._at: tuple[int, int] | None = None

    def forget(self) -> None:
        """The mouse went elsewhere; where it comes back from says nothing."""
        self._at = None
        self.buttons = 0

    def report(self, data: str, cell: tuple[int, int]) -> Moved | None:
        """Take a report; returns what the guest's mouse does, None for what is no report."""
        found = _REPORT.fullmatch(data)
        if found is None:
            return None
        code, column, row = int(found[1]), int(found[2]) - 1, int(found[3]) - 1
        wheel = 0
        if code & WHEEL:
            wheel = 0 if code & 2 else -1 if code & 1 else 1
        elif not code & MOTION:
            bit = _BUTTONS.get(code & 3, 0)
            self.buttons = self.buttons | bit if found[4] == "M" else self.buttons & ~bit
        before = self._at if self._at is not None else (column, row)
        self._at = (column, row)
        return Moved((column - before[0]) * cell[0], (row - before[1]) * cell[1], wheel, self.buttons)
