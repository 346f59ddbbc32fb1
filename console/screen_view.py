"""The guest's screen in a terminal: text with its colours, graphics as half blocks.

Characters of code page 437 become Unicode; an attribute becomes the colours that the guest's palette gives it, or the
nearest that the terminal has. A pixel picture is scaled to the terminal at 4:3, two pixels to a character cell ("▀").
The invariant: a view is a plain function of what the guest shows and the room there is; what it remembers only saves work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from PIL import Image
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.output import ColorDepth

from avmm.control.seat import Picture, PixelPicture, TextPicture
from avmm.devices.vga.font import CP437

_CHARACTERS = CP437.replace("\u00a0", " ")
_ANSI = ("black", "blue", "green", "cyan", "red", "magenta", "yellow", "gray")
_ANSI_BRIGHT = ("brightblack", "brightblue", "brightgreen", "brightcyan", "brightred", "brightmagenta", "brightyellow", "white")
UPPER, LOWER, BOTH = "▀", "▄", "█"
PAIRS = 30_000
"""Pairs of colours after which pictures get fewer colours: they are remembered."""
FINE, COARSE = 0xF8, 0xC0
_MASKS = {mask: bytes(value & mask for value in range(256)) for mask in (FINE, COARSE)}
CUBE = bytes(min((0, 95, 135, 175, 215, 255), key=lambda level: abs(level - value)) for value in range(256))
"""To the levels of a colour that terminals of 256 colours have."""
DARK = 0x60
ROWS_KEPT = 400


@dataclass(frozen=True, slots=True)
class Frame:
    """What a view shows: its rows, and where the cursor is (column, row), if it can be seen."""

    rows: list[StyleAndTextTuples]
    width: int
    cursor: tuple[int, int] | None = None


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
        self._pairs: dict[bytes, str] = {}
        """The style of each pair of colours that was met."""
        self._rows: dict[bytes, StyleAndTextTuples] = {}
        self._looks: list[str] = []

    def frame(self, picture: Picture | None, width: int, height: int) -> Frame:
        """Return the picture for a terminal of ``width`` columns and ``height`` rows."""
        if isinstance(picture, TextPicture):
            return self._text(picture, width, height)
        return self._graphics(picture, width, height) if picture is not None else NOTHING

    # -- text

    def _text(self, picture: TextPicture, width: int, height: int) -> Frame:
        looks = _attribute_styles(picture.palette, picture.blink, self._depth)
        if looks is not self._looks or len(self._rows) > ROWS_KEPT:
            self._looks, self._rows = looks, {}
        column, row = picture.cursor if picture.cursor is not None else (0, 0)
        top, left = scrolled(row, picture.rows, height), scrolled(column, picture.columns, width)
        rows = [self._row(picture.row(y)[2 * left : 2 * (left + width)]) for y in range(top, min(top + height, picture.rows))]
        inside = picture.cursor is not None and 0 <= row - top < height and 0 <= column - left < width
        return Frame(rows, min(width, picture.columns), (column - left, row - top) if inside else None)

    def _row(self, cells: bytes) -> StyleAndTextTuples:
        made = self._rows.get(cells)
        if made is None:
            runs = groupby(zip(cells[::2], cells[1::2], strict=True), key=lambda cell: cell[1])
            made = self._rows[cells] = [
                (self._looks[attribute], "".join([_CHARACTERS[code] for code, _ in run])) for attribute, run in runs
            ]  # fmt: skip
        return made

    # -- graphics

    def _graphics(self, picture: PixelPicture, width: int, height: int) -> Frame:
        columns, lines = fitted(width, height)
        smaller = columns < picture.width
        image = Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)
        scaled = image.resize((columns, lines), Image.Resampling.BOX if smaller else Image.Resampling.NEAREST).tobytes()
        if len(self._rows) > ROWS_KEPT:
            self._rows = {}
        pitch = 6 * columns
        return Frame([self._double_line(scaled[at : at + pitch]) for at in range(0, len(scaled), pitch)], columns)

    def _double_line(self, lines: bytes) -> StyleAndTextTuples:
        made = self._rows.get(lines)
        if made is None:
            half = len(lines) // 2
            make = self._dots if self._depth is ColorDepth.DEPTH_1_BIT else self._blocks
            made = self._rows[lines] = make(lines[:half], lines[half:])
        return made

    def _blocks(self, upper: bytes, lower: bytes) -> StyleAndTextTuples:
        pairs = self._pairs
        table = CUBE if self._depth is ColorDepth.DEPTH_8_BIT else _MASKS[FINE if len(pairs) < PAIRS else COARSE]
        above, below = upper.translate(table), lower.translate(table)
        made: StyleAndTextTuples = []
        for pair, run in groupby([above[at : at + 3] + below[at : at + 3] for at in range(0, len(above), 3)]):
            style = pairs.get(pair)
            if style is None:
                style = pairs[pair] = f"fg:#{pair[:3].hex()} bg:#{pair[3:].hex()}"
            made.append((style, UPPER * len(list(run))))
        return made

    def _dots(self, upper: bytes, lower: bytes) -> StyleAndTextTuples:
        light = ([sum(line[at : at + 3]) > 3 * DARK for at in range(0, len(line), 3)] for line in (upper, lower))
        return [("", "".join((" ", LOWER, UPPER, BOTH)[2 * a + b] for a, b in zip(*light, strict=True)))]


def scrolled(at: int, size: int, room: int) -> int:
    """Return the first row (or column) to show so that ``at`` can be seen."""
    return 0 if size <= room else max(0, min(at - room + 1, size - room))


def fitted(width: int, height: int) -> tuple[int, int]:
    """Return the largest picture of 4:3 in so many cells, in pixels; the number of lines is even."""
    lines = min(2 * height, width * 3 // 4) & ~1
    return max(1, min(width, lines * 4 // 3)), max(2, lines)


@lru_cache(64)
def _attribute_styles(palette: bytes, blink: bool, depth: ColorDepth) -> list[str]:
    """The style of each of the 256 attributes."""
    colours = [palette[at : at + 3] for at in range(0, 48, 3)]
    styles = []
    for attribute in range(256):
        fore, back = attribute & 15, attribute >> 4 & (7 if blink else 15)
        blinking = " blink" if blink and attribute & 0x80 else ""
        if depth is ColorDepth.DEPTH_1_BIT:
            inverse = " reverse" if sum(colours[back]) > sum(colours[fore]) else ""
            styles.append(f"{'bold' if fore & 8 else ''}{inverse}{blinking}".strip())
        elif depth is ColorDepth.DEPTH_4_BIT:
            styles.append(f"fg:ansi{(_ANSI + _ANSI_BRIGHT)[fore]} bg:ansi{(_ANSI + _ANSI_BRIGHT)[back]}{blinking}")
        else:
            styles.append(f"fg:#{colours[fore].hex()} bg:#{colours[back].hex()}{blinking}")
    return styles
