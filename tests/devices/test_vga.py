import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.devices.vga import Vga
from avmm.devices.vga.font import font
from avmm.devices.vga.modes import MODES, Mode, dac_palette
from avmm.devices.vga.vga import LINE_NS
from tests.devices.bench import Bench

FRAME = 449 * LINE_NS


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def vga(bench: Bench) -> Vga:
    vga = Vga(bench)
    vga.reset()
    return vga


def put(vga: Vga, port: int, index: int, value: int) -> None:
    vga.write(port, 1, index)
    vga.write(port + 1, 1, value)


def set_mode(vga: Vga, mode: Mode) -> None:
    """As a driver does it, by ports alone."""
    vga.write(0x3C2, 1, mode.misc)
    crtc = 0x3D4 if mode.misc & 1 else 0x3B4
    put(vga, crtc, 0x11, 0)
    for port, values in ((0x3C4, mode.sequencer), (crtc, mode.crtc), (0x3CE, mode.graphics)):
        for index, value in enumerate(values):
            put(vga, port, index, value)
    vga.read(crtc + 6, 1)
    for index, value in enumerate(mode.attribute):
        vga.write(0x3C0, 1, index)
        vga.write(0x3C0, 1, value)
    vga.write(0x3C0, 1, 0x20)
    vga.write(0x3C8, 1, 0)
    for value in dac_palette(mode.palette):
        vga.write(0x3C9, 1, value)


def show(vga: Vga, row: int, text: str, attribute: int = 7) -> None:
    data = bytes(value for character in text.encode("cp437") for value in (character, attribute))
    vga.text_memory[160 * row : 160 * row + len(data)] = data


def pixel(vga: Vga, x: int, y: int) -> tuple[int, ...]:
    width, _, rgb = vga.pixels()
    return tuple(rgb[3 * (y * width + x) : 3 * (y * width + x) + 3])


# -- text


def test_powers_on_as_an_empty_80x25_screen(vga: Vga, bench: Bench) -> None:
    assert vga.mode() == "text"
    assert vga.size == (80, 25)
    assert vga.text_rows() == [" " * 80] * 25
    size, buffer = bench.ram_maps[0xB8000]
    assert size == 0x8000
    assert buffer is vga.text_memory
    assert bench.ram_maps.get(0xA0000, (0, None))[1] is None


def test_text_is_decoded_as_code_page_437(vga: Vga) -> None:
    show(vga, 2, "Größe ├─╢ \x01", 0x1E)
    assert vga.text_rows()[2].startswith("Größe ├─╢ ☺ ")
    vga.text_memory[0] = 0
    assert vga.text_rows()[0] == " " * 80
    assert vga.cells()[2][0] == (ord("G"), 0x1E)


def test_text_pixels_come_from_the_font_palette_and_dac(vga: Vga) -> None:
    put(vga, 0x3D4, 0x0A, 0x20)
    show(vga, 0, "A", 0x1E)
    width, height, rgb = vga.pixels()
    assert (width, height) == (640, 400)
    for y in range(16):
        for x in range(8):
            lit = font(16)[16 * 0x41 + y] >> 7 - x & 1
            assert tuple(rgb[3 * (y * 640 + x) :][:3]) == ((255, 255, 85) if lit else (0, 0, 170))


def test_attribute_bit_7_is_blinking_or_a_bright_background(vga: Vga) -> None:
    show(vga, 1, " ", 0x90)
    assert pixel(vga, 0, 16) == (0, 0, 170)
    vga.read(0x3DA, 1)
    vga.write(0x3C0, 1, 0x30)
    vga.write(0x3C0, 1, 0x04)
    assert pixel(vga, 0, 16) == (85, 85, 255)


def test_cursor_is_drawn_where_the_crtc_says(vga: Vga) -> None:
    put(vga, 0x3D4, 0x0E, (3 * 80 + 5) >> 8)
    put(vga, 0x3D4, 0x0F, (3 * 80 + 5) & 0xFF)
    assert vga.cursor() == (3, 5, True, 13, 14)
    assert pixel(vga, 5 * 8, 3 * 16 + 13) == (170, 170, 170)
    assert pixel(vga, 5 * 8, 3 * 16 + 12) == (0, 0, 0)
    put(vga, 0x3D4, 0x0A, 0x2D)
    assert not vga.cursor()[2]
    assert pixel(vga, 5 * 8, 3 * 16 + 13) == (0, 0, 0)


