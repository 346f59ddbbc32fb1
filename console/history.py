"""What scrolled off the guest's text screen, and the serial line's past without its escape sequences.

The screen is looked at as often as it is drawn; lines that came and went between two looks are not seen. The invariant: the
history and the screen together hold each line once, as long as it scrolls by less than a screen between two looks.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence

KEPT = 10_000
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][A-Z0-9]|[ -~])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class ScreenHistory:
    """Remembers lines that left the screen at the top."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT)
        self._shown: list[str] = []

    def look(self, rows: Sequence[str]) -> None:
        """Take what the screen shows now."""
        now = [row.rstrip() for row in rows]
        gone = scrolled(self._shown, now)
        self.lines.extend(self._shown[:gone])
        self._shown = now

    def text(self) -> str:
        """Return everything, the screen last."""
        return "\n".join([*self.lines, *self._shown]).rstrip()


def scrolled(before: Sequence[str], now: Sequence[str]) -> int:
    """Return how many lines of ``before`` have gone at the top; none when the screens have nothing in common but its first lines."""
    if not any(before) or len(before) != len(now):
        return 0
    used = max(i for i, line in enumerate(before) if line)  # the line being written to may have changed since
    for gone in range(used):
        kept = before[gone:used]
        if any(kept) and list(now[: len(kept)]) == list(kept):
            return gone
    return 0


def plain(serial: str) -> str:
    """Return a serial line's output as plain text."""
    text = _ESCAPES.sub("", serial).replace("\r\n", "\n")
    lines = (line.rsplit("\r", 1)[-1] if not line.endswith("\r") else line.rstrip("\r") for line in text.split("\n"))
    return _CONTROLS.sub("", "\n".join(lines))
