"""The guest's screen in a terminal: text with its colours, graphics as half blocks, a serial line as a small terminal.

Characters of code page 437 become Unicode; an attribute becomes the colours that the guest's palette gives it, or the
nearest that the terminal has. A picture is scaled to the terminal, a VGA's at 4:3, two pixels to a character cell ("▀").
The invariant: a view is a plain function of what the guest shows and the room there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import pyte
from PIL import Image
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.output import ColorDepth

import avmm
from avmm.devices.vga.font import CP437
from avmm.devices.vga.vga import Vga

_CHARACTERS = CP437.replace("\u00a0", " ")
_ANSI = ("black", "blue", "green", "cyan", "red", "magenta", "yellow", "gray")
_ANSI_BRIGHT = ("brightblack", "brightblue", "brightgreen", "brightcyan", "brightred", "brightmagenta", "brightyellow", "white")
_ATTRIBUTE_MODE, _BLINK = 0x10, 8
UPPER, LOWER, BOTH = "▀", "▄", "█"
PAIRS = 30_000
"""Pairs of colours after which pictures get fewer colours: prompt_toolkit remembers every pair for ever."""
FINE, COARSE = 0xF8, 0xC0
DARK = 0x60


@dataclass(frozen=True, slots=True)
class Frame:
    """What a view shows: its rows, and where the cursor is (column, row), if it can be seen."""

    rows: list[StyleAndTextTuples]
    width: int
    cursor: tuple[int, int] | None = None


def colour_depth(environment: Mapping[str, str]) -> ColorDepth:
    """Return how many colours a terminal with these environment variables has."""
    term = environment.get("TERM", "")
    if environment.get("NO_COLOR") or term in ("", "dumb") or "mono" in term or term.startswith("vt"):
        return ColorDepth.DEPTH_1_BIT
    if environment.get("COLORTERM") in ("truecolor", "24bit") or "direct" in term:
        return ColorDepth.DEPTH_24_BIT
    return ColorDepth.DEPTH_8_BIT if "256" in term or term.startswith(("xterm", "tmux", "foot", "alacritty")) else ColorDepth.DEPTH_4_BIT


class ScreenView:
    """Shows a machine's screen."""

    def __init__(self, vm: avmm.Vm, depth: ColorDepth) -> None:
        self._screen = vm.screen
        self._depth = depth
        self._pairs: set[str] = set()

    @property
    def _vga(self) -> Vga:
        """The adapter that is there now: it may be exchanged while the machine runs."""
        return self._screen.vga

    def frame(self, width: int, height: int) -> Frame:
        """Return the picture for a terminal of ``width`` columns and ``height`` rows."""
        if self._screen.display.mode() == "text":
            return self._text(width, height)
        return self._graphics(width, height)

    # -- text

    def _text(self, width: int, height: int) -> Frame:
        cells = self._vga.cells()
        row, column, visible, _, _ = self._vga.cursor()
        top, left = _scrolled(row, len(cells), height), _scrolled(column, len(cells[0]), width)
        looks = self._looks()
        rows = [_text_row(cells[y][left : left + width], looks) for y in range(top, min(top + height, len(cells)))]
        inside = visible and 0 <= row - top < height and 0 <= column - left < width
        return Frame(rows, min(width, len(cells[0])), (column - left, row - top) if inside else None)

    def _looks(self) -> list[str]:
        registers = self._vga.registers
        blink = bool(registers.attribute[_ATTRIBUTE_MODE] & _BLINK)
        return _attribute_styles(tuple(registers.colour_table()[:16]), blink, self._depth)

    # -- graphics

    def _graphics(self, width: int, height: int) -> Frame:
        source_width, source_height, rgb = self._screen.pixels()
        shape = (4, 3) if self._screen.display is self._vga else (source_width, source_height)
        columns, lines = _fitted(width, height, *shape)
        picture = Image.frombytes("RGB", (source_width, source_height), rgb)
        smaller = columns < source_width
        scaled = picture.resize((columns, lines), Image.Resampling.BOX if smaller else Image.Resampling.NEAREST).tobytes()
        pitch = 3 * columns
        make = self._dots if self._depth is ColorDepth.DEPTH_1_BIT else self._blocks
        return Frame([make(scaled[y : y + pitch], scaled[y + pitch : y + 2 * pitch]) for y in range(0, len(scaled), 2 * pitch)], columns)

    def _blocks(self, upper: bytes, lower: bytes) -> StyleAndTextTuples:
        mask = FINE if len(self._pairs) < PAIRS else COARSE
        styles = []
        for at in range(0, len(upper), 3):
            a, b = (bytes(part & mask for part in line[at : at + 3]).hex() for line in (upper, lower))
            styles.append(f"fg:#{a} bg:#{b}")
        if mask == FINE:
            self._pairs.update(styles)
        return [(style, UPPER * len(list(run))) for style, run in groupby(styles)]

    def _dots(self, upper: bytes, lower: bytes) -> StyleAndTextTuples:
        light = ([sum(line[at : at + 3]) > 3 * DARK for at in range(0, len(line), 3)] for line in (upper, lower))
        return [("", "".join((" ", LOWER, UPPER, BOTH)[2 * a + b] for a, b in zip(*light, strict=True)))]