def test_start_address_selects_the_page_and_goes_round(vga: Vga) -> None:
    vga.text_memory[0x1000:0x1002] = b"P\x07"
    put(vga, 0x3D4, 0x0C, 0x08)
    put(vga, 0x3D4, 0x0E, 0x08)
    assert vga.text_rows()[0][0] == "P"
    assert vga.cursor()[:2] == (0, 0)
    put(vga, 0x3D4, 0x0C, 0x3F)
    vga.text_memory[0x7E00 - 0x8000 :][:2] = b"Q\x07"
    assert len(vga.text_rows()) == 25
    assert vga.text_rows()[0][0] == "Q"


@pytest.mark.parametrize(("height", "lines", "rows"), [(8, 400, 50), (8, 344, 43), (14, 350, 25), (16, 400, 25)])
def test_character_height_decides_the_rows(vga: Vga, height: int, lines: int, rows: int) -> None:
    put(vga, 0x3D4, 9, 0x40 | height - 1)
    put(vga, 0x3D4, 0x11, 0)
    put(vga, 0x3D4, 7, 0x1D | (lines - 1) >> 7 & 2)
    put(vga, 0x3D4, 0x12, (lines - 1) & 0xFF)
    assert vga.size == (80, rows)
    assert vga.pixels()[:2] == (640, rows * height)


@pytest.mark.parametrize(("number", "size"), [(1, (40, 25)), (3, (80, 25)), (7, (80, 25))])
def test_text_modes(vga: Vga, bench: Bench, number: int, size: tuple[int, int]) -> None:
    set_mode(vga, MODES[number])
    vga.text_memory[size[0] * 2 : size[0] * 2 + 2] = b"x\x07"
    assert vga.size == size
    assert vga.text_rows()[1][0] == "x"
    mapped = [first for first, (_, buffer) in bench.ram_maps.items() if buffer is not None]
    assert mapped == [0xB0000 if number == 7 else 0xB8000]


def test_fonts_in_plane_2_replace_ours(vga: Vga) -> None:
    """Loaded through the window as drivers do: planar, plane 2, 32 bytes a glyph; the text stays."""
    put(vga, 0x3D4, 0x0A, 0x20)
    show(vga, 0, "A", 0x07)
    for port, index, value in ((0x3C4, 2, 4), (0x3C4, 4, 6), (0x3CE, 4, 2), (0x3CE, 5, 0), (0x3CE, 6, 4)):
        put(vga, port, index, value)
    assert vga.read_memory(0xA0000 + 32 * 0x41, 8) == int.from_bytes(font(16)[0x410:0x418], "little")
    vga.write_memory(0xA0000 + 32 * 0x41, 4, 0x810000FF)
    for port, index, value in ((0x3C4, 2, 3), (0x3C4, 4, 2), (0x3CE, 4, 0), (0x3CE, 5, 0x10), (0x3CE, 6, 0x0E)):
        put(vga, port, index, value)
    assert [pixel(vga, x, 0) for x in range(8)] == [(170,) * 3] * 8
    assert pixel(vga, 0, 1) == (0, 0, 0)
    assert pixel(vga, 7, 3) == (170,) * 3
    assert vga.text_rows()[0][0] == "A"


def test_character_map_select_takes_attribute_bit_3(vga: Vga) -> None:
    vga.load_glyphs(b"\xff" * 16, 16, first=0x41, block=1)
    put(vga, 0x3C4, 3, 0x04)  # map A (bit 3 set): block 1; map B: block 0
    put(vga, 0x3D4, 0x0A, 0x20)
    show(vga, 0, "A", 0x0F)
    assert pixel(vga, 0, 0) == (255, 255, 255)
    show(vga, 0, "A", 0x07)
    assert pixel(vga, 0, 0) == (0, 0, 0)


def test_our_font_is_used_when_none_is_loaded(vga: Vga) -> None:
    vga.ram[:] = bytes(len(vga.ram))
    put(vga, 0x3D4, 0x0A, 0x20)
    show(vga, 0, "█")
    assert pixel(vga, 4, 8) == (170,) * 3


# -- graphics


@pytest.mark.parametrize(
    ("number", "size"),
    [(4, (320, 200)), (6, (640, 200)), (0x0D, (320, 200)), (0x0E, (640, 200)), (0x10, (640, 350)), (0x12, (640, 480)), (0x13, (320, 200))],
)
def test_graphics_sizes(vga: Vga, number: int, size: tuple[int, int]) -> None:
    set_mode(vga, MODES[number])
    assert vga.mode() == "graphics"
    assert vga.size == size
    assert vga.text_rows() == []
    assert vga.cells() == []
    assert vga.pixels()[:2] == size
    assert len(vga.pixels()[2]) == 3 * size[0] * size[1]


