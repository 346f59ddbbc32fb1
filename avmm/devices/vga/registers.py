"""The VGA's register files, its DAC, and what they say about the picture.

IBM VGA technical reference: general, sequencer, CRT controller, graphics controller, attribute controller and DAC registers.

The invariant: every register holds only bits that exist, so whoever reads a file need not mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from avmm.devices.vga.modes import MODES, dac_palette

_SEQUENCER_BITS = bytes((0x03, 0x3D, 0x0F, 0x3F, 0x0E, 0, 0, 0))
_GRAPHICS_BITS = bytes((0x0F, 0x0F, 0x0F, 0x1F, 0x03, 0x7B, 0x0F, 0x0F, 0xFF)) + bytes(7)
_ATTRIBUTE_BITS = bytes((0x3F,) * 16 + (0xEF, 0xFF, 0x3F, 0x0F, 0x0F)) + bytes(11)
_CRTC_COUNT = 0x19
_PROTECT = 0x80  # in CRTC register 11h: registers 0-7 cannot be written, except line compare bit 8 in register 7


class Dac:
    """256 colours of three six-bit parts, read and written one part at a time through 3C9h."""

    __slots__ = ("colours", "latch", "mask", "part", "read_index", "reading", "write_index")

    def __init__(self) -> None:
        self.colours = bytearray(768)
        self.latch = bytearray(3)
        self.power_on("ega")

    def power_on(self, palette: str) -> None:
        """Start over with one of the standard palettes."""
        self.colours[:] = dac_palette(palette)
        self.latch[:] = bytes(3)
        self.mask = 0xFF
        self.read_index = self.write_index = self.part = 0
        self.reading = False

    def set_read_index(self, value: int) -> None:
        """3C7h written: the next three reads give colour ``value``."""
        self.read_index, self.part, self.reading = value, 0, True
        self.write_index = value + 1 & 0xFF

    def set_write_index(self, value: int) -> None:
        """3C8h written: the next three writes set colour ``value``."""
        self.write_index, self.part, self.reading = value, 0, False

    def read(self) -> int:
        """3C9h read: red, green, blue, then on to the next colour."""
        value = self.colours[3 * self.read_index + self.part]
        self.part += 1
        if self.part == 3:
            self.part = 0
            self.read_index = self.read_index + 1 & 0xFF
            self.write_index = self.read_index + 1 & 0xFF
        return value

    def write(self, value: int) -> None:
        """3C9h written; a colour changes when its third part has come."""
        self.latch[self.part] = value & 0x3F
        self.part += 1
        if self.part == 3:
            self.part = 0
            self.colours[3 * self.write_index : 3 * self.write_index + 3] = self.latch
            self.write_index = self.write_index + 1 & 0xFF


@dataclass(frozen=True, slots=True)
class RegisterState:
    """Everything :class:`Registers` holds."""

    general: tuple[int, int]
    indexes: tuple[int, int, int, int]
    flip_flop: bool
    sequencer: bytes
    crtc: bytes
    gc: bytes
    attribute: bytes
    dac: tuple[int, int, int, int, bool]
    dac_latch: bytes
    colours: bytes


class Registers:
    """All register files. The bytearrays are updated in place, never replaced: the memory path shares two of them."""

    def __init__(self) -> None:
        self.misc = self.feature = 0
        self.sequencer_index = self.crtc_index = self.gc_index = self.attribute_index = 0
        self.flip_flop = False
        """Whether the next write to 3C0h is data."""
        self.sequencer = bytearray(8)
        self.crtc = bytearray(_CRTC_COUNT)
        self.gc = bytearray(16)
        self.attribute = bytearray(32)
        self.dac = Dac()

    def power_on(self) -> None:
        """Mode 3, 80x25 text, as if an option ROM had run already: a kernel started without firmware has a screen."""
        mode = MODES[3]
        self.misc, self.feature, self.flip_flop = mode.misc, 0, False
        self.sequencer_index = self.crtc_index = self.gc_index = 0
        self.attribute_index = 0x20
        for file, values in (
            (self.sequencer, mode.sequencer), (self.crtc, mode.crtc), (self.gc, mode.graphics), (self.attribute, mode.attribute),
        ):  # fmt: skip
            file[:] = values.ljust(len(file), b"\0")
        self.dac.power_on(mode.palette)

    def save(self) -> RegisterState:
        """Return a copy of everything."""
        dac = self.dac
        return RegisterState(
            (self.misc, self.feature),
            (self.sequencer_index, self.crtc_index, self.gc_index, self.attribute_index),
            self.flip_flop,
            bytes(self.sequencer),
            bytes(self.crtc),
            bytes(self.gc),
            bytes(self.attribute),
            (dac.mask, dac.read_index, dac.write_index, dac.part, dac.reading),
            bytes(dac.latch),
            bytes(dac.colours),
        )

    def restore(self, state: RegisterState) -> None:
        """Take everything from ``state``; ValueError if a file has another length."""
        dac = self.dac
        files = (
            (self.sequencer, state.sequencer), (self.crtc, state.crtc), (self.gc, state.gc), (self.attribute, state.attribute),
            (dac.latch, state.dac_latch), (dac.colours, state.colours),
        )  # fmt: skip
        if any(len(file) != len(saved) for file, saved in files):
            raise ValueError("saved VGA registers have another layout")
        for file, saved in files:
            file[:] = saved
        self.misc, self.feature = state.general
        self.sequencer_index, self.crtc_index, self.gc_index, self.attribute_index = state.indexes
        self.flip_flop = state.flip_flop
        dac.mask, dac.read_index, dac.write_index, dac.part, dac.reading = state.dac

    # -- writes that need more than storing

    def write_sequencer(self, value: int) -> None:
        self.sequencer[self.sequencer_index] = value & _SEQUENCER_BITS[self.sequencer_index]

    def write_gc(self, value: int) -> None:
        self.gc[self.gc_index] = value & _GRAPHICS_BITS[self.gc_index]

    def write_crtc(self, value: int) -> None:
        index = self.crtc_index
        if index >= _CRTC_COUNT:
            return
        if index < 8 and self.crtc[0x11] & _PROTECT:
            if index != 7:
                return
            value = (self.crtc[7] & ~0x10) | (value & 0x10)
        self.crtc[index] = value

    def read_crtc(self) -> int:
        return self.crtc[self.crtc_index] if self.crtc_index < _CRTC_COUNT else 0

    def write_attribute(self, value: int) -> None:
        """A write to 3C0h: index and data in turn."""
        if self.flip_flop:
            index = self.attribute_index & 0x1F
            self.attribute[index] = value & _ATTRIBUTE_BITS[index]
        else:
            self.attribute_index = value & 0x3F
        self.flip_flop = not self.flip_flop

    # -- what they mean

    @property
    def graphics(self) -> bool:
        """Whether the picture is made of pixels rather than characters."""
        return bool(self.gc[6] & 1)

    @property
    def window(self) -> int:
        """The memory map select: 0 A0000 128 KB, 1 A0000 64 KB, 2 B0000 32 KB, 3 B8000 32 KB; -1 with memory disabled."""
        return self.gc[6] >> 2 & 3 if self.misc & 2 else -1

    @property
    def chain4(self) -> bool:
        """Whether the low address bits select the plane (mode 13h)."""
        return bool(self.sequencer[4] & 8)

    @property
    def colour256(self) -> bool:
        """Whether a pixel is a byte."""
        return bool(self.gc[5] & 0x40)

    @property
    def blank(self) -> bool:
        """Whether the screen is switched off."""
        return bool(self.sequencer[1] & 0x20) or not self.attribute_index & 0x20

    @property
    def start(self) -> int:
        """The start address, in the CRTC's own units."""
        return self.crtc[0x0C] << 8 | self.crtc[0x0D]

    @property
    def cursor_location(self) -> int:
        """The cursor's address, in characters."""
        return self.crtc[0x0E] << 8 | self.crtc[0x0F]

    @property
    def word_mode(self) -> bool:
        """Whether an address counts words (text, CGA), not bytes."""
        return not self.crtc[0x17] & 0x40

    @property
    def character_height(self) -> int:
        """Scan lines of a character row."""
        return (self.crtc[9] & 0x1F) + 1

    @property
    def scan_lines(self) -> int:
        """Visible scan lines."""
        overflow = self.crtc[7]
        return (self.crtc[0x12] | overflow << 7 & 0x100 | overflow << 3 & 0x200) + 1

    @property
    def columns(self) -> int:
        """Visible characters in a row."""
        return self.crtc[1] + 1

    @property
    def doubled(self) -> int:
        """How often the CRTC repeats every line: 2 in modes with 200 lines."""
        return 2 if self.crtc[9] & 0x80 else 1

    @property
    def text_size(self) -> tuple[int, int]:
        """Columns and rows in text modes."""
        return self.columns, max(1, self.scan_lines // (self.doubled * self.character_height))

    @property
    def banked(self) -> bool:
        """Whether odd lines lie 8 KB further (CGA)."""
        return not self.crtc[0x17] & 1

    @property
    def pixel_size(self) -> tuple[int, int]:
        """Width and height in graphics modes, each different line once."""
        width = 8 * self.columns // (2 if self.colour256 else 1)
        return width, max(1, self.scan_lines // (self.doubled * self.line_repeat))

    @property
    def line_repeat(self) -> int:
        """How often a line of memory is shown, besides :attr:`doubled`."""
        return 1 if self.banked else self.character_height

    @property
    def line_compare(self) -> int:
        """The scan line after which display goes on from address 0."""
        return self.crtc[0x18] | self.crtc[7] << 4 & 0x100 | self.crtc[9] << 3 & 0x200

    @property
    def vertical_total(self) -> int:
        """Scan lines of a whole frame."""
        overflow = self.crtc[7]
        return (self.crtc[6] | overflow << 8 & 0x100 | overflow << 4 & 0x200) + 2

    @property
    def retrace(self) -> tuple[int, int]:
        """First scan line of vertical retrace, and how many it lasts."""
        overflow = self.crtc[7]
        first = self.crtc[0x10] | overflow << 6 & 0x100 | overflow << 2 & 0x200
        return first, ((self.crtc[0x11] - first) & 15) or 16

    def colour_table(self) -> list[tuple[int, int, int]]:
        """The colours (0-255 red, green, blue) of the 256 (or 16) pixel values, through attribute palette, mask and DAC."""
        attribute, mask, colours = self.attribute, self.dac.mask, self.dac.colours
        table = []
        for value in range(256):
            index = value
            if not self.colour256:
                index = attribute[value & attribute[0x12] & 15]
                if attribute[0x10] & 0x80:
                    index = (index & 0x0F) | (attribute[0x14] & 3) << 4
                index |= (attribute[0x14] & 0x0C) << 4
            at = 3 * (index & mask)
            red, green, blue = (part << 2 | part >> 4 for part in colours[at : at + 3])
            table.append((red, green, blue))
        return table
