"""The BIOS video modes: what INT 10h AH=00h puts into the registers, as in IBM's VGA technical reference (default values table).

Shared by the device (which powers on in mode 3, as if its option ROM had run) and by the BIOS services.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Layout(Enum):
    """How a mode keeps its pixels."""

    TEXT = "text"
    CGA4 = "two bits a pixel at B8000, odd lines 8 KB further"
    CGA2 = "one bit a pixel at B8000, odd lines 8 KB further"
    PLANAR = "one bit a pixel in each of four planes"
    LINEAR = "one byte a pixel at A0000"


@dataclass(frozen=True, slots=True)
class Mode:
    """One BIOS mode. ``palette`` names the DAC contents; ``page`` is the size of one page as the BIOS data area has it."""

    number: int
    layout: Layout
    columns: int
    rows: int
    height: int
    """Scan lines of a character."""
    page: int
    misc: int
    sequencer: bytes
    crtc: bytes
    graphics: bytes
    attribute: bytes
    palette: str
    pages: int = 1

    @property
    def width(self) -> int:
        """Width in pixels."""
        return 8 * self.columns


_EGA = "00 01 02 03 04 05 14 07 38 39 3A 3B 3C 3D 3E 3F"
_LOW = "00 01 02 03 04 05 06 07 10 11 12 13 14 15 16 17"
_C40 = "2D 27 28 90 2B"
_C80 = "5F 4F 50 82 55"
_G80 = "5F 4F 50 82 54"
_V400 = "9C 8E 8F"
_V200 = f"BF 1F 00 {{}} 00 00 00 00 00 00 {_V400}"
_V350 = "BF 1F 00 40 00 00 00 00 00 00 83 85 5D 28 0F 63 BA E3 FF"
_V480 = "0B 3E 00 40 00 00 00 00 00 00 EA 8C DF 28 00 E7 04 E3 FF"


def _mode(number: int, layout: Layout, shape: tuple[int, int, int], tables: tuple[int, str, str, str, str], palette: str, *,
          page: int, pages: int = 1) -> Mode:  # fmt: skip
    """``shape`` is columns, rows, character height; ``tables`` misc and the four register files."""
    misc = tables[0]
    sequencer, crtc, graphics, attribute = map(bytes.fromhex, tables[1:])
    assert (len(sequencer), len(crtc), len(graphics), len(attribute)) == (5, 25, 9, 21)
    return Mode(number, layout, *shape, page, misc, sequencer, crtc, graphics, attribute, palette, pages)


def _text(number: int, columns: int) -> Mode:
    mono = number == 7
    horizontal, clock, offset = (f"{_C40} A0", "08", "14") if columns == 40 else (f"{_C80} 81", "00", "28")
    crtc = f"{horizontal} BF 1F 00 4F 0D 0E 00 00 00 00 {_V400} {offset} {'0F' if mono else '1F'} 96 B9 A3 FF"
    palette = "00 08 08 08 08 08 08 08 10 18 18 18 18 18 18 18 0E" if mono else f"{_EGA} 0C"
    tables = (
        0x66 if mono else 0x67, f"03 {clock} 03 00 02", crtc, f"00 00 00 00 00 10 {'0A' if mono else '0E'} 00 FF", f"{palette} 00 0F 08 00",
    )  # fmt: skip
    return _mode(number, Layout.TEXT, (columns, 25, 16), tables, "mono" if mono else "ega", page=0x800 * columns // 40, pages=8)


def _cga(number: int) -> Mode:
    attribute = "00 13 15 17 02 04 06 07 10 11 12 13 14 15 16 17 01 00 03 00 00"
    crtc = f"{_C40} 80 {_V200.format('C1')} 14 00 96 B9 A2 FF"
    tables = (0x63, "03 09 03 00 02", crtc, "00 00 00 00 00 30 0F 0F FF", attribute)
    return _mode(number, Layout.CGA4, (40, 25, 8), tables, "cga", page=0x4000)


def _planar(number: int, shape: tuple[int, int, int], vertical: str, palette: str, *, page: int, pages: int) -> Mode:
    """``vertical`` is the CRTC table from the vertical total on."""
    narrow, low = shape[0] == 40, shape[2] == 8
    misc = 0x63 if low else 0xA3 if shape[2] == 14 else 0xE3
    crtc = f"{_C40 if narrow else _G80} 80 {vertical}"
    tables = (misc, f"03 {'09' if narrow else '01'} 0F 00 06", crtc, "00 00 00 00 00 00 05 0F FF", f"{palette} 01 00 0F 00 00")
    return _mode(number, Layout.PLANAR, shape, tables, "cga" if low else "ega", page=page, pages=pages)


MODES: dict[int, Mode] = {
    mode.number: mode
    for mode in (
        _text(0, 40),
        _text(1, 40),
        _text(2, 80),
        _text(3, 80),
        _cga(4),
        _cga(5),
        _mode(
            6, Layout.CGA2, (80, 25, 8),
            (0x63, "03 01 01 00 06", f"{_G80} 80 {_V200.format('C1')} 28 00 96 B9 C2 FF", "00 00 00 00 00 00 0D 0F FF",
             f"00{' 17' * 15} 01 00 01 00 00"),
            "cga", page=0x4000,
        ),
        _text(7, 80),
        _planar(0x0D, (40, 25, 8), f"{_V200.format('C0')} 14 00 96 B9 E3 FF", _LOW, page=0x2000, pages=8),
        _planar(0x0E, (80, 25, 8), f"{_V200.format('C0')} 28 00 96 B9 E3 FF", _LOW, page=0x4000, pages=4),
        _planar(0x10, (80, 25, 14), _V350, _EGA, page=0x8000, pages=2),
        _planar(0x11, (80, 30, 16), _V480, f"00{' 3F' * 15}", page=0xA000, pages=1),
        _planar(0x12, (80, 30, 16), _V480, _EGA, page=0xA000, pages=1),
        _mode(
            0x13, Layout.LINEAR, (40, 25, 8),
            (0x63, "03 01 0F 00 0E", f"{_G80} 80 {_V200.format('41')} 28 40 96 B9 A3 FF", "00 00 00 00 00 40 05 0F FF",
             "00 01 02 03 04 05 06 07 08 09 0A 0B 0C 0D 0E 0F 41 00 0F 00 00"),
            "vga", page=0x10000,
        ),
    )
}  # fmt: skip
"""The modes by number. Mode 11h is mode 12h with a palette of two colours."""


def dac_palette(name: str) -> bytes:
    """Return the 768 six-bit DAC values a mode set loads: "ega" (64 colours rgbRGB), "cga" (16), "mono" or "vga" (256)."""
    if name == "ega":
        colours = [tuple(42 * (n >> bit & 1) + 21 * (n >> bit + 3 & 1) for bit in (2, 1, 0)) for n in range(64)]
    elif name == "cga":
        colours = [_cga_colour((n & 7) | (n >> 1 & 8)) for n in range(64)]
    elif name == "mono":
        colours = [((0, 42, 0, 63)[n >> 3 & 3],) * 3 for n in range(64)]
    else:
        colours = _vga_colours()
    return bytes(part for colour in colours for part in colour).ljust(768, b"\0")


def _cga_colour(n: int) -> tuple[int, ...]:
    if n == 6:
        return (42, 21, 0)  # brown, not dark yellow
    return tuple(42 * (n >> bit & 1) + 21 * (n >> 3) for bit in (2, 1, 0))


def _vga_colours() -> list[tuple[int, ...]]:
    """16 CGA colours, 16 greys, then 24 hues for each of three intensities and three saturations."""
    colours = [_cga_colour(n) for n in range(16)]
    colours += [(grey,) * 3 for grey in (0, 5, 8, 11, 14, 17, 20, 24, 28, 32, 36, 40, 45, 50, 56, 63)]
    ramps = (
        ((0, 16, 31, 47, 63), (31, 39, 47, 55, 63), (45, 49, 54, 58, 63)),
        ((0, 7, 14, 21, 28), (14, 17, 21, 24, 28), (20, 22, 24, 26, 28)),
        ((0, 4, 8, 12, 16), (8, 10, 12, 14, 16), (11, 12, 13, 15, 16)),
    )
    # Round the colour circle from blue: one component moves from end to end while the two others stand still.
    legs = ((None, 0, 1), (1, 0, None), (1, None, 0), (None, 1, 0), (0, 1, None), (0, None, 1))
    rising = (True, False, True, False, True, False)
    for intensity in ramps:
        for ramp in intensity:
            for leg, up in zip(legs, rising, strict=True):
                for step in range(4):
                    moving = ramp[step if up else 4 - step]
                    colours.append(tuple(moving if part is None else ramp[4 * part] for part in leg))
    return colours