def _scrolled(at: int, size: int, room: int) -> int:
    """Return the first row (or column) to show so that ``at`` can be seen."""
    return 0 if size <= room else max(0, min(at - room + 1, size - room))


def _fitted(width: int, height: int, across: int, down: int) -> tuple[int, int]:
    """Return the largest picture of ``across`` to ``down`` in so many cells, in pixels; the number of lines is even."""
    lines = min(2 * height, width * down // across) & ~1
    return max(1, min(width, lines * across // down)), max(2, lines)


def _text_row(cells: Iterable[tuple[int, int]], looks: list[str]) -> StyleAndTextTuples:
    runs = groupby(cells, key=lambda cell: cell[1])
    return [(looks[attribute], "".join([_CHARACTERS[code] for code, _ in run])) for attribute, run in runs]


@lru_cache(64)
def _attribute_styles(palette: tuple[tuple[int, int, int], ...], blink: bool, depth: ColorDepth) -> list[str]:
    """The style of each of the 256 attributes."""
    styles = []
    for attribute in range(256):
        fore, back = attribute & 15, attribute >> 4 & (7 if blink else 15)
        blinking = " blink" if blink and attribute & 0x80 else ""
        if depth is ColorDepth.DEPTH_1_BIT:
            inverse = " reverse" if sum(palette[back]) > sum(palette[fore]) else ""
            styles.append(f"{'bold' if fore & 8 else ''}{inverse}{blinking}".strip())
        elif depth is ColorDepth.DEPTH_4_BIT:
            styles.append(f"fg:ansi{(_ANSI + _ANSI_BRIGHT)[fore]} bg:ansi{(_ANSI + _ANSI_BRIGHT)[back]}{blinking}")
        else:
            styles.append(f"fg:#{bytes(palette[fore]).hex()} bg:#{bytes(palette[back]).hex()}{blinking}")
    return styles


class SerialView:
    """Shows what came over the serial line as a terminal of 80x25 would."""

    columns, lines = 80, 25
    KEPT = 64 << 10
    """Bytes that wait until somebody looks."""

    def __init__(self, vm: avmm.Vm) -> None:
        self.screen = pyte.Screen(self.columns, self.lines)
        self._stream = pyte.ByteStream(self.screen)
        self._waiting = bytearray(vm.serial.output[-self.KEPT :])
        self.generation = 0
        vm.serial.listeners.append(self.take)

    def take(self, data: bytes) -> None:
        """Take a piece of the guest's output."""
        self._waiting += data
        self.generation += 1
        if len(self._waiting) > 2 * self.KEPT:
            del self._waiting[: self.KEPT]

    def frame(self, width: int, height: int) -> Frame:
        """Return the terminal's contents."""
        if self._waiting:
            self._stream.feed(bytes(self._waiting))
            self._waiting.clear()
        cursor = self.screen.cursor
        top = _scrolled(cursor.y, self.lines, height)
        rows: list[StyleAndTextTuples] = []
        for y in range(top, min(top + height, self.lines)):
            line = self.screen.buffer[y]
            cells = [line[x] for x in range(min(width, self.columns))]
            rows.append([(style, "".join(cell.data for cell in run)) for style, run in groupby(cells, key=_terminal_style)])
        inside = not cursor.hidden and cursor.x < width
        return Frame(rows, min(width, self.columns), (min(cursor.x, self.columns - 1), cursor.y - top) if inside else None)


def _terminal_style(cell: pyte.screens.Char) -> str:
    parts = [f"{where}:{_terminal_colour(colour)}" for where, colour in (("fg", cell.fg), ("bg", cell.bg)) if colour != "default"]
    flags = (("bold", cell.bold), ("underline", cell.underscore), ("reverse", cell.reverse), ("italic", cell.italics))
    return " ".join([*parts, *(name for name, on in flags if on)])


def _terminal_colour(name: str) -> str:
    """A colour by pyte's name, or as six hexadecimal digits, in prompt_toolkit's words."""
    if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name):
        return f"#{name}"
    known = {"brown": "yellow", "white": "gray", "brightbrown": "brightyellow", "brightwhite": "white", "bfightmagenta": "brightmagenta"}
    return f"ansi{known.get(name, name)}"
