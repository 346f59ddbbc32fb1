"""The video BIOS image for C0000h: an option ROM header and the tables that int 10h hands out pointers to.

The services themselves are the VMM's (:mod:`avmm.boot.bios.video`); the image only has data, so int 10h must point to the
system ROM's stub. Functionality table: IBM PS/2 BIOS Interface Technical Reference, int 10h AH=1Bh.
"""

from __future__ import annotations

from avmm.devices.vga.font import font

VIDEO_ROM_SEGMENT = 0xC000
_SIZE = 0x4000
_FUNCTIONALITY = 0x80
_FONTS = {16: 0x100, 14: 0x1100, 8: 0x1F00}

FONT_POINTERS = {height: (VIDEO_ROM_SEGMENT, offset) for height, offset in _FONTS.items()}
"""Where :func:`video_rom` has the fonts of 16, 14 and 8 lines, as segment and offset."""
FUNCTIONALITY_POINTER = (VIDEO_ROM_SEGMENT, _FUNCTIONALITY)

# Modes 0-7, 0Dh-13h but not 0Fh; 200, 350, 400 lines; 8 font blocks, 2 at once; DAC, palette, fonts loadable ...
_FUNCTIONALITY_TABLE = bytes((0xFF, 0x60, 0x0F, 0, 0, 0, 0, 0x07, 2, 8, 0xE7, 0x0C, 0, 0, 0, 0))


def video_rom() -> bytes:
    """Return the 16 KiB image; its entry point does nothing but return."""
    image = bytearray(_SIZE)
    image[0:6] = bytes((0x55, 0xAA, _SIZE // 512, 0xCB, 0, 0))  # the init entry is a RETF
    image[0x1E:0x2E] = b"AVMM video BIOS\0"
    image[_FUNCTIONALITY : _FUNCTIONALITY + 16] = _FUNCTIONALITY_TABLE
    for height, offset in _FONTS.items():
        image[offset : offset + 256 * height] = font(height)
    image[-1] = -sum(image) & 0xFF
    return bytes(image)
