"""Int 10h on a real VGA model, called by a processor that is nothing but registers."""

import random
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.boot.bios.video import VideoServices
from avmm.boot.bios.video_rom import FONT_POINTERS, video_rom
from avmm.cpu.engine import Processor, Segment
from avmm.devices.vga import Vga
from avmm.devices.vga.font import font
from avmm.devices.vga.modes import MODES, Layout
from tests.devices.bench import Bench


@dataclass
class FakeCpu:
    registers: dict[str, int] = field(default_factory=dict)

    def _place(self, name: str) -> tuple[str, int, int]:
        if name[-1] in "hl" and len(name) == 2:
            return f"{name[0]}x", 8 if name[1] == "h" else 0, 0xFF
        return name, 0, 0xFFFF

    def register(self, name: str) -> int:
        whole, shift, mask = self._place(name)
        return self.registers.get(whole, 0) >> shift & mask

    def set_register(self, name: str, value: int) -> None:
        whole, shift, mask = self._place(name)
        assert 0 <= value <= mask, (name, value)
        self.registers[whole] = (self.registers.get(whole, 0) & ~(mask << shift)) | value << shift

    def segment(self, name: str) -> Segment:
        return Segment(self.register(name), self.register(name) << 4)

    def translate(self, linear: int) -> int | None:
        return linear


class Machine:
    def __init__(self) -> None:
        self.bench = Bench(ram=1 << 20)
        self.memory = self.bench.memory
        self.memory.write(0xC0000, video_rom())
        self.vga = Vga(self.bench)
        self.vga.reset()
        self.cpu = FakeCpu()
        self.bells: list[int] = []
        self.video = VideoServices(cast(Processor, self.cpu), self.memory, self.vga, on_bell=lambda: self.bells.append(1))
        self.video.set_mode(3)

    def int10(self, **registers: int) -> FakeCpu:
        for name, value in registers.items():
            self.cpu.set_register(name, value)
        self.video.call()
        return self.cpu

    def type(self, text: str, colour: int = 7) -> None:
        for character in text.encode("cp437"):
            self.int10(ax=0x0E00 | character, bx=colour)

    def rows(self) -> list[str]:
        return [row.rstrip() for row in self.vga.text_rows()]

    def byte(self, address: int) -> int:
        return self.memory.read(address, 1)[0]

    def word(self, address: int) -> int:
        return self.memory.unpack("<H", address)[0]

    def pixel(self, x: int, y: int) -> tuple[int, ...]:
        width, _, rgb = self.vga.pixels()
        return tuple(rgb[3 * (y * width + x) :][:3])


@pytest.fixture
def pc() -> Machine:
    return Machine()


# -- modes


@pytest.mark.parametrize("number", sorted(MODES))
def test_set_mode(pc: Machine, number: int) -> None:
    pc.type("old")
    pc.int10(ax=number)
    mode = MODES[number]
    assert pc.vga.size == ((mode.columns, mode.rows) if mode.layout is Layout.TEXT else (mode.width, mode.rows * mode.height))
    assert pc.byte(0x449) == number
    assert pc.word(0x44A) == mode.columns
    assert pc.byte(0x484) == mode.rows - 1
    assert pc.word(0x485) == mode.height
    assert pc.word(0x463) == (0x3B4 if number == 7 else 0x3D4)
    assert pc.vga.registers.crtc[:0x11] == mode.crtc[:0x11]
    assert bytes(pc.vga.registers.attribute[:21]) == mode.attribute
    if mode.layout is Layout.TEXT:
        assert pc.rows() == [""] * 25
    else:
        assert not any(pc.vga.pixels()[2])
    cpu = pc.int10(ah=0x0F)
    assert (cpu.register("al"), cpu.register("ah"), cpu.register("bh")) == (number, mode.columns, 0)


def test_bit_7_keeps_the_screen(pc: Machine) -> None:
    pc.type("kept")
    pc.int10(ax=0x0083)
    assert pc.rows()[0] == "kept"
    assert pc.int10(ah=0x0F).register("al") == 0x83
    assert pc.vga.cursor()[:2] == (0, 0)


