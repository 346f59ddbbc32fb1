"""Int 9 and int 16h."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.boot.bios import bda
from avmm.boot.bios.rom import Service
from tests.boot.bios_bench import BiosBench

SHIFT, CTRL, ALT = 0x2A, 0x1D, 0x38


def press(bench: BiosBench, *codes: int) -> int:
    """Feed scan codes to int 9; return what the last one asked the stub to call."""
    for code in codes:
        bench.service(Service.KEYBOARD_IRQ, al=code)
    return bench["al"]


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ([0x1E, 0x9E], [0x1E61]),  # a
        ([SHIFT, 0x1E], [0x1E41]),
        ([0x36, 0x1E, 0xB6, 0x1E], [0x1E41, 0x1E61]),
        ([CTRL, 0x1E], [0x1E01]),
        ([ALT, 0x1E], [0x1E00]),
        ([0x3A, 0xBA, 0x1E, 0x02], [0x1E41, 0x0231]),  # Caps Lock: letters only
        ([0x3A, 0xBA, SHIFT, 0x1E, 0x02], [0x1E61, 0x0221]),
        ([0x3A, 0x3A, 0x3A, 0xBA, 0x1E], [0x1E41]),  # typematic repeats toggle once
        ([0x02, SHIFT, 0x02], [0x0231, 0x0221]),
        ([ALT, 0x02, 0x0D], [0x7800, 0x8300]),
        ([CTRL, 0x03, 0x07, 0x0C, 0x1A, 0x02], [0x0300, 0x071E, 0x0C1F, 0x1A1B]),
        ([0x01, 0x0E, 0x0F, 0x1C, 0x39], [0x011B, 0x0E08, 0x0F09, 0x1C0D, 0x3920]),
        ([SHIFT, 0x0F], [0x0F00]),
        ([CTRL, 0x0E, 0x1C, 0x0F], [0x0E7F, 0x1C0A, 0x9400]),
        ([0x3B, 0x44, 0x57, 0x58], [0x3B00, 0x4400, 0x8500, 0x8600]),  # F1, F10, F11, F12
        ([SHIFT, 0x3B, 0x57], [0x5400, 0x8700]),
        ([CTRL, 0x3B], [0x5E00]),
        ([ALT, 0x44, 0x58], [0x7100, 0x8C00]),
        ([0x48, 0x53], [0x4800, 0x5300]),  # keypad without Num Lock
        ([0x45, 0xC5, 0x48, 0x53], [0x4838, 0x532E]),
        ([0x45, 0xC5, SHIFT, 0x48], [0x4800]),
        ([SHIFT, 0x47], [0x4737]),
        ([CTRL, 0x4B], [0x7300]),
        ([0xE0, 0x48, 0xE0, 0xC8], [0x48E0]),  # grey arrow
        ([0xE0, 0x2A, 0xE0, 0x48], [0x48E0]),  # ... with the fake shift before it
        ([0xE0, 0x1C, 0xE0, 0x35], [0xE00D, 0xE02F]),
        ([CTRL, 0xE0, 0x4D], [0x74E0]),
        ([ALT, 0xE0, 0x53], [0xA300]),
        ([0xE0, 0x38, 0x1E, 0xE0, 0xB8, 0x1E], [0x1E00, 0x1E61]),  # right Alt
        ([ALT, 0x4D, 0x4C, 0xB8], [0x0041]),  # Alt-6 5
        ([0xFA, 0xFE], []),  # answers, not keys
        ([0x2B, SHIFT, 0x2B], [0x2B5C, 0x2B7C]),
    ],
)
def test_key_words(codes: list[int], words: list[int]) -> None:
    bench = BiosBench()
    assert press(bench, *codes) == 0
    assert bench.keys() == words


def test_shift_states() -> None:
    bench = BiosBench()
    press(bench, SHIFT, CTRL, 0xE0, 0x38, 0x3A)
    bench.service(Service.KEYBOARD, ax=0x0200)
    assert bench["al"] == 0x02 | 0x04 | 0x08 | 0x40
    bench.service(Service.KEYBOARD, ax=0x1200)
    assert bench["al"] == 0x4E
    assert bench["ah"] == 0x01 | 0x08 | 0x40  # left Ctrl, right Alt, Caps Lock held down
    press(bench, 0xE0, 0xB8, 0x9D, 0xAA, 0xBA)
    bench.service(Service.KEYBOARD, ax=0x1200)
    assert bench["ax"] == 0x0040


def test_both_ctrl_keys_are_needed_to_release() -> None:
    bench = BiosBench()
    press(bench, CTRL, 0xE0, CTRL, 0x9D, 0x1E, 0xE0, 0x9D, 0x1E)
    assert bench.keys() == [0x1E01, 0x1E61]


def test_insert_toggles_once_per_press() -> None:
    bench = BiosBench()
    press(bench, 0xE0, 0x52, 0xE0, 0x52, 0xE0, 0xD2)
    assert bench.memory.read(bda.KEY_FLAGS, 1)[0] & 0x80
    press(bench, 0xE0, 0x52)
    assert not bench.memory.read(bda.KEY_FLAGS, 1)[0] & 0x80
    assert len(bench.keys()) == 3


def test_ring_holds_15_words_and_wraps() -> None:
    bench = BiosBench()
    for start in range(3):
        press(bench, *([0x1E] * (14 + start)))
        assert bench.keys() == [0x1E61] * min(15, 14 + start)


def test_ctrl_alt_del() -> None:
    bench = BiosBench()
    press(bench, CTRL, ALT, 0xE0, 0x53)
    assert bench.board.requests == ["reset: Ctrl-Alt-Del"]
    assert bench.memory.unpack("<H", bda.RESET_FLAG)[0] == 0x1234


def test_break_and_print_screen() -> None:
    bench = BiosBench()
    assert press(bench, 0x1E, CTRL, 0xE0, 0x46) == 0x1B
    assert bench.keys() == [0]
    assert bench.memory.read(bda.BREAK, 1)[0] == 0x80
    assert press(bench, 0xE0, 0xC6, 0x9D, 0xE0, 0x2A, 0xE0, 0x37) == 0x05
    assert bench.keys() == []


def test_pause() -> None:
    bench = BiosBench()
    assert press(bench, 0xE1, 0x1D, 0x45) == 0xFF
    assert press(bench, 0xE1, 0x9D, 0xC5) == 0
    bench.service(Service.KEYBOARD_PAUSED)
    assert bench["al"] == 1
    press(bench, SHIFT, 0xAA)
    bench.service(Service.KEYBOARD_PAUSED)
    assert bench["al"] == 1
    press(bench, 0x1E)
    bench.service(Service.KEYBOARD_PAUSED)
    assert bench["al"] == 0
    assert bench.keys() == []
    press(bench, 0x1E)
    assert bench.keys() == [0x1E61]


def test_read_waits_for_a_key() -> None:
    bench = BiosBench()
    bench.service(Service.KEYBOARD, ax=0x0000)
    assert bench.waiting()
    assert bench["ax"] == 0
    assert bench.bios.keyboard.store(0x1E61)
    bench.again(Service.KEYBOARD)
    assert not bench.waiting()
    assert bench["ax"] == 0x1E61
    bench.service(Service.KEYBOARD, ax=0x1000)
    assert bench.waiting()


def test_peek_leaves_the_key() -> None:
    bench = BiosBench()
    bench.service(Service.KEYBOARD, ax=0x0100)
    assert bench.zero
    press(bench, 0x1E)
    for function in (0x0100, 0x1100):
        bench.service(Service.KEYBOARD, flags=0x40, ax=function)
        assert (bench.zero, bench["ax"]) == (False, 0x1E61)
    bench.service(Service.KEYBOARD, ax=0x0000)
    assert bench["ax"] == 0x1E61
    bench.service(Service.KEYBOARD, ax=0x0100)
    assert bench.zero


@pytest.mark.parametrize(
    ("word", "seen"),
    [
        (0x48E0, 0x4800),
        (0xE00D, 0x1C0D),
        (0xE02F, 0x352F),
        (0x8500, None),
        (0x01F0, None),
        (0x8400, 0x8400),
        (0x00E0, 0x00E0),
        (0x00F0, 0x00F0),
    ],
)
def test_83_key_view(word: int, seen: int | None) -> None:
    bench = BiosBench()
    bench.service(Service.KEYBOARD, ax=0x0500, cx=word)
    assert bench["al"] == 0
    bench.service(Service.KEYBOARD, ax=0x1100)
    assert bench["ax"] == word
    bench.service(Service.KEYBOARD, ax=0x0100)
    assert bench.zero is (seen is None)
    if seen is None:
        assert bench.keys() == []
    else:
        bench.service(Service.KEYBOARD, ax=0x0000)
        assert bench["ax"] == seen


def test_store_reports_a_full_ring() -> None:
    bench = BiosBench()
    results = []
    for _ in range(16):
        bench.service(Service.KEYBOARD, ax=0x0500, cx=0x1234)
        results.append(bench["al"])
    assert results == [0] * 15 + [1]


def test_capabilities() -> None:
    bench = BiosBench()
    bench.service(Service.KEYBOARD, ax=0x0900)
    assert bench["al"] & 0x20
    bench.service(Service.KEYBOARD, ax=0x9200)
    assert bench["ah"] <= 0x80
    bench.service(Service.KEYBOARD, ax=0x0A00)
    assert bench["bx"] == 0x41AB


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=60), st.binary(min_size=8, max_size=8))
def test_no_scan_code_and_no_pointer_upsets_it(codes: list[int], pointers: bytes) -> None:
    bench = BiosBench()
    press(bench, *codes)
    bench.memory.write(bda.KEY_HEAD, pointers[:4])
    bench.memory.write(bda.KEY_BUFFER_START_POINTER, pointers[4:])
    press(bench, *codes)
    for function in (0x0100, 0x1100, 0x0000, 0x0200):
        bench.service(Service.KEYBOARD, ax=function)