def test_mode_13h_is_plain_memory(vga: Vga, bench: Bench) -> None:
    set_mode(vga, MODES[0x13])
    buffer = bench.ram_maps[0xA0000][1]
    assert buffer is not None
    assert bench.ram_maps[0xB8000][1] is None
    buffer[:] = bytes(len(buffer))
    buffer[320 * 10 + 7] = 4
    buffer[320 * 199 + 319] = 32
    assert pixel(vga, 7, 10) == (170, 0, 0)
    assert pixel(vga, 319, 199) == (0, 0, 255)
    assert pixel(vga, 8, 10) == (0, 0, 0)
    assert vga.read_memory(0xA0000 + 320 * 10 + 7, 1) == 4
    put(vga, 0x3D4, 0x0D, 80)  # one line further
    assert pixel(vga, 7, 9) == (170, 0, 0)


def test_mode_x_shares_its_pixels_with_mode_13h(vga: Vga, bench: Bench) -> None:
    set_mode(vga, MODES[0x13])
    put(vga, 0x3C4, 4, 6)  # chain-4 off
    put(vga, 0x3D4, 0x14, 0)
    put(vga, 0x3D4, 0x17, 0xE3)
    assert bench.ram_maps[0xA0000][1] is None
    put(vga, 0x3C4, 2, 1 << 2)
    vga.write_memory(0xA0000 + 80 * 5 + 3, 1, 2)
    assert pixel(vga, 4 * 3 + 2, 5) == (0, 170, 0)


def test_mode_12h_by_ports_and_stores(vga: Vga) -> None:
    set_mode(vga, MODES[0x12])
    vga.ram[:] = bytes(len(vga.ram))
    put(vga, 0x3C4, 2, 0x0F)
    put(vga, 0x3CE, 5, 2)
    vga.write_memory(0xA0000 + 80 * 479 + 79, 1, 0x0C)
    assert pixel(vga, 639, 479) == (255, 85, 85)
    assert pixel(vga, 631, 479) == (0, 0, 0)
    put(vga, 0x3CE, 5, 0)
    put(vga, 0x3C4, 2, 0x01)
    vga.write_memory(0xA0000, 8, 0x80)
    assert pixel(vga, 0, 0) == (0, 0, 170)
    assert pixel(vga, 1, 0) == (0, 0, 0)


def test_line_compare_splits_the_screen(vga: Vga) -> None:
    set_mode(vga, MODES[0x12])
    vga.ram[:] = bytes(len(vga.ram))
    vga.ram[0] = 0x80  # offset 0, plane 0
    put(vga, 0x3D4, 0x0C, 0x20)
    assert pixel(vga, 0, 240) == (0, 0, 0)
    put(vga, 0x3D4, 0x11, 0)
    put(vga, 0x3D4, 7, 0x2E)
    put(vga, 0x3D4, 9, 0x00)
    put(vga, 0x3D4, 0x18, 239)
    assert pixel(vga, 0, 240) == (0, 0, 170)


def test_cga_modes_interleave_their_lines(vga: Vga, bench: Bench) -> None:
    set_mode(vga, MODES[4])
    assert bench.ram_maps[0xB8000][1] is vga.text_memory
    vga.text_memory[:] = bytes(0x8000)
    vga.text_memory[80] = 0b01_10_11_00  # line 2
    vga.text_memory[0x2000] = 0b11_00_00_00  # line 1
    assert [pixel(vga, x, 2) for x in range(4)] == [(85, 255, 255), (255, 85, 255), (255, 255, 255), (0, 0, 0)]
    assert pixel(vga, 0, 1) == (255, 255, 255)
    set_mode(vga, MODES[6])
    assert [pixel(vga, x, 1) for x in range(3)] == [(255, 255, 255), (255, 255, 255), (0, 0, 0)]


def test_a_screen_switched_off_is_black(vga: Vga) -> None:
    show(vga, 0, "█")
    put(vga, 0x3C4, 1, 0x20)
    assert not any(vga.pixels()[2])
    put(vga, 0x3C4, 1, 0x00)
    assert any(vga.pixels()[2])
    vga.read(0x3DA, 1)
    vga.write(0x3C0, 1, 0)  # palette address source off
    assert not any(vga.pixels()[2])


