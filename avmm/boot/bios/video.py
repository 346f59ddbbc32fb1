"""Int 10h: the video services, done by the VMM on the machine's VGA.

IBM PS/2 BIOS Interface Technical Reference, "Interrupt 10h - video"; functions of the VGA, no VESA extensions (AH=4Fh answers
"not supported"). Registers are set through the device's ports, as a BIOS would; characters go straight to its memory.

The invariant: mode, pages and cursors live in the BIOS data area only, and the CRTC's cursor follows that of the active page.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from avmm.boot.bios.caller import Caller
from avmm.boot.bios.video_area import VideoArea
from avmm.boot.bios.video_canvas import Canvas
from avmm.boot.bios.video_fonts import FontServices
from avmm.boot.bios.video_palette import PaletteServices
from avmm.boot.bios.video_rom import FONT_POINTERS, FUNCTIONALITY_POINTER
from avmm.cpu.engine import Processor
from avmm.devices.vga.font import font
from avmm.devices.vga.modes import MODES, Layout, Mode, dac_palette
from avmm.devices.vga.vga import Vga
from avmm.memory import GuestMemory

_BELL, _BACKSPACE, _LINE_FEED, _RETURN = 7, 8, 10, 13


class VideoServices:
    """Int 10h of one machine. ``font_pointers`` says where in ROM the fonts are, by height; see ``video_rom``."""

    def __init__(
        self,
        cpu: Processor,
        memory: GuestMemory,
        vga: Vga,
        font_pointers: Mapping[int, tuple[int, int]] = FONT_POINTERS,
        on_bell: Callable[[], None] | None = None,
    ) -> None:
        self.cpu = cpu
        self.memory = memory
        self.vga = vga
        self.on_bell = on_bell
        self.area = VideoArea(memory)
        self.caller = Caller(cpu, memory)
        self.palette = PaletteServices(self.caller, vga)
        self.fonts = FontServices(self.caller, vga, self.area, font_pointers)
        self._functions: dict[int, Callable[[], None]] = {
            0x00: self._set_mode,
            0x01: self._set_cursor_shape,
            0x02: self._set_cursor,
            0x03: self._get_cursor,
            0x05: lambda: self.select_page(self.caller["al"]),
            0x06: lambda: self._scroll(1),
            0x07: lambda: self._scroll(-1),
            0x08: self._read_character,
            0x09: lambda: self._write_characters(True),
            0x0A: lambda: self._write_characters(False),
            0x0B: self._set_cga_colours,
            0x0C: self._write_pixel,
            0x0D: self._read_pixel,
            0x0E: lambda: self.teletype(self.caller["al"], self.caller["bl"]),
            0x0F: self._get_mode,
            0x10: self.palette.call,
            0x11: self.fonts.call,
            0x12: self._alternate_select,
            0x13: self._write_string,
            0x1A: self._display_combination,
            0x1B: self._functionality,
            0x4F: self._no_vesa,
        }

    def use(self, vga: Vga) -> None:
        """Work with this adapter from now on, which has taken the place of the other."""
        self.vga = self.palette.vga = self.fonts.vga = vga

    def call(self) -> None:
        """Serve one int 10h; unknown functions change nothing."""
        function = self._functions.get(self.cpu.register("ah"))
        if function is not None:
            function()

    # -- modes and pages

    @property
    def mode(self) -> Mode:
        """The mode the data area names, mode 3 if that is nonsense."""
        return MODES.get(self.area.mode & 0x7F, MODES[3])

    def set_mode(self, number: int, *, clear: bool = True) -> None:
        """Set one of the BIOS modes (AH=00h); a number that is none changes nothing."""
        mode = MODES.get(number)
        if mode is None:
            return
        self._program(mode)
        if clear:
            self._clear(mode)
        area = self.area
        area.mode = number
        area.columns = mode.columns
        area.page_size = mode.page
        area.page_start = area.page = 0
        self.memory.write(0x450, bytes(16))
        area.cursor_shape = 0x0607 if mode.layout is Layout.TEXT else 0
        area.crtc_port = self._crtc_port
        area.mode_control = (0x2C, 0x28, 0x2D, 0x29, 0x2A, 0x2E, 0x1E, 0x29)[number] if number < 8 else 0
        area.cga_palette = 0x3F if number == 6 else 0x30
        area.last_row = mode.rows - 1
        area.height = mode.height
        area.control = 0x60 if clear else 0xE0
        area.switches = 0xF9
        area.options = area.options & 0x0E | 0x11
        area.combination = 7 if number == 7 else 8
        self.fonts.point_to(mode.height)
        self.fonts.point_upper()

    def _set_mode(self) -> None:
        al = self.caller["al"]
        number = al & 0x7F
        self.set_mode(number, clear=not al & 0x80)
        self.caller["al"] = 0x20 if number > 7 else 0x3F if number == 6 else 0x30

    def _program(self, mode: Mode) -> None:
        write = self.vga.write
        write(0x3C2, 1, mode.misc)
        crtc = self._crtc_port
        self._crtc(0x11, mode.crtc[0x11] & 0x7F)  # unlock registers 0-7
        for port, values in ((0x3C4, mode.sequencer), (crtc, mode.crtc), (0x3CE, mode.graphics)):
            for index, value in enumerate(values):
                write(port, 1, index)
                write(port + 1, 1, value)
        self.vga.read(crtc + 6, 1)
        for index, value in enumerate(mode.attribute):
            write(0x3C0, 1, index)
            write(0x3C0, 1, value)
        write(0x3C0, 1, 0x20)
        if not self.area.options & 0x08:
            write(0x3C6, 1, 0xFF)
            self.palette.set_colours(0, dac_palette(mode.palette))
            if self.area.options & 0x02:
                self.palette.sum_to_grey(0, 256)

    def _clear(self, mode: Mode) -> None:
        vga = self.vga
        if mode.layout in (Layout.PLANAR, Layout.LINEAR):
            vga.ram[:] = bytes(len(vga.ram))
            return
        vga.text_memory[:] = (b" \x07" if mode.layout is Layout.TEXT else b"\0\0") * (len(vga.text_memory) // 2)
        if mode.layout is Layout.TEXT:
            vga.load_glyphs(font(mode.height), mode.height)

    def _get_mode(self) -> None:
        area, caller = self.area, self.caller
        caller["al"] = area.mode & 0x7F | area.control & 0x80
        caller["ah"] = area.columns & 0xFF
        caller["bh"] = area.page

    def select_page(self, page: int) -> None:
        """Show another page (AH=05h); one that does not exist changes nothing."""
        area, mode = self.area, self.mode
        if page >= mode.pages:
            return
        start = page * area.page_size
        area.page = page
        area.page_start = start
        shown = start // 2 if mode.layout is Layout.TEXT else start
        self._crtc(0x0C, shown >> 8 & 0xFF)
        self._crtc(0x0D, shown & 0xFF)
        self._place_cursor(*area.cursor(page))

    # -- the CRTC and its cursor

    @property
    def _crtc_port(self) -> int:
        return 0x3D4 if self.vga.registers.misc & 1 else 0x3B4

    def _crtc(self, index: int, value: int) -> None:
        port = self._crtc_port
        self.vga.write(port, 1, index)
        self.vga.write(port + 1, 1, value)

    def _move_cursor(self, page: int, row: int, column: int) -> None:
        self.area.set_cursor(page, row, column)
        if page == self.area.page:
            self._place_cursor(row, column)

    def _place_cursor(self, row: int, column: int) -> None:
        location = self.area.page_start // 2 + row * self.area.columns + column
        self._crtc(0x0E, location >> 8 & 0xFF)
        self._crtc(0x0F, location & 0xFF)

    def _set_cursor_shape(self) -> None:
        caller, area = self.caller, self.area
        area.cursor_shape = caller["cx"]
        first, last = caller["ch"] & 0x3F, caller["cl"] & 0x1F
        height = area.lines
        if not area.control & 1 and height > 8 and first < 8 and last < 8:
            # Sizes are given for eight lines, as on the CGA: keep the underline one, stretch the others.
            if last == first + 1 and last >= 6:
                first, last = height - 3, height - 2
            else:
                first, last = first * height // 8, (last + 1) * height // 8 - 1
        self._crtc(0x0A, first)
        self._crtc(0x0B, last)

    def _set_cursor(self) -> None:
        caller = self.caller
        self._move_cursor(caller["bh"] & 7, caller["dh"], caller["dl"])

    def _get_cursor(self) -> None:
        caller = self.caller
        caller["dh"], caller["dl"] = self.area.cursor(caller["bh"])
        caller["cx"] = self.area.cursor_shape

    # -- characters

    def _canvas(self, page: int) -> Canvas:
        return Canvas(self.vga, self.mode, page, self.area.lines)

    def _cell(self, page: int, row: int, column: int) -> int:
        """Where a character is in the text memory."""
        area = self.area
        return (page * area.page_size + 2 * (row * area.columns + column)) % len(self.vga.text_memory) & ~1

    def _put(self, page: int, row: int, column: int, character: int, colour: int | None) -> None:
        """Show one character; in text modes ``colour`` None keeps the attribute."""
        if self.mode.layout is Layout.TEXT:
            at = self._cell(page, row, column)
            self.vga.text_memory[at] = character
            if colour is not None:
                self.vga.text_memory[at + 1] = colour
        else:
            self._canvas(page).character(row, column, self.fonts.glyph(character), 7 if colour is None else colour)

    def _write_characters(self, with_attribute: bool) -> None:
        caller = self.caller
        page, count, character = caller["bh"] & 7, caller["cx"], caller["al"]
        row, column = self.area.cursor(page)
        if self.mode.layout is not Layout.TEXT:
            for at in range(column, min(column + count, self.mode.columns)):
                self._put(page, row, at, character, caller["bl"])
            return
        text = self.vga.text_memory
        at = self._cell(page, row, column)
        count = min(count, (len(text) - at) // 2)
        text[at : at + 2 * count : 2] = bytes((character,)) * count
        if with_attribute:
            text[at + 1 : at + 1 + 2 * count : 2] = bytes((caller["bl"],)) * count

    def _read_character(self) -> None:
        caller = self.caller
        page = caller["bh"] & 7
        row, column = self.area.cursor(page)
        if self.mode.layout is Layout.TEXT:
            at = self._cell(page, row, column)
            caller["al"], caller["ah"] = self.vga.text_memory[at], self.vga.text_memory[at + 1]
            return
        shape = self._canvas(page).look(row, column)
        caller["al"] = next((code for code in range(256) if self.fonts.glyph(code) == shape), 0)

    def teletype(self, character: int, colour: int = 7) -> None:
        """Write as on a terminal to the active page (AH=0Eh); ``colour`` counts in graphics modes only."""
        area = self.area
        page = area.page
        row, column = area.cursor(page)
        text = self.mode.layout is Layout.TEXT
        row, column = self._type(page, row, column, character, None if text else colour)
        self._move_cursor(page, row, column)

    def _type(self, page: int, row: int, column: int, character: int, colour: int | None) -> tuple[int, int]:
        """Write one character, or obey a control character; returns where the cursor is after it."""
        area = self.area
        if character == _BELL:
            if self.on_bell is not None:
                self.on_bell()
            return row, column
        if character == _BACKSPACE:
            return row, max(0, column - 1)
        if character == _RETURN:
            return row, 0
        if character == _LINE_FEED:
            row += 1
        else:
            self._put(page, row, column, character, colour)
            column += 1
            if column >= area.columns:
                row, column = row + 1, 0
        last = area.last_row
        if row > last:
            row = last
            attribute = self.vga.text_memory[self._cell(page, row, column) + 1] if self.mode.layout is Layout.TEXT else 0
            self._move_rows(page, 1, (0, 0, last, area.columns - 1), attribute)
        return row, column

    def _write_string(self) -> None:
        caller = self.caller
        way, page, attribute = caller["al"], caller["bh"] & 7, caller["bl"]
        row, column = caller["dh"], caller["dl"]
        if row == 0xFF:
            row, column = self.area.cursor(page)
        step = 2 if way & 2 else 1
        data = caller.read(caller.address("es", "bp"), caller["cx"] * step)
        for at in range(0, len(data), step):
            row, column = self._type(page, row, column, data[at], data[at + 1] if step == 2 else attribute)
        if way & 1:
            self._move_cursor(page, row, column)

    def _scroll(self, direction: int) -> None:
        caller, area = self.caller, self.area
        top, left, bottom, right = caller["ch"], caller["cl"], caller["dh"], caller["dl"]
        bottom, right = min(bottom, area.last_row), min(right, area.columns - 1)
        if top > bottom or left > right:
            return
        rows = caller["al"]
        if rows > bottom - top:
            rows = 0
        self._move_rows(area.page, direction * rows, (top, left, bottom, right), caller["bh"])

    def _move_rows(self, page: int, rows: int, box: tuple[int, int, int, int], attribute: int) -> None:
        """Scroll ``box`` (top, left, bottom, right) up by ``rows``, down if negative; 0 clears it."""
        top, left, bottom, right = box
        if self.mode.layout is not Layout.TEXT:
            self._canvas(page).scroll(rows, box, attribute)
            return
        text = self.vga.text_memory
        width = 2 * (right - left + 1)
        blank = bytes((0x20, attribute)) * (width // 2)
        old = {row: bytes(text[(at := self._cell(page, row, left)) : at + width]) for row in range(top, bottom + 1)}
        for row in range(top, bottom + 1):
            at = self._cell(page, row, left)
            new = old.get(row + rows, blank) if rows else blank
            text[at : at + width] = new[: len(text) - at].ljust(min(width, len(text) - at), b"\0")

    # -- pixels and colours

    def _write_pixel(self) -> None:
        caller = self.caller
        if self.mode.layout is not Layout.TEXT:
            self._canvas(caller["bh"] & 7).put(caller["cx"], caller["dx"], caller["al"])

    def _read_pixel(self) -> None:
        caller = self.caller
        if self.mode.layout is not Layout.TEXT:
            caller["al"] = self._canvas(caller["bh"] & 7).get(caller["cx"], caller["dx"])

    def _set_cga_colours(self) -> None:
        """AH=0Bh: BH=0 background (and border, and intensity), BH=1 the palette of 320x200 in four colours."""
        value, area = self.caller["bl"], self.area
        palette = self.palette
        if self.caller["bh"] == 0:
            area.cga_palette = area.cga_palette & 0xE0 | value & 0x1F
            colour = value & 7 | value << 1 & 0x10
            palette.set_attribute(0x11, colour)
            if self.mode.layout is Layout.TEXT:
                return
            palette.set_attribute(0, colour)
        elif self.caller["bh"] == 1:
            area.cga_palette = area.cga_palette & 0xDF | (value & 1) << 5
        if self.mode.layout is Layout.CGA4:
            bright, other = area.cga_palette & 0x10, area.cga_palette >> 5 & 1
            for index in (1, 2, 3):
                palette.set_attribute(index, bright | 2 * index + other)

    # -- information and switches

    def _alternate_select(self) -> None:
        caller, area = self.caller, self.area
        al, choice = caller["al"], caller["bl"]
        if choice == 0x10:
            caller["bh"] = 0 if self.vga.registers.misc & 1 else 1
            caller["bl"] = 3  # 256 KB
            caller["ch"] = 0
            caller["cl"] = area.switches & 0x0F
            return
        if choice == 0x30 and al <= 2:  # 200, 350, 400 lines in text modes, from the next mode set
            area.options = area.options & 0x6F | (0x80, 0x00, 0x10)[al]
        elif choice == 0x31:
            area.options = area.options & ~0x08 | (al & 1) << 3
        elif choice == 0x32:
            pass  # the adapter stays enabled
        elif choice == 0x33:
            area.options = area.options & ~0x02 | (~al & 1) << 1
        elif choice == 0x34:
            area.control = area.control & ~0x01 | al & 1
        elif choice == 0x36:
            self.vga.write(0x3C4, 1, 1)
            self.vga.write(0x3C5, 1, self.vga.read(0x3C5, 1) & ~0x20 | (al & 1) << 5)
        else:
            return
        caller["al"] = 0x12

    def _display_combination(self) -> None:
        caller = self.caller
        if caller["al"] == 0:
            caller["bx"] = self.area.combination or 8
        elif caller["al"] == 1:
            self.area.combination = caller["bl"]
        else:
            return
        caller["al"] = 0x1A

    def _functionality(self) -> None:
        caller, area, mode = self.caller, self.area, self.mode
        if caller["bx"]:
            return
        segment, offset = FUNCTIONALITY_POINTER
        colours = {Layout.CGA2: 2, Layout.CGA4: 4, Layout.LINEAR: 256}.get(mode.layout, 0 if mode.number == 7 else 16)
        lines = self.vga.registers.scan_lines
        table = struct.pack("<HH", offset, segment) + self.memory.read(0x449, 0x1E)
        table += struct.pack("<BHBBHBB", area.last_row + 1 & 0xFF, area.height, area.combination, 0, colours, mode.pages,
                             3 if lines > 400 else 2 if lines > 350 else 1)  # fmt: skip
        table += bytes((0, 0, 1, 0, 0, 0, 3))
        caller.write(caller.address("es", "di"), table.ljust(64, b"\0"))
        caller["al"] = 0x1B

    def _no_vesa(self) -> None:
        self.caller["ax"] = 0x0100  # AL is not 4Fh: there are no VESA extensions
