"""What pictures are on a terminal: rows that a terminal understands as the cells and pixels that they were made of."""

from __future__ import annotations

import re

import pyte
import pytest
from PIL import Image
from prompt_toolkit.output import ColorDepth

from avmm.control.seat import PixelPicture, TextPicture
from avmm_console.half_blocks import LEVELS, HalfBlocks
from avmm_console.screen_view import Frame, ScreenView, fitted
from avmm_console.serial_view import SerialView

PALETTE = bytes(
    part for n in range(16) for part in ((0xAA * (n >> 2 & 1)), (0xAA * (n >> 1 & 1)), (0xAA * (n & 1)))
)  # fmt: skip
"""The eight dark colours twice: red is bit 2, green 1, blue 0."""
SEQUENCE = re.compile(r"\x1b\[[\d;]*m")


def seen(frame: Frame) -> pyte.Screen:
    """What a terminal shows of a frame."""
    screen = pyte.Screen(frame.width, len(frame.rows))
    stream = pyte.Stream(screen)
    for number, row in enumerate(frame.rows, 1):
        stream.feed(f"\x1b[{number};1H{row}\x1b[0m")
    return screen


def text(*lines: bytes, attributes: bytes = b"\x07", cursor: tuple[int, int] | None = None) -> TextPicture:
    cells = b"".join(bytes(part for n, char in enumerate(line) for part in (char, attributes[n % len(attributes)])) for line in lines)
    return TextPicture(len(lines[0]), len(lines), cells, cursor, PALETTE, blink=True)


def test_characters_and_colours() -> None:
    view = ScreenView(ColorDepth.DEPTH_24_BIT)
    frame = view.frame(text(b"ab\x03", b"\xdbx\0", attributes=b"\x1e\x04\x04"), 80, 25)
    screen = seen(frame)
    assert screen.display == ["ab♥", "█x "]
    cells = screen.buffer[0]
    assert (cells[0].fg, cells[0].bg) == ("aaaa00", "0000aa")
    assert (cells[1].fg, cells[1].bg) == (cells[2].fg, cells[2].bg) == ("aa0000", "000000")
    assert len(SEQUENCE.findall(frame.rows[0])) == 2, "a colour is told where it changes"
    assert view.frame(text(b"ab\x03", b"\xdbx\0", attributes=b"\x1e\x04\x04"), 80, 25) == frame


@pytest.mark.parametrize("depth", list(ColorDepth))
def test_the_cursor_is_a_cell_in_reverse_and_leaves_its_neighbours_alone(depth: ColorDepth) -> None:
    view = ScreenView(depth)
    plain, marked = (view.frame(text(b"abcd", b"efgh", cursor=at), 80, 25) for at in (None, (2, 1)))
    assert plain.rows[0] == marked.rows[0]
    before, after = seen(plain), seen(marked)
    assert before.display == after.display == ["abcd", "efgh"]
    differing = [x for x in range(4) if before.buffer[1][x] != after.buffer[1][x]]
    assert differing == [2]
    assert after.buffer[1][2].reverse != before.buffer[1][2].reverse


def test_a_small_place_shows_the_part_with_the_cursor() -> None:
    lines = [b"%02d-%s" % (n, bytes(range(0x41, 0x41 + 20))) for n in range(25)]
    frame = ScreenView(ColorDepth.DEPTH_8_BIT).frame(text(*lines, cursor=(20, 24)), 10, 4)
    shown = seen(frame)
    assert (frame.width, len(frame.rows)) == (10, 4)
    assert shown.display[-1] == lines[24].decode()[11:21]
    assert [x for x in range(10) if shown.buffer[3][x].reverse] == [9]


def picture(image: Image.Image) -> PixelPicture:
    return PixelPicture(*image.size, image.tobytes(), image.size)


@pytest.mark.parametrize(("depth", "upper", "lower"), [
    (ColorDepth.DEPTH_24_BIT, "ff0000", "0000ff"), (ColorDepth.DEPTH_8_BIT, "ff0000", "0000ff"),
    (ColorDepth.DEPTH_4_BIT, "brightred", "brightblue"),
])  # fmt: skip
def test_two_pixels_to_a_cell(depth: ColorDepth, upper: str, lower: str) -> None:
    image = Image.new("RGB", (8, 6), (255, 0, 0))
    for y in (1, 3, 5):
        image.paste((0, 0, 255), (0, y, 8, y + 1))
    frame = Frame(HalfBlocks(depth).rows(image), 8)
    assert len(frame.rows) == 3
    screen = seen(frame)
    for y in range(3):
        for x in range(8):
            cell = screen.buffer[y][x]
            assert (cell.data, cell.fg, cell.bg) == ("▀", upper, lower)
    assert len(SEQUENCE.findall(frame.rows[0])) == 2, "once for the row"


def test_colours_of_the_cube_are_exact_and_others_the_nearest() -> None:
    blocks = HalfBlocks(ColorDepth.DEPTH_8_BIT)
    for level in LEVELS:
        image = Image.new("RGB", (2, 2), (level, 0, 255 - level if level in (0, 255) else 95))
        image.paste((level + 3 if level < 255 else 252, 2, 1), (0, 1, 2, 2))
        cell = seen(Frame(blocks.rows(image), 2)).buffer[0][0]
        assert cell.fg == bytes(image.getpixel((0, 0))).hex()  # type: ignore[arg-type]
        assert cell.bg == f"{level:02x}0000"


def test_without_colours_light_dots_are_drawn() -> None:
    image = Image.new("RGB", (4, 2))
    for x, y in ((1, 1), (2, 0), (3, 0), (3, 1)):
        image.putpixel((x, y), (255, 255, 255))
    assert HalfBlocks(ColorDepth.DEPTH_1_BIT).rows(image) == [" ▄▀█"]


@pytest.mark.parametrize("depth", list(ColorDepth))
@pytest.mark.parametrize("place", [(1, 1), (7, 3), (80, 24), (300, 100)])
def test_a_picture_fits_its_place(depth: ColorDepth, place: tuple[int, int]) -> None:
    image = Image.effect_noise((320, 200), 80).convert("RGB")
    frame = ScreenView(depth).frame(picture(image), *place)
    columns, lines = fitted(*place)
    assert (frame.width, len(frame.rows)) == (columns, lines // 2)
    assert columns <= place[0]
    assert lines <= max(2, 2 * place[1])
    assert all(len(SEQUENCE.sub("", row)) == columns for row in frame.rows)


def test_a_serial_line_keeps_to_its_width_whatever_stands_at_its_edge() -> None:
    view = SerialView(ColorDepth.DEPTH_8_BIT)
    view.take("\x1b[31mabc漢字\x1b[0m d\r\n".encode())
    whole = view.frame(80, 25)
    assert SEQUENCE.sub("", whole.rows[0]).rstrip() == "abc漢字 d"
    cut = view.frame(4, 25)  # in the middle of the first wide character
    assert SEQUENCE.sub("", cut.rows[0]) == "abc "
    assert "\x1b[0;31m" in cut.rows[0]
