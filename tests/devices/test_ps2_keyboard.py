"""The keyboard, seen through the controller."""

from __future__ import annotations

import pytest

from avmm.devices.i8042 import TRANSLATION
from avmm.devices.keys import KEYS, US_104
from avmm.devices.ps2_keyboard import QUEUE
from tests.devices.kbc import MS, Pc
from tests.devices.test_keys import decode_set1


@pytest.fixture
def pc():
    return Pc()


def test_all_of_ascii_and_more_typed_through_translation(pc):
    text = "".join(map(chr, range(128))) + "äöüß░π" + "The quick brown fox\n" * 20
    got = bytearray()
    pc.irq1.connect(lambda level: level and got.append(pc.data()))
    pc.type(text)
    pc.bench.pass_time(2_000 * MS)
    assert decode_set1(bytes(got)) == text.replace("\r", "\n")
    assert pc.kbc.idle


@pytest.mark.parametrize("scan_set", [1, 2, 3])
@pytest.mark.parametrize("name", US_104)
def test_every_key_in_every_set(pc, name, scan_set):
    pc.raw()
    assert pc.keyboard(0xF0, scan_set) == b"\xfa\xfa"
    assert pc.keyboard(0xF8) == b"\xfa"
    pc.kbc.press(name)
    assert pc.drain() == KEYS[name].make[scan_set - 1]
    pc.kbc.release(name)
    assert pc.drain() == KEYS[name].release[scan_set - 1]


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ("f2", "faab83"), ("ee", "ee"), ("ff", "faaa"), ("ed07", "fafa"), ("f32b", "fafa"), ("f000", "fafa02"), ("f4", "fa"), ("f5", "fa"),
        ("f6", "fa"), ("f7", "fa"), ("fa", "fa"), ("fc1c32", "fafafa"), ("f1", "fe"), ("ef", "fe"), ("00", "fe"), ("edf2", "fafaab83"),
        ("eefe", "eeee"), ("f2fe", "faab8383"), ("f005", "fafe"), ("f001f000", "fafafafa01"),
    ],
)  # fmt: skip
def test_keyboard_commands(pc, sent, answer):
    pc.raw()
    assert pc.keyboard(*bytes.fromhex(sent)).hex() == answer


def test_answers_are_translated_too(pc):
    assert pc.keyboard(0xF2) == b"\xfa\xab\x41"
    assert pc.keyboard(0xF0, 0) == b"\xfa\xfa\x41"


def test_atkbd_start(pc):
    """Linux atkbd_probe and atkbd_activate, the keyboard's LEDs and a first key."""
    assert pc.keyboard(0xF5) == b"\xfa"
    assert pc.keyboard(0xF2) == b"\xfa\xab\x41"
    assert pc.keyboard(0xED, 0x00) == b"\xfa\xfa"
    assert pc.keyboard(0xF3, 0x00) == b"\xfa\xfa"
    pc.kbc.press("a")
    pc.kbc.release("a")
    assert pc.poll() is None  # not scanning: the person waits
    assert pc.kbc.queued == 2
    assert pc.keyboard(0xF4) == b"\xfa\x1e\x9e"
    assert pc.keyboard(0xED, 0x06) == b"\xfa\xfa"
    assert pc.kbc.keyboard.leds == 6
    assert pc.keyboard(0xFF) == b"\xfa\xaa"
    assert pc.kbc.keyboard.leds == 0


def test_no_scan_code_between_command_and_option(pc):
    pc.bench.write(pc.kbc, 0x60, 0xED)
    pc.kbc.press("a")
    assert pc.drain() == b"\xfa"
    assert pc.keyboard(0x02) == b"\xfa\x1e"


def test_keys_wait_for_room_and_none_is_lost(pc):
    rooms = []
    pc.kbc.on_room = lambda: rooms.append(pc.kbc.queued)
    refused = 0
    for _ in range(QUEUE):
        refused += not pc.kbc.press("a")
        pc.kbc.release("a")
    assert refused
    assert pc.kbc.queued <= QUEUE + 1
    assert not pc.kbc.press("b")
    assert not pc.kbc.release("b")  # never went down
    codes = pc.drain()
    assert codes == b"\x1e\x9e" * (QUEUE - refused)
    half, empty = rooms
    assert 1020 < half <= 1024
    assert empty == 0
    assert pc.kbc.idle


def test_fingers_overrun():
    pc = Pc(patient=False)
    for _ in range(30):
        pc.kbc.press("a")
    codes = pc.drain()
    assert codes == b"\x1e" * 17 + b"\xff"  # one in the output buffer, 16 in the keyboard, and the mark


def test_clearing_the_buffer_leaves_no_key_down(pc):
    pc.kbc.press("shift")
    assert pc.poll() == 0x2A
    pc.kbc.press("x")
    pc.kbc.release("x")
    pc.kbc.release("shift")
    assert pc.keyboard(0xF5) == b"\xfa"
    # "x" is forgotten as the guest asked, but not that the keys are up.
    assert pc.keyboard(0xF4) == b"\xfa\xad\xaa"


def test_print_screen_and_pause_with_modifiers(pc):
    for held, key, down, up in [
        ("alt", "print", "54", "d4"), ("ctrl", "print", "e037", "e0b7"), ("shift_r", "print", "e037", "e0b7"),
        ("ctrl_r", "pause", "e046e0c6", ""), ("alt", "pause", "e11d45e19dc5", ""),
    ]:  # fmt: skip
        pc.kbc.press(held)
        pc.drain()
        pc.kbc.press(key)
        assert pc.drain().hex() == down
        pc.kbc.release(held)
        pc.drain()
        pc.kbc.release(key)
        assert pc.drain().hex() == up


def test_set_3_kinds_of_keys(pc):
    pc.raw()
    pc.keyboard(0xF0, 3)

    def stroke(key):
        pc.kbc.press(key)
        pc.kbc.press(key)
        pc.kbc.release(key)
        return pc.drain().hex()

    assert (stroke("a"), stroke("shift"), stroke("f1")) == ("1c1c", "12f012", "07")
    pc.keyboard(0xFC, 0x1C, 0xF4)
    assert (stroke("a"), stroke("b")) == ("1cf01c", "3232")
    pc.keyboard(0xFA)
    assert (stroke("a"), stroke("f1")) == ("1c1cf01c", "0707f007")
    pc.keyboard(0xF9)
    assert stroke("a") == "1c"


def test_break_of_a_held_repeat_and_unknown_key(pc):
    pc.kbc.press("a")
    pc.kbc.press("a")
    pc.kbc.release("a")
    assert pc.drain() == b"\x1e\x1e\x9e"
    assert not pc.kbc.release("a")
    with pytest.raises(ValueError, match="no key is called"):
        pc.kbc.press("any")


def test_translation_table_is_a_permutation():
    assert len(TRANSLATION) == 256
    assert sorted(TRANSLATION[:0x80]) == [*range(1, 0x80), 0xFF]
    assert (TRANSLATION[0x83], TRANSLATION[0x84]) == (0x41, 0x54)