def test_png(vga: Vga, tmp_path: Path) -> None:
    from PIL import Image

    show(vga, 0, "█", 0x0C)
    vga.png(tmp_path / "screen.png")
    with Image.open(tmp_path / "screen.png") as image:
        assert image.size == (640, 400)
        assert image.convert("RGB").getpixel((3, 3)) == (255, 85, 85)


# -- registers


@pytest.mark.parametrize(
    ("port", "index", "written", "read"),
    [
        (0x3C4, 4, 0xFF, 0x0E), (0x3C4, 2, 0xFF, 0x0F), (0x3C4, 1, 0xFF, 0x3D), (0x3CE, 5, 0xFF, 0x7B), (0x3CE, 8, 0xA5, 0xA5),
        (0x3CE, 3, 0xFF, 0x1F), (0x3CE, 12, 0xFF, 0x00), (0x3D4, 0x0E, 0xA5, 0xA5), (0x3D4, 0x1E, 0xFF, 0x00), (0x3C4, 6, 0xFF, 0x00),
    ],
)  # fmt: skip
def test_registers_have_only_the_bits_that_exist(vga: Vga, port: int, index: int, written: int, read: int) -> None:
    put(vga, port, index, written)
    assert vga.read(port, 1) == index
    assert vga.read(port + 1, 1) == read


def test_crtc_protection_leaves_line_compare_writable(vga: Vga) -> None:
    put(vga, 0x3D4, 0x11, 0x8E)
    put(vga, 0x3D4, 0, 0x12)
    put(vga, 0x3D4, 7, 0x00)
    vga.write(0x3D4, 1, 0)
    assert vga.read(0x3D5, 1) == 0x5F
    vga.write(0x3D4, 1, 7)
    assert vga.read(0x3D5, 1) == 0x0F


def test_attribute_flip_flop(vga: Vga) -> None:
    vga.read(0x3DA, 1)
    vga.write(0x3C0, 1, 0x05)
    vga.write(0x3C0, 1, 0x2A)
    vga.write(0x3C0, 1, 0x25)
    assert vga.read(0x3C1, 1) == 0x2A
    assert vga.read(0x3C0, 1) == 0x25
    vga.read(0x3DA, 1)
    vga.write(0x3C0, 1, 0x06)
    assert vga.read(0x3C0, 1) == 0x06


def test_crtc_answers_where_misc_says(vga: Vga) -> None:
    assert vga.read(0x3B5, 1) == 0xFF
    put(vga, 0x3B4, 0x0F, 9)
    vga.write(0x3C2, 1, 0x66)
    assert vga.read(0x3CC, 1) == 0x66
    assert vga.read(0x3D5, 1) == vga.read(0x3DA, 1) == 0xFF
    vga.write(0x3B4, 1, 0x0F)
    assert vga.read(0x3B5, 1) == 0


def test_dac_counts_through_parts_and_colours(vga: Vga) -> None:
    vga.write(0x3C8, 1, 5)
    assert vga.read(0x3C7, 1) == 0
    for value in (1, 2, 0xFF, 4, 5, 6):
        vga.write(0x3C9, 1, value)
    assert vga.read(0x3C8, 1) == 7
    vga.write(0x3C7, 1, 5)
    assert vga.read(0x3C7, 1) == 3
    assert [vga.read(0x3C9, 1) for _ in range(6)] == [1, 2, 0x3F, 4, 5, 6]


def test_dac_mask(vga: Vga) -> None:
    show(vga, 0, "█", 0x0F)
    vga.write(0x3C6, 1, 0x07)
    assert pixel(vga, 3, 3) == (170, 170, 170)  # 3Fh & 07h


def test_retrace_follows_the_clock(vga: Vga, bench: Bench) -> None:
    def status(line: int, part: float = 0.1) -> int:
        bench.time = 7 * FRAME + int((line + part) * LINE_NS)
        return vga.read(0x3DA, 1) & 9

    assert status(0) == 0
    assert status(0, 0.9) == 1  # horizontal blanking
    assert status(399) == 0
    assert status(400) == 1
    assert status(412) == 9
    assert status(413) == 9
    assert status(414) == 1
    assert status(448) == 1


@pytest.mark.parametrize("crtc", [b"\0" * 25, b"\xff" * 25, b"\x5f" * 25])
def test_retrace_comes_even_with_nonsense_timing(vga: Vga, bench: Bench, crtc: bytes) -> None:
    put(vga, 0x3D4, 0x11, 0)
    for index, value in enumerate(crtc):
        put(vga, 0x3D4, index, value)
    seen = set()
    for _ in range(3000):
        bench.time += LINE_NS
        seen.add(vga.read(0x3DA, 1) & 8)
    assert seen == {0, 8}


