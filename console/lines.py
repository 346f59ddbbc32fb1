"""Our own text as rows for the terminal: tabs, titles, status, pages.

The invariant: a row is exactly as wide as it should be, and no control character that came with a name or an answer reaches the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable

from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.formatted_text.utils import split_lines
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth

from .screen_view import Frame
from .sequences import Sequences

_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), "·")


class Lines:
    """Makes rows of text with prompt_toolkit's styles, the classes of ``style`` among them."""

    def __init__(self, style: Style, depth: ColorDepth) -> None:
        self._sequences = Sequences(depth, style)

    def frame(self, text: StyleAndTextTuples, width: int, height: int, style: str = "") -> Frame:
        """Return text for a place of this size, and ``style`` where there is none."""
        rows = [self._row(((own, piece) for own, piece, *_ in line), width, style) for line in split_lines(text)]
        return Frame((rows + [self._row((), width, style)] * height)[:height], width)

    def _row(self, pieces: Iterable[tuple[str, str]], width: int, style: str) -> str:
        parts, room = [], width
        for own, text in pieces:
            shown, used = clipped(text.expandtabs().translate(_CONTROLS), room)
            parts += [self._sequences[f"{style} {own}".strip()], shown]
            room -= used
        return "".join([*parts, self._sequences[style], " " * room])


def clipped(text: str, room: int) -> tuple[str, int]:
    """Return what of a text fits, and how many columns it takes."""
    if text.isascii():
        return text[:room], min(len(text), room)
    used = 0
    for n, char in enumerate(text):
        width = get_cwidth(char)
        if used + width > room:
            return text[:n], used
        used += width
    return text, used
