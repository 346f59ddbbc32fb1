import pytest

from avmm.devices.vga.font import CP437, font

CODES = range(256)


def glyph(code: int, height: int = 16) -> bytes:
    return font(height)[code * height : (code + 1) * height]


@pytest.mark.parametrize("height", [8, 14, 16])
def test_every_code_has_a_glyph(height: int) -> None:
    assert len(font(height)) == 256 * height
    blank = {code for code in CODES if not any(glyph(code, height))}
    assert blank == {0x00, 0x20, 0xFF}


@pytest.mark.parametrize(("height", "alike"), [(16, 0), (14, 0), (8, 14)])
def test_glyphs_differ(height: int, alike: int) -> None:
    """All of them at full size; the small font may not tell some accents apart, but always ASCII."""
    shapes = {glyph(code, height) for code in CODES}
    assert 256 - 2 - len(shapes) <= alike
    assert len({glyph(code, height) for code in range(0x20, 0x7F)}) == 0x5F


def test_cp437_names_every_code_once() -> None:
    assert len(CP437) == 256
    assert CP437[0x41] == "A"
    assert CP437[0xDB] == "█"
    assert CP437[0x01] == "☺"
    assert CP437[0xE1] == "ß"
    assert len(set(CP437)) == 255  # NUL and space look alike


@pytest.mark.parametrize("height", [8, 14, 16])
def test_boxes_meet_at_the_edges(height: int) -> None:
    """A line that leaves a cell enters its neighbour at the same place."""
    vertical, horizontal, double_v, double_h = (glyph(code, height) for code in (0xB3, 0xC4, 0xBA, 0xCD))
    assert len(set(vertical)) == len(set(double_v)) == 1
    assert sorted(set(horizontal)) == [0, 0xFF]
    assert double_h.count(0xFF) == 2
    for code, up, down, left, right in (
        (0xDA, 0, 1, 0, 1), (0xBF, 0, 1, 1, 0), (0xC0, 1, 0, 0, 1), (0xD9, 1, 0, 1, 0), (0xC5, 1, 1, 1, 1),
        (0xC9, 0, 2, 0, 2), (0xBB, 0, 2, 2, 0), (0xC8, 2, 0, 0, 2), (0xBC, 2, 0, 2, 0), (0xCE, 2, 2, 2, 2),
        (0xD5, 0, 1, 0, 2), (0xB7, 0, 2, 1, 0), (0xD4, 1, 0, 0, 2), (0xD8, 1, 1, 2, 2), (0xD7, 2, 2, 1, 1),
    ):  # fmt: skip
        rows = glyph(code, height)
        assert rows[0] == (0, vertical[0], double_v[0])[up], hex(code)
        assert rows[-1] == (0, vertical[0], double_v[0])[down], hex(code)
        for bit, weight in ((0x80, left), (0x01, right)):
            edge = [bool(row & bit) for row in rows]
            assert edge == [bool(row) for row in (bytes(height), horizontal, double_h)[weight]], hex(code)


def test_blocks_and_shades() -> None:
    assert glyph(0xDB) == b"\xff" * 16
    assert bytes(a ^ b for a, b in zip(glyph(0xDC), glyph(0xDF), strict=True)) == b"\xff" * 16
    assert bytes(a | b for a, b in zip(glyph(0xDD), glyph(0xDE), strict=True)) == b"\xff" * 16
    ink = [sum(row.bit_count() for row in glyph(code)) for code in (0xB0, 0xB1, 0xB2)]
    assert ink == [32, 64, 96]


def test_accented_letters_keep_their_letter() -> None:
    assert glyph(0x81)[5:12] == glyph(ord("u"))[5:12]  # ü
    assert any(glyph(0x81)[2:4])
    assert glyph(0x81)[4] == 0
    assert glyph(0x80)[:12] == glyph(ord("C"))[:12]  # Ç
    assert any(glyph(0x80)[12:])
    assert glyph(0x8E)[3:12] == glyph(ord("A"))[2:4] + glyph(ord("A"))[5:12]