def test_a_window_that_is_not_decoded_floats(vga: Vga) -> None:
    assert vga.read_memory(0xA0000, 4) == 0xFFFFFFFF
    assert vga.read_memory(0xB0000, 1) == 0xFF
    vga.write_memory(0xB0000, 2, 0x1234)
    vga.write_memory(0xB8000, 2, 0x0741)
    assert vga.text_rows()[0][0] == "A"
    assert vga.read_memory(0xB8000, 2) == 0x0741
    vga.write(0x3C2, 1, 0x65)  # memory disabled
    assert vga.read_memory(0xB8000, 2) == 0xFFFF


def test_pages_are_remapped_only_when_the_situation_changes(vga: Vga, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, bool]] = []
    monkeypatch.setattr(bench, "map_ram", lambda first, size, buffer: calls.append((first, buffer is not None)))
    set_mode(vga, MODES[3])
    assert calls == []
    set_mode(vga, MODES[0x13])
    assert sorted(calls) == [(0xA0000, True), (0xB8000, False)]
    calls.clear()
    vga.reset()
    assert sorted(calls) == [(0xA0000, False), (0xB8000, True)]


def test_generation_grows_with_what_is_shown(vga: Vga) -> None:
    first = vga.generation
    assert vga.generation == first
    show(vga, 0, "x")
    second = vga.generation
    assert second > first
    put(vga, 0x3D4, 0x0F, 9)
    third = vga.generation
    assert third > second
    set_mode(vga, MODES[0x13])
    fourth = vga.generation
    vga.ram[5] ^= 1
    assert vga.generation > fourth > third


# -- state


def test_saved_state_continues_in_the_middle_of_everything(vga: Vga) -> None:
    set_mode(vga, MODES[0x12])
    vga.ram[:4] = b"\x11\x22\x33\x44"
    vga.read_memory(0xA0000, 1)  # latches
    vga.write(0x3C8, 1, 3)
    vga.write(0x3C9, 1, 0x15)  # one part of a colour
    vga.read(0x3DA, 1)
    vga.write(0x3C0, 1, 0x21)  # index written, data to come
    show(vga, 0, "kept")
    state = vga.save()
    bench = Bench()
    other = Vga(bench)
    other.restore(state)
    assert bench.ram_maps.get(0xB8000, (0, None))[1] is None
    for one in (vga, other):
        one.write(0x3C0, 1, 0x3F)
        one.write(0x3C9, 1, 0x16)
        one.write(0x3C9, 1, 0x17)
        put(one, 0x3CE, 5, 1)
        one.write_memory(0xA0004, 1, 0)
    assert other.save() == vga.save()
    assert bytes(other.ram[16:20]) == b"\x11\x22\x33\x44"
    assert other.registers.attribute[1] == 0x3F
    assert bytes(other.registers.dac.colours[9:12]) == b"\x15\x16\x17"


def test_restore_refuses_what_does_not_fit(vga: Vga) -> None:
    from dataclasses import replace

    for bad in (None, replace(vga.save(), version=2), replace(vga.save(), ram=b"")):
        with pytest.raises(ValueError, match="VGA"):
            vga.restore(bad)


PORTS = [port for area in Vga.ports for port in range(area.first, area.first + area.count)]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 1 << 30))
def test_random_traffic_never_raises(seed: int) -> None:
    chance = random.Random(seed)
    bench = Bench()
    vga = Vga(bench)
    vga.reset()
    for _ in range(400):
        bench.time += chance.randrange(100_000)
        choice = chance.randrange(5)
        size = chance.choice((1, 2, 4, 8))
        address = 0xC0000 - size if chance.random() < 0.1 else chance.randrange(0xA0000, 0xC0000)
        if choice == 0:
            assert 0 <= vga.read(chance.choice(PORTS), 1) <= 0xFF
        elif choice == 1:
            assert 0 <= vga.read_memory(address, size) < 1 << 8 * size
        elif choice == 2:
            vga.write_memory(address, size, chance.getrandbits(8 * size))
        else:
            vga.write(chance.choice(PORTS), 1, chance.randrange(256))
    for row in vga.cells():
        assert len(row) == vga.size[0]
    width, height, rgb = vga.pixels()
    assert len(rgb) == 3 * width * height
    vga.cursor()
    copy = Vga(Bench())
    copy.restore(vga.save())
    assert copy.pixels() == (width, height, rgb)
