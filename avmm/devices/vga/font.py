"""The character generator: our own code page 437 fonts, 8x16, 8x14 and 8x8.

Letters and symbols are drawn by hand in ``cp437.txt`` for 16 lines; accented letters are put together from a letter and
an accent; boxes, blocks and shades follow rules for any height. The 14-line font drops the first and last line of the
16-line one; the 8-line font folds its lines zone by zone (ascender, small letter, descender), dropping first what repeats.

A font is ``bytes``: 256 glyphs of ``height`` bytes each, most significant bit left, as INT 10h AX=1130h describes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files

Rows = list[int]

CP437 = "".join(
    [
        " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼",
        bytes(range(0x20, 0x7F)).decode("ascii"),
        "⌂",
        bytes(range(0x80, 0xFF)).decode("cp437"),
        "\u00a0",
    ]
)
"""What each of the 256 codes looks like, as Unicode; code 0 shows as a space."""

_ACCENTED = {
    0x80: ("C", ","), 0x81: ("u", '"'), 0x82: ("e", "'"), 0x83: ("a", "^"), 0x84: ("a", '"'), 0x85: ("a", "`"),
    0x86: ("a", "o"), 0x87: ("c", ","), 0x88: ("e", "^"), 0x89: ("e", '"'), 0x8A: ("e", "`"), 0x8B: ("ı", '"'),
    0x8C: ("ı", "^"), 0x8D: ("ı", "`"), 0x8E: ("A", '"'), 0x8F: ("A", "o"), 0x90: ("E", "'"), 0x93: ("o", "^"),
    0x94: ("o", '"'), 0x95: ("o", "`"), 0x96: ("u", "^"), 0x97: ("u", "`"), 0x98: ("y", '"'), 0x99: ("O", '"'),
    0x9A: ("U", '"'), 0xA0: ("a", "'"), 0xA1: ("ı", "'"), 0xA2: ("o", "'"), 0xA3: ("u", "'"), 0xA4: ("n", "~"),
    0xA5: ("N", "~"),
}  # fmt: skip

# Box characters B3h-DAh: how heavy the arms up, down, left and right are (0 none, 1 single, 2 double).
_BOXES = (
    "1100 1110 1120 2210 0210 0120 2220 2200 0220 2020 2010 1020 0110 1001 1011 0111 1101 0011 1111 1102 "
    "2201 2002 0202 2022 0222 2202 0022 2222 1022 2011 0122 0211 2001 1002 0102 0201 2211 1122 1010 0101"
)


@cache
def font(height: int) -> bytes:
    """Return the font with ``height`` (8, 14 or 16) scan lines."""
    drawn = _drawn()
    glyphs: list[Iterable[int]] = []
    for code in range(256):
        if 0xB0 <= code <= 0xDF:
            glyphs.append(_ruled(code, height))
        else:
            rows = drawn.get(code, [0] * 16)
            glyphs.append({16: rows, 14: rows[1:15], 8: _folded(rows)}[height])
    return b"".join(bytes(rows) for rows in glyphs)


def _drawn() -> dict[int, Rows]:
    glyphs: dict[str, Rows] = {}
    rows: Rows = []
    source = files("avmm.devices.vga").joinpath("cp437.txt").read_text(encoding="utf-8")
    for text in source.splitlines():
        if text[:1] in "=@" and text:
            name, first = text.split()
            rows = glyphs[name] = [0] * int(first)
        elif not text.startswith("# ") and text:
            rows.append(int(text.replace(".", "0").replace("#", "1"), 2))
    for rows in glyphs.values():
        rows.extend([0] * (16 - len(rows)))
    result = {int(name[1:], 16): rows for name, rows in glyphs.items() if name[0] == "="}
    for code, (letter, accent) in _ACCENTED.items():
        base = glyphs["@ı"] if letter == "ı" else result[ord(letter)]
        result[code] = _accented(base, glyphs["@" + accent], letter.isupper(), accent)
    return result


def _accented(letter: Rows, accent: Rows, capital: bool, name: str) -> Rows:
    if name == ",":
        return [a | b for a, b in zip(letter, accent, strict=True)]
    if capital:  # make it one line shorter: line 4 repeats its neighbour in every capital there is
        letter = [0, *letter[:4], *letter[5:]]
        return [a | b for a, b in zip(letter, accent, strict=True)]
    drop = 1 if accent[2] else 2
    return [a | b for a, b in zip(letter, [0] * drop + accent[: 16 - drop], strict=True)]


def _folded(rows: Rows) -> Rows:
    """Fold 16 lines into 8: lines 0-4 into two, 5-11 into five, 12-15 into one (four and two below a real descender)."""
    if all(rows):  # an inverse glyph fills its cell
        return [0xFF ^ row for row in _folded([0xFF ^ row for row in rows])]
    below = 2 if len({row for row in rows[12:16] if row}) > 1 else 1
    return [*_fewer(rows[0:5], 2, gap=not rows[4] and any(rows[5:12])), *_fewer(rows[5:12], 6 - below), *_fewer(rows[12:16], below)]


def _fewer(rows: Rows, count: int, gap: bool = False) -> Rows:
    """Take out the lines that matter least; with ``gap`` the last one is blank and keeps an accent from its letter."""
    rows = list(rows)
    while len(rows) > count:
        losses = [_loss(rows, i) for i in range(len(rows))]
        if gap and any(rows):
            losses[-1] = 40
        del rows[losses.index(min(losses))]
    return rows


def _loss(rows: Rows, i: int) -> int:
    """How much is lost without line ``i``: nothing if a neighbour says the same, little if it is blank margin."""
    neighbours = [rows[k] for k in (i - 1, i + 1) if 0 <= k < len(rows)]
    above, below = any(rows[:i]), any(rows[i + 1 :])
    if rows[i] in neighbours:
        return 0
    if rows[i] == 0:
        return 40 if above and below else 1
    return 2 + 2 * min((rows[i] ^ other).bit_count() for other in neighbours) + (not above or not below)


def _ruled(code: int, height: int) -> Rows:
    if code <= 0xB2:
        quarter = [0x22 if y & 1 else 0x88 for y in range(height)]
        half = [0x55 if y & 1 else 0xAA for y in range(height)]
        return (quarter, half, [0xFF ^ row for row in quarter])[code - 0xB0]
    if code >= 0xDB:
        top, lower = height // 2, height - height // 2
        return (
            [0xFF] * height,
            [0] * top + [0xFF] * lower,
            [0xF0] * height,
            [0x0F] * height,
            [0xFF] * top + [0] * lower,
        )[code - 0xDB]
    up, down, left, right = map(int, _BOXES.split()[code - 0xB3])
    return _box(up, down, left, right, height)


def _box(up: int, down: int, left: int, right: int, height: int) -> Rows:
    middle = height // 2 - 1
    xs = {-1: (1, 2), 0: (3, 4), 1: (5, 6)}
    ys = {-1: (middle - 1,) * 2, 0: (middle,) * 2, 1: (middle + 1,) * 2}
    dots: set[tuple[int, int]] = set()

    def fill(x0: int, x1: int, y0: int, y1: int) -> None:
        dots.update((x, y) for x in range(x0, x1 + 1) for y in range(y0, y1 + 1))

    for track, end in _strokes(up, left, right, down):
        fill(*xs[track], 0, ys[end][1])
    for track, end in _strokes(down, left, right, up):
        fill(*xs[track], ys[-end][0], height - 1)
    for track, end in _strokes(left, up, down, right):
        fill(0, xs[end][1], *ys[track])
    for track, end in _strokes(right, up, down, left):
        fill(xs[-end][0], 7, *ys[track])
    return [sum(0x80 >> x for x in range(8) if (x, y) in dots) for y in range(height)]


def _strokes(arm: int, before: int, after: int, opposite: int) -> list[tuple[int, int]]:
    """The strokes of one arm: on which track (-1, 0, 1) each lies and how far it goes (-1 first track crossed, 1 last)."""
    if arm == 0:
        return []
    if arm == 1:
        if before == after == 2:
            return [(0, 0 if opposite else -1)]
        return [(0, 1 if 2 in (before, after) else 0)]
    strokes = []
    for track, near, far in ((-1, before, after), (1, after, before)):
        if near == 2:
            strokes.append((track, -1))
        else:
            strokes.append((track, 1 if far == 2 and not near and opposite != 2 else 0))
    return strokes
