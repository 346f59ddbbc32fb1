"""The table of keys, held against the 8042's translation and a decoder of set 1 that knows nothing of the table."""

from __future__ import annotations

import pytest

from avmm.devices.i8042 import TRANSLATION
from avmm.devices.keys import BREAK, KEYS, PRINT_SHIFTED, US_104, find, for_char, for_text

PLAIN = "\0\x1b1234567890-=\b\tqwertyuiop[]\n\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 "
SHIFTED = '\0\x1b!@#$%^&*()_+\b\tQWERTYUIOP{}\n\0ASDFGHJKL:"~\0|ZXCVBNM<>?\0*\0 '
KEYPAD = {0x52: 0, 0x4F: 1, 0x50: 2, 0x51: 3, 0x4B: 4, 0x4C: 5, 0x4D: 6, 0x47: 7, 0x48: 8, 0x49: 9}


def decode_set1(codes: bytes) -> str:
    """What a BIOS makes of scan codes: characters, control characters, and Alt with digits on the keypad."""
    text = ""
    shift = ctrl = alt = False
    number = 0
    for code in codes:
        key, up = code & 0x7F, code >= 0x80
        if key in (0x2A, 0x36):
            shift = not up
        elif key == 0x1D:
            ctrl = not up
        elif key == 0x38:
            alt = not up
            if up and number:
                text += bytes([number & 0xFF]).decode("cp437")
                number = 0
        elif up:
            continue
        elif alt:
            number = number * 10 + KEYPAD[key]
        elif ctrl:
            text += {0x0E: "\x7f", 0x03: "\0", 0x07: "\x1e", 0x0C: "\x1f"}.get(key) or chr(ord(PLAIN[key]) & 0x1F)
        else:
            text += (SHIFTED if shift else PLAIN)[key]
    assert (shift, ctrl, alt) == (False, False, False)
    return text


def translate(codes: bytes) -> bytes:
    out = bytearray()
    up = 0
    for code in codes:
        if code == 0xF0:
            up = 0x80
        else:
            out.append(TRANSLATION[code] | up)
            up = 0
    return bytes(out)


@pytest.mark.parametrize("key", [*KEYS.values(), PRINT_SHIFTED, BREAK], ids=lambda key: key.name)
def test_set_2_translates_to_set_1(key):
    assert translate(key.make[1]) == key.make[0]
    assert translate(key.release[1]) == key.release[0]


def test_104_keys_and_no_code_twice():
    assert len(US_104) == 104
    assert set(US_104) <= set(KEYS)
    for index in range(3):
        codes = [KEYS[name].make[index] for name in US_104]
        assert len(set(codes)) == 104
        assert all(codes)


@pytest.mark.parametrize(
    ("name", "make", "release"),
    [
        ("a", "1e 1c 1c", "9e f01c f01c"),
        ("f7", "41 83 37", "c1 f083 f037"),
        ("right", "e04d e074 6a", "e0cd e0f074 f06a"),
        ("ctrl_r", "e01d e014 58", "e09d e0f014 f058"),
        ("print", "e02ae037 e012e07c 57", "e0b7e0aa e0f07ce0f012 f057"),
        ("pause", "e11d45e19dc5 e11477e1f014f077 62", "- - f062"),
        ("kp_enter", "e01c e05a 79", "e09c e0f05a f079"),
        ("meta_l", "e05b e01f 8b", "e0db e0f01f f08b"),
    ],
)
def test_codes_of_the_manual(name, make, release):
    key = KEYS[name]
    assert " ".join(code.hex() for code in key.make) == make
    assert " ".join(code.hex() or "-" for code in key.release) == release


@pytest.mark.parametrize(
    ("alias", "name"), [("enter", "ret"), ("Escape", "esc"), ("SPC", "spc"), ("pagedown", "pgdn"), ("control", "ctrl"), ("F1", "f1")]
)
def test_aliases(alias, name):
    assert find(alias).name == name


def test_every_alias_leads_somewhere():
    from avmm.devices.keys import _ALIASES

    for alias in _ALIASES:
        assert find(alias).name in KEYS


def test_no_such_key():
    with pytest.raises(ValueError, match="no key is called 'any'"):
        find("any")


def test_ascii_decodes_back():
    text = "".join(map(chr, range(128)))
    codes = b"".join(KEYS[key].make[0] if down else KEYS[key].release[0] for key, down in for_text(text))
    assert decode_set1(codes) == text.replace("\r", "\n")


def test_code_page_437_by_alt_and_keypad():
    text = "Größe ½ ░▒▓█ π≈"
    codes = b"".join(KEYS[key].make[0] if down else KEYS[key].release[0] for key, down in for_text(text))
    assert decode_set1(codes) == text


def test_events_of_a_shifted_letter():
    assert for_text("A\n") == [("shift", True), ("a", True), ("a", False), ("shift", False), ("ret", True), ("ret", False)]
    assert for_text("\x03") == [("ctrl", True), ("c", True), ("c", False), ("ctrl", False)]


def test_for_char():
    assert for_char("?") == ("slash", True)
    assert for_char("\t") == ("tab", False)
    with pytest.raises(ValueError, match="US keyboard"):
        for_char("\x03")
    with pytest.raises(ValueError, match="cannot be typed"):
        for_text("漢")
