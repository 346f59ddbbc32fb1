"""The guest's screen in a terminal: text with its colours, graphics as half blocks.

Characters of code page 437 become Unicode; an attribute becomes the colours that the guest's palette gives it, or the
nearest that the terminal has. A pixel picture is scaled to the terminal at 4:3, two pixels to a character cell ("▀").
The invariant: a view is a plain function of what the guest shows and the room there is; what it remembers only saves work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image
from prompt_toolkit.output import ColorDepth

from avmm.control.seat import Picture, PixelPicture, TextPicture
from avmm.devices.vga.render import decode

from .half_blocks import HalfBlocks
from .sequences import Sequences

_ANSI = ("black", "blue", "green", "cyan", "red", "magenta", "yellow", "gray")
_ANSI_BRIGHT = ("brightblack", "brightblue", "brightgreen", "brightcyan", "brightred", "brightmagenta", "brightyellow", "white")
ROWS_KEPT = 400


@dataclass(frozen=True, slots=True)
class Frame:
    """What a view shows: rows of ``width`` columns, as a terminal is sent them, each with all of its colours, the cursor among them."""

    rows: list[str]
    width: int


NOTHING = Frame([], 0)


def colour_depth(environment: Mapping[str, str]) -> ColorDepth:
    """Return how many colours a terminal with these environment variables has."""
    term = environment.get("TERM", "")
    if environment.get("NO_COLOR") or term in ("", "dumb") or "mono" in term or term.startswith("vt"):
        return ColorDepth.DEPTH_1_BIT
    if environment.get("COLORTERM") in ("truecolor", "24bit") or "direct" in term:
        return ColorDepth.DEPTH_24_BIT
    return ColorDepth.DEPTH_8_BIT if "256" in term or term.startswith(("xterm", "tmux", "foot", "alacritty")) else ColorDepth.DEPTH_4_BIT


class ScreenView:
    """Shows pictures of a machine's screen."""

    def __init__(self, depth: ColorDepth) -> None:
        self._depth = depth
        self._rows: dict[bytes, str] = {}
        """What was made of a row that was met."""
        self._looks: Sequence[str] = ()
        self._blocks = HalfBlocks(depth)

    def frame(self, picture: Picture | None, width: int, height: int) -> Frame:
        """Return the picture for a terminal of ``width`` columns and ``height`` rows."""
        if isinstance(picture, TextPicture):
            return self._text(picture, width, height)
        return self._graphics(picture, width, height) if picture is not None else NOTHING

    # -- text

    def _text(self, picture: TextPicture, width: int, height: int) -> Frame:
        looks, reversed_looks = _attribute_sequences(picture.palette, picture.blink, self._depth)
        if looks is not self._looks or len(self._rows) > ROWS_KEPT:
            self._looks, self._rows = looks, {}
        column, row = picture.cursor if picture.cursor is not None else (0, 0)
        top, left = scrolled(row, picture.rows, height), scrolled(column, picture.columns, width)
        cells = [picture.row(y)[2 * left : 2 * (left + width)] for y in range(top, min(top + height, picture.rows))]
        rows = [self._row(row) for row in cells]
        if picture.cursor is not None and 0 <= row - top < height and 0 <= column - left < width:
            under, at = cells[row - top], 2 * (column - left)
            cursor = _drawn(under[at : at + 2], reversed_looks)
            rows[row - top] = f"{_drawn(under[:at], looks)}{cursor}{_drawn(under[at + 2 :], looks)}"
        return Frame(rows, min(width, picture.columns))

    def _row(self, cells: bytes) -> str:
        made = self._rows.get(cells)
        if made is None:
            made = self._rows[cells] = _drawn(cells, self._looks)
        return made

    # -- graphics

    def _graphics(self, picture: PixelPicture, width: int, height: int) -> Frame:
        columns, lines = fitted(width, height)
        smaller = columns < picture.width
        image = Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)
        scaled = image.resize((columns, lines), Image.Resampling.BOX if smaller else Image.Resampling.NEAREST)
        return Frame(self._blocks.rows(scaled), columns)


def _drawn(cells: bytes, looks: Sequence[str]) -> str:
    """What cells of a text mode are on the terminal: the colours only where they change."""
    attributes = cells[1::2]
    before = (None, *attributes)
    characters = decode(cells[::2])
    return "".join([char if now == was else looks[now] + char for char, now, was in zip(characters, attributes, before, strict=False)])


def scrolled(at: int, size: int, room: int) -> int:
    """Return the first row (or column) to show so that ``at`` can be seen."""
    return 0 if size <= room else max(0, min(at - room + 1, size - room))


def fitted(width: int, height: int) -> tuple[int, int]:
    """Return the largest picture of 4:3 in so many cells, in pixels; the number of lines is even."""
    lines = min(2 * height, width * 3 // 4) & ~1
    return max(1, min(width, lines * 4 // 3)), max(2, lines)


@lru_cache(64)
def _attribute_sequences(palette: bytes, blink: bool, depth: ColorDepth) -> tuple[list[str], list[str]]:
    """What switches to each of the 256 attributes, and the same for the cell under the cursor."""
    sequences = Sequences(depth)
    styles = [_style(attribute, palette, blink, depth) for attribute in range(256)]
    return [sequences[style] for style in styles], [sequences[reverse(style)] for style in styles]


def _style(attribute: int, palette: bytes, blink: bool, depth: ColorDepth) -> str:
    fore, back = attribute & 15, attribute >> 4 & (7 if blink else 15)
    blinking = " blink" if blink and attribute & 0x80 else ""
    if depth is ColorDepth.DEPTH_4_BIT:
        return f"fg:ansi{(_ANSI + _ANSI_BRIGHT)[fore]} bg:ansi{(_ANSI + _ANSI_BRIGHT)[back]}{blinking}"
    ink, paper = palette[3 * fore : 3 * fore + 3], palette[3 * back : 3 * back + 3]
    if depth is ColorDepth.DEPTH_1_BIT:
        return f"{'bold' if fore & 8 else ''}{' reverse' if sum(paper) > sum(ink) else ''}{blinking}"
    return f"fg:#{ink.hex()} bg:#{paper.hex()}{blinking}"


def reverse(style: str) -> str:
    """Return a style with foreground and background changed over."""
    return f"{style} {'noreverse' if 'reverse' in style.split() else 'reverse'}"
