"""What the screen shows: characters and pixels from the registers and the memory, computed when someone looks.

Characters are eight pixels wide (the ninth column of the VGA's text modes is left out) and blinking ones are shown steadily.
"""

from __future__ import annotations

import codecs
from functools import lru_cache
from pathlib import Path

from avmm.devices.vga.font import CP437, font
from avmm.devices.vga.registers import Registers

TEXT_SIZE = 0x8000

_DOTS = [bytes(bits >> 7 - x & 1 for x in range(8)) for bits in range(256)]
"""The eight pixels of a byte, left first."""
_SPREAD = [int.from_bytes(dots, "big") for dots in _DOTS]


def decode(characters: bytes) -> str:
    """Return what code page 437 characters look like; NUL and FFh are spaces."""
    return codecs.charmap_decode(characters, "strict", CP437)[0].replace("\u00a0", " ")


def text_lines(registers: Registers, text: memoryview) -> list[bytes]:
    """Return the visible rows of a text mode, each as character and attribute bytes in turn."""
    columns, rows = registers.text_size
    pitch = registers.crtc[0x13] * (4 if registers.word_mode else 2)
    start = registers.start * 2
    return [_wrapped(text, start + row * pitch, 2 * columns) for row in range(rows)]


def cursor(registers: Registers) -> tuple[int, int, bool, int, int]:
    """Return row, column, whether it can be seen, and its first and last scan line."""
    columns, rows = registers.text_size
    pitch = registers.crtc[0x13] * 2 or columns
    row, column = divmod((registers.cursor_location - registers.start) & 0x3FFF, pitch)
    first, last = registers.crtc[0x0A] & 0x1F, registers.crtc[0x0B] & 0x1F
    visible = not registers.crtc[0x0A] & 0x20 and first <= last and first < registers.character_height and row < rows and column < columns
    return row, column, visible, first, last


def pixels(registers: Registers, ram: memoryview, text: memoryview) -> tuple[int, int, bytes]:
    """Return width, height and the picture, three bytes (red, green, blue) a pixel."""
    if registers.graphics:
        width, height = registers.pixel_size
    else:
        columns, rows = registers.text_size
        width, height = columns * 8, rows * registers.character_height
    if registers.blank:
        return width, height, bytes(3 * width * height)
    if not registers.graphics:
        values = _characters(registers, ram, text)
    elif registers.window >= 2:
        values = _cga(registers, text, width, height)
    elif registers.colour256:
        values = b"".join(_wrapped(ram, 4 * at, width) for at in _line_addresses(registers, height))
    else:
        values = _planar(registers, ram, width, height)
    rgb = bytearray(3 * len(values))
    table = registers.colour_table()
    for part in range(3):
        rgb[part::3] = values.translate(bytes(colour[part] for colour in table))
    return width, height, bytes(rgb)


def save_png(path: str | Path, picture: tuple[int, int, bytes]) -> None:
    """Write what :func:`pixels` returned as a PNG file."""
    from PIL import Image

    width, height, rgb = picture
    Image.frombytes("RGB", (width, height), rgb).save(path, "PNG")


def glyphs(registers: Registers, ram: memoryview, second: bool) -> bytes:
    """Return the font in use, 32 bytes a glyph, for attribute bit 3 clear or set: plane 2's, or ours if none is loaded."""
    select = registers.sequencer[3]
    block = (select >> 2 & 3 | select >> 3 & 4) if second else (select & 3 | select >> 2 & 4)
    at = 0x4000 * (block & 3) + 0x2000 * (block >> 2)
    loaded = bytes(ram[4 * at + 2 : 4 * (at + 0x2000) : 4])
    return loaded if any(loaded) else _rom_glyphs(registers.character_height)


@lru_cache(None)
def _rom_glyphs(height: int) -> bytes:
    stored = 8 if height <= 8 else 14 if height <= 14 else 16
    data = font(stored)
    return b"".join(data[code * stored : (code + 1) * stored].ljust(32, b"\0") for code in range(256))


@lru_cache(256)
def _coloured(foreground: int, background: int) -> list[bytes]:
    """The eight pixels of every byte in two colours."""
    table = bytes((background, foreground)).ljust(256, b"\0")
    return [dots.translate(table) for dots in _DOTS]


def _characters(registers: Registers, ram: memoryview, text: memoryview) -> bytes:
    height = registers.character_height
    fonts = (glyphs(registers, ram, False), glyphs(registers, ram, True))
    backgrounds = 7 if registers.attribute[0x10] & 8 else 15
    looks = [(_coloured(a & 15, a >> 4 & backgrounds), fonts[a >> 3 & 1]) for a in range(256)]
    at_row, at_column, visible, first, last = cursor(registers)
    lines: list[bytes] = []
    for number, row in enumerate(text_lines(registers, text)):
        cells = [(*looks[attribute], 32 * code) for code, attribute in zip(row[::2], row[1::2], strict=True)]
        for y in range(height):
            parts = [dots[glyph[at + y]] for dots, glyph, at in cells]
            if visible and number == at_row and first <= y <= last:
                parts[at_column] = cells[at_column][0][0xFF]
            lines += parts
    return b"".join(lines)


def _line_addresses(registers: Registers, height: int) -> list[int]:
    """The address (an offset into the planes) each line starts at; line compare splits the screen."""
    pitch = registers.crtc[0x13] * 2
    repeat = registers.doubled * registers.line_repeat
    split = registers.line_compare // repeat + 1
    return [registers.start + y * pitch if y < split else (y - split) * pitch for y in range(height)]


def _planar(registers: Registers, ram: memoryview, width: int, height: int) -> bytes:
    parts: list[bytes] = []
    for at in _line_addresses(registers, height):
        words = _wrapped(ram, 4 * at, width // 2)
        for a, b, c, d in zip(words[0::4], words[1::4], words[2::4], words[3::4], strict=True):
            parts.append((_SPREAD[a] | _SPREAD[b] << 1 | _SPREAD[c] << 2 | _SPREAD[d] << 3).to_bytes(8, "big"))
    return b"".join(parts)


def _cga(registers: Registers, text: memoryview, width: int, height: int) -> bytes:
    unit = 2 if registers.word_mode else 1
    pitch = registers.crtc[0x13] * 2 * unit
    start = registers.start * unit
    two_bits = bool(registers.gc[5] & 0x20)
    dots = _CGA4 if two_bits else _DOTS
    parts: list[bytes] = []
    for y in range(height):
        at = start + (y >> 1) * pitch + (y & 1) * 0x2000 if registers.banked else start + y * pitch
        parts += [dots[byte] for byte in _wrapped(text, at, width // (4 if two_bits else 8))]
    return b"".join(parts)


_CGA4 = [bytes(bits >> shift & 3 for shift in (6, 4, 2, 0)) for bits in range(256)]


def _wrapped(memory: memoryview, at: int, count: int) -> bytes:
    """``count`` bytes from ``at``, going round at the end of the memory."""
    at %= len(memory)
    data = bytes(memory[at : at + count])
    while len(data) < count:
        data += bytes(memory[: count - len(data)])
    return data