def test_unknown_modes_and_functions_change_nothing(pc: Machine) -> None:
    before = pc.vga.save()
    pc.int10(ax=0x0065)
    for function in (0x04, 0x14, 0x70, 0xFF):
        pc.int10(ah=function)
    assert pc.vga.save() == before
    assert pc.int10(ax=0x4F00).register("ax") != 0x004F


# -- teletype and cursor


def test_teletype_writes_wraps_and_moves_the_cursor(pc: Machine) -> None:
    pc.type("Hello\r\nab\bX" + "-" * 79)
    assert pc.rows()[:3] == ["Hello", "aX" + "-" * 78, "-"]
    assert pc.vga.cursor()[:2] == (2, 1)
    assert pc.memory.read(0x450, 2) == bytes((1, 2))


def test_teletype_scrolls_with_the_attribute_of_the_last_line(pc: Machine) -> None:
    pc.type("first\r\nsecond")
    pc.int10(ah=2, bx=0, dh=24, dl=0)
    pc.vga.text_memory[24 * 160 + 1] = 0x1F
    pc.type("last\r\n")
    assert pc.rows()[0] == "second"
    assert pc.rows()[23] == "last"
    assert pc.vga.cells()[24][0] == (0x20, 0x1F)
    assert pc.vga.cursor()[:2] == (24, 0)


def test_bell_rings_and_writes_nothing(pc: Machine) -> None:
    pc.type("\a")
    assert pc.bells == [1]
    assert pc.rows()[0] == ""
    assert pc.vga.cursor()[:2] == (0, 0)


def test_cursor_position_and_shape(pc: Machine) -> None:
    pc.int10(ah=2, bx=0, dx=0x0A14)
    assert pc.vga.cursor()[:2] == (10, 20)
    pc.int10(ah=1, cx=0x0007)
    assert pc.vga.cursor()[2:] == (True, 0, 15)
    pc.int10(ah=1, cx=0x0607)
    assert pc.vga.cursor()[2:] == (True, 13, 14)
    pc.int10(ah=1, cx=0x2000)
    assert not pc.vga.cursor()[2]
    cpu = pc.int10(ah=3, bx=0, dx=0, cx=0)
    assert (cpu.register("dx"), cpu.register("cx")) == (0x0A14, 0x2000)


def test_pages(pc: Machine) -> None:
    pc.type("zero")
    pc.int10(ah=2, bx=0x0200, dx=0x0105)
    pc.int10(ah=9, al=ord("p"), bx=0x0207, cx=2)
    assert pc.rows()[0] == "zero"
    assert pc.vga.cursor()[:2] == (0, 4)
    pc.int10(ax=0x0502)
    assert pc.rows()[:2] == ["", "     pp"]
    assert pc.vga.cursor()[:2] == (1, 5)
    assert pc.word(0x44E) == 0x2000
    assert pc.int10(ah=0x0F).register("bh") == 2
    pc.int10(ax=0x0500)
    assert pc.rows()[0] == "zero"


def test_read_and_write_characters(pc: Machine) -> None:
    pc.int10(ah=2, bx=0, dx=0x0000)
    pc.int10(ax=0x0941, bx=0x004E, cx=85)
    assert pc.rows()[:2] == ["A" * 80, "A" * 5]
    pc.int10(ax=0x0A42, bx=0x0012, cx=1)
    assert pc.vga.cells()[0][:2] == [(0x42, 0x4E), (0x41, 0x4E)]
    assert pc.int10(ah=8, bx=0).register("ax") == 0x4E42
    assert pc.vga.cursor()[:2] == (0, 0)


@pytest.mark.parametrize(
    ("function", "rows", "expected"),
    [
        (6, 1, ["0000", "1221", "2332", "3  3", "4444"]),
        (7, 1, ["0000", "1  1", "2112", "3223", "4444"]),
        (6, 0, ["0000", "1  1", "2  2", "3  3", "4444"]),
        (7, 9, ["0000", "1  1", "2  2", "3  3", "4444"]),
    ],
)
def test_scroll_a_window(pc: Machine, function: int, rows: int, expected: list[str]) -> None:
    for row in range(5):
        pc.type(str(row) * 4 + "\r\n")
    pc.int10(ah=function, al=rows, bh=0x2E, cx=0x0101, dx=0x0302)
    assert pc.rows()[:5] == expected
    assert (0x20, 0x2E) in pc.vga.cells()[2] + pc.vga.cells()[3] + pc.vga.cells()[1]
    pc.int10(ax=0x0600, bh=7, cx=0, dx=0xFFFF)
    assert pc.rows() == [""] * 25


@pytest.mark.parametrize("way", [0, 1, 2, 3])
def test_write_string(pc: Machine, way: int) -> None:
    data = b"a\x11b\x22\r\x33" if way & 2 else b"ab\r"
    pc.memory.write(0x12345, data)
    pc.int10(ah=0x13, al=way, bx=0x004F, cx=3, dx=0x0203, es=0x1234, bp=5)
    colours = [0x11, 0x22] if way & 2 else [0x4F, 0x4F]
    assert pc.vga.cells()[2][3:5] == list(zip(b"ab", colours, strict=True))
    assert pc.vga.cursor()[:2] == ((2, 0) if way & 1 else (0, 0))


# -- graphics


GRAPHICS = [4, 6, 0x0D, 0x0E, 0x10, 0x12, 0x13]


@pytest.mark.parametrize("number", GRAPHICS)
def test_pixels(pc: Machine, number: int) -> None:
    pc.int10(ax=number)
    width, height = pc.vga.size
    colours = {4: 4, 6: 2, 0x13: 256}.get(number, 16)
    table = pc.vga.registers.colour_table()
    for x, y, colour in ((0, 0, 1), (width - 1, height - 1, colours - 1), (13, 101, colours // 2), (14, 101, 1)):
        pc.int10(ah=0x0C, al=colour, bx=0, cx=x, dx=y)
        assert pc.int10(ah=0x0D, bx=0, cx=x, dx=y).register("al") == colour
        assert pc.pixel(x, y) == table[colour]
    assert pc.pixel(13, 100) == table[0]
    if number != 0x13:
        pc.int10(ax=0x0C81, bx=0, cx=14, dx=101)
        assert pc.pixel(14, 101) == table[0]
    before = pc.vga.save()
    pc.int10(ax=0x0C01, bx=0, cx=width, dx=0)
    pc.int10(ax=0x0C01, bx=0, cx=0, dx=height)
    assert pc.vga.save() == before


@pytest.mark.parametrize("number", GRAPHICS)
def test_text_in_graphics(pc: Machine, number: int) -> None:
    pc.int10(ax=number)
    mode = MODES[number]
    table = pc.vga.registers.colour_table()
    pc.type("\nQ", colour=1)
    shape = font(mode.height)[0x51 * mode.height : 0x52 * mode.height]
    for y, bits in enumerate(shape):
        for x in range(8):
            assert pc.pixel(x, mode.height + y) == table[bits >> 7 - x & 1]
    pc.int10(ah=2, bx=0, dx=0x0100)
    assert pc.int10(ah=8, bx=0).register("al") == 0x51
    pc.int10(ah=2, bx=0, dh=mode.rows - 1, dl=0)
    pc.type("\n", colour=1)
    assert pc.pixel(2, 4) == table[shape[4] >> 5 & 1]
    pc.int10(ah=2, bx=0, dx=0)
    assert pc.int10(ah=8, bx=0).register("al") == 0x51
    pc.int10(ax=0x0701, bh=0, cx=0, dx=0x0A10)
    assert pc.int10(ah=8, bx=0).register("al") == 0x00 or pc.int10(ah=8, bx=0).register("al") == 0x20
    pc.int10(ax=0x0600, bh=1, cx=0x0101, dx=0x0101)
    assert pc.pixel(8, mode.height) == table[1]
    assert pc.pixel(16, mode.height) == table[0]


def test_characters_with_xor(pc: Machine) -> None:
    pc.int10(ax=0x12)
    for _ in range(2):
        pc.int10(ax=0x09DB, bx=0x008C, cx=3)
    assert not any(pc.vga.pixels()[2])
    pc.int10(ax=0x09DB, bx=0x000C, cx=200)
    assert pc.pixel(639, 15) == (255, 85, 85)
    assert pc.pixel(0, 16) == (0, 0, 0)


def test_user_font_at_int_43h(pc: Machine) -> None:
    pc.int10(ax=0x13)
    pc.memory.write(0x30000 + 8 * 0x41, b"\xf0" * 8)
    pc.int10(ax=0x1121, es=0x3000, bp=0, cx=8, bx=0x0002)
    pc.type("A", colour=15)
    assert [pc.pixel(x, 0) for x in (3, 4)] == [(255, 255, 255), (0, 0, 0)]
    assert pc.memory.unpack("<HH", 0x10C) == (0, 0x3000)


def test_back_to_text_brings_the_font_back(pc: Machine) -> None:
    pc.int10(ax=0x12)
    pc.vga.ram[:] = b"\xaa" * len(pc.vga.ram)
    pc.int10(ax=3)
    pc.type("\n█")
    assert pc.pixel(0, 20) == pc.pixel(1, 20) == (170, 170, 170)


# -- palette


def test_palette_registers(pc: Machine) -> None:
    pc.int10(ax=0x1000, bx=0x2A05)
    assert pc.int10(ax=0x1007, bx=0x0005).register("bh") == 0x2A
    pc.int10(ax=0x1001, bx=0x3300)
    assert pc.int10(ax=0x1008, bx=0).register("bh") == 0x33
    pc.memory.write(0x20000, bytes(range(17)))
    pc.int10(ax=0x1002, es=0x2000, dx=0)
    pc.int10(ax=0x1009, es=0x2000, dx=0x100)
    assert pc.memory.read(0x20100, 17) == bytes(range(17))
    pc.int10(ax=0x1003, bx=0)
    assert not pc.vga.registers.attribute[0x10] & 8
    assert not pc.vga.registers.blank


def test_dac_registers(pc: Machine) -> None:
    pc.int10(ax=0x1010, bx=7, cx=0x2031, dx=0x1000)
    cpu = pc.int10(ax=0x1015, bx=7, cx=0, dx=0)
    assert (cpu.register("dh"), cpu.register("ch"), cpu.register("cl")) == (0x10, 0x20, 0x31)
    pc.memory.write(0x20000, bytes(range(9)))
    pc.int10(ax=0x1012, bx=16, cx=3, es=0x2000, dx=0)
    pc.int10(ax=0x1017, bx=16, cx=3, es=0x2000, dx=0x80)
    assert pc.memory.read(0x20080, 9) == bytes(range(9))
    assert bytes(pc.vga.registers.dac.colours[48:57]) == bytes(range(9))
    pc.int10(ax=0x101B, bx=7, cx=1)
    red, green, blue = pc.vga.registers.dac.colours[21:24]
    assert red == green == blue == round(0.3 * 0x10 + 0.59 * 0x20 + 0.11 * 0x31)


def test_dac_paging(pc: Machine) -> None:
    pc.int10(ax=0x1013, bx=0x0100)
    pc.int10(ax=0x1013, bx=0x0501)
    assert pc.int10(ax=0x101A).register("bx") == 0x0501
    assert pc.vga.registers.attribute[0x10] & 0x80


def test_cga_palette(pc: Machine) -> None:
    pc.int10(ax=4)
    pc.int10(ah=0x0B, bx=0x0100)
    assert list(pc.vga.registers.attribute[1:4]) == [0x12, 0x14, 0x16]
    pc.int10(ah=0x0B, bx=0x0001)
    assert list(pc.vga.registers.attribute[:4]) == [1, 0x2, 0x4, 0x6]
    pc.int10(ah=0x0B, bx=0x0101)
    assert list(pc.vga.registers.attribute[1:4]) == [3, 5, 7]


# -- fonts


@pytest.mark.parametrize(("function", "rows", "height"), [(0x1112, 50, 8), (0x1111, 28, 14), (0x1114, 25, 16)])
def test_rom_fonts_change_the_rows(pc: Machine, function: int, rows: int, height: int) -> None:
    pc.int10(ax=function, bx=0)
    assert pc.vga.size == (80, rows)
    assert pc.byte(0x484) == rows - 1
    assert pc.word(0x485) == height
    pc.int10(ah=2, bx=0, dh=rows - 1, dl=0)
    pc.type("end\n")
    assert pc.rows()[rows - 2] == "end"
    pc.type("\r█")
    assert pc.pixel(3, rows * height - 1) == (170, 170, 170)
    pc.int10(ax=3)
    assert pc.vga.size == (80, 25)


def test_user_text_font(pc: Machine) -> None:
    pc.memory.write(0x30000, b"\x80" * 16)
    pc.int10(ax=0x1100, bx=0x1000, cx=1, dx=0x58, es=0x3000, bp=0)
    pc.type("X")
    assert [pc.pixel(x, 15) for x in (0, 1)] == [(170, 170, 170), (0, 0, 0)]
    assert pc.vga.size == (80, 25)


@pytest.mark.parametrize(("which", "height", "skip"), [(2, 14, 0), (3, 8, 0), (4, 8, 1024), (5, 14, 0), (6, 16, 0), (7, 16, 0), (1, 16, 0)])
def test_font_information_points_into_the_rom(pc: Machine, which: int, height: int, skip: int) -> None:
    cpu = pc.int10(ax=0x1130, bx=which << 8)
    at = (cpu.register("es") << 4) + cpu.register("bp")
    assert pc.memory.read(at, 256 * height - skip) == font(height)[skip:]
    assert (cpu.register("cx"), cpu.register("dl")) == (16, 24)


def test_video_rom_is_a_valid_option_rom() -> None:
    image = video_rom()
    assert image[:2] == b"\x55\xaa"
    assert len(image) == 512 * image[2]
    assert sum(image) & 0xFF == 0
    assert set(FONT_POINTERS) == {8, 14, 16}


# -- information


def test_who_is_there(pc: Machine) -> None:
    assert pc.int10(ax=0x1A00, bx=0).register("bx") == 8
    assert pc.cpu.register("al") == 0x1A
    cpu = pc.int10(ah=0x12, bx=0x0010, cx=0)
    assert (cpu.register("bx"), cpu.register("cx")) == (0x0003, 0x0009)
    pc.int10(ax=0x1B00, bx=0, es=0x2000, di=0x10)
    assert pc.cpu.register("al") == 0x1B
    table = pc.memory.read(0x20010, 64)
    assert table[4] == 3
    assert table[0x22] == 25
    assert table[0x23] == 16
    offset, segment = pc.memory.unpack("<HH", 0x20010)
    assert pc.byte((segment << 4) + offset) == 0xFF  # modes 0-7


def test_screen_off_and_on(pc: Machine) -> None:
    pc.type("x")
    pc.int10(ax=0x1201, bx=0x36)
    assert pc.vga.registers.blank
    assert pc.cpu.register("al") == 0x12
    pc.int10(ax=0x1200, bx=0x36)
    assert not pc.vga.registers.blank


def test_default_palette_loading_can_be_switched_off(pc: Machine) -> None:
    pc.int10(ax=0x1201, bx=0x31)
    pc.int10(ax=0x1010, bx=0, cx=0x1111, dx=0x1100)
    pc.int10(ax=3)
    assert pc.vga.registers.dac.colours[0] == 0x11
    pc.int10(ax=0x1200, bx=0x31)
    pc.int10(ax=3)
    assert pc.vga.registers.dac.colours[0] == 0


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(0, 1 << 30))
def test_no_call_raises(seed: int) -> None:
    """Any registers, and a data area that a program has scribbled over."""
    chance = random.Random(seed)
    pc = Machine()
    functions: list[Any] = [*range(0x14), 0x1A, 0x1B, 0x4F]
    for _ in range(60):
        if chance.random() < 0.1:
            pc.int10(ax=chance.choice(sorted(MODES)))
        if chance.random() < 0.1:
            pc.memory.write(chance.choice([*range(0x449, 0x467), *range(0x484, 0x48B)]), bytes((chance.randrange(256),)))
        values = {name: chance.choice((0, 1, 8, chance.randrange(256), chance.randrange(0x10000))) for name in ("bx", "cx", "dx", "bp")}
        pc.int10(**values, ah=chance.choice(functions), al=chance.randrange(0x31), es=chance.randrange(0x8000))
    pc.vga.pixels()
    pc.vga.cells()
