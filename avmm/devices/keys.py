"""The keys of a PC keyboard: names, scan codes and the US layout.

Follows the IBM PS/2 Hardware Interface Technical Reference (Keyboards, 101/102-key, scan code sets 1, 2 and 3) and
Microsoft's "Keyboard Scan Code Specification" for the keys that came later. Names are QEMU's qcodes ("ret", "spc",
"ctrl", "f1", "kp_enter"), with the usual other spellings as aliases.

Invariant: a key's set-1 code is what the 8042 makes of its set-2 code (the translation table lives with the 8042).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Name, make codes in sets 1, 2 and 3 ("-": none in set 3). Up to the empty line the US keyboard, without Print Screen and Pause.
_TABLE = """
esc 01 76 08            f1 3b 05 07             f2 3c 06 0f             f3 3d 04 17             f4 3e 0c 1f
f5 3f 03 27             f6 40 0b 2f             f7 41 83 37             f8 42 0a 3f             f9 43 01 47
f10 44 09 4f            f11 57 78 56            f12 58 07 5e            scroll_lock 46 7e 5f
grave_accent 29 0e 0e   1 02 16 16              2 03 1e 1e              3 04 26 26              4 05 25 25
5 06 2e 2e              6 07 36 36              7 08 3d 3d              8 09 3e 3e              9 0a 46 46
0 0b 45 45              minus 0c 4e 4e          equal 0d 55 55          backspace 0e 66 66
tab 0f 0d 0d            q 10 15 15              w 11 1d 1d              e 12 24 24              r 13 2d 2d
t 14 2c 2c              y 15 35 35              u 16 3c 3c              i 17 43 43              o 18 44 44
p 19 4d 4d              bracket_left 1a 54 54   bracket_right 1b 5b 5b  backslash 2b 5d 5c
caps_lock 3a 58 14      a 1e 1c 1c              s 1f 1b 1b              d 20 23 23              f 21 2b 2b
g 22 34 34              h 23 33 33              j 24 3b 3b              k 25 42 42              l 26 4b 4b
semicolon 27 4c 4c      apostrophe 28 52 52     ret 1c 5a 5a
shift 2a 12 12          z 2c 1a 1a              x 2d 22 22              c 2e 21 21              v 2f 2a 2a
b 30 32 32              n 31 31 31              m 32 3a 3a              comma 33 41 41          dot 34 49 49
slash 35 4a 4a          shift_r 36 59 59
ctrl 1d 14 11           meta_l e05b e01f 8b     alt 38 11 19            spc 39 29 29            alt_r e038 e011 39
meta_r e05c e027 8c     menu e05d e02f 8d       ctrl_r e01d e014 58
insert e052 e070 67     home e047 e06c 6e       pgup e049 e07d 6f
delete e053 e071 64     end e04f e069 65        pgdn e051 e07a 6d
up e048 e075 63         left e04b e06b 61       down e050 e072 60       right e04d e074 6a
num_lock 45 77 76       kp_divide e035 e04a 77  kp_multiply 37 7c 7e    kp_subtract 4a 7b 84
kp_7 47 6c 6c           kp_8 48 75 75           kp_9 49 7d 7d           kp_add 4e 79 7c
kp_4 4b 6b 6b           kp_5 4c 73 73           kp_6 4d 74 74
kp_1 4f 69 69           kp_2 50 72 72           kp_3 51 7a 7a           kp_enter e01c e05a 79
kp_0 52 70 70           kp_decimal 53 71 71

less 56 61 13           ro 73 51 51             yen 7d 6a 5d            henkan 79 64 86         muhenkan 7b 67 85
hiragana 70 13 87       kp_comma 7e 6d 7b       sysrq 54 84 57
power e05e e037 -       sleep e05f e03f -       wake e063 e05e -        calculator e021 e02b -  computer e06b e040 -
mail e06c e048 -        ac_home e032 e03a -     audiomute e020 e023 -   volumedown e02e e021 -  volumeup e030 e032 -
audioplay e022 e034 -   audiostop e024 e03b -   audioprev e010 e015 -   audionext e019 e04d -
"""

_ALIASES = {
    "enter": "ret", "return": "ret", "space": "spc", "escape": "esc", "ctrl_l": "ctrl", "control": "ctrl", "control_l": "ctrl",
    "control_r": "ctrl_r", "shift_l": "shift", "alt_l": "alt", "altgr": "alt_r", "meta": "meta_l", "win": "meta_l", "super": "meta_l",
    "compose": "menu", "bs": "backspace", "del": "delete", "ins": "insert", "page_up": "pgup", "pageup": "pgup", "page_down": "pgdn",
    "pagedown": "pgdn", "print_screen": "print", "prtsc": "print", "capslock": "caps_lock", "numlock": "num_lock",
    "scrolllock": "scroll_lock", "asterisk": "kp_multiply", "grave": "grave_accent", "bracketleft": "bracket_left",
    "bracketright": "bracket_right", "period": "dot", "equals": "equal", "quote": "apostrophe",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Key:
    """One key: the bytes it sends when pressed and when let go, in scan code sets 1, 2 and 3 (index 0 is set 1)."""

    name: str
    make: tuple[bytes, bytes, bytes]
    release: tuple[bytes, bytes, bytes]


def _ordinary(name: str, set1: str, set2: str, set3: str) -> Key:
    """A key whose break codes follow from its make codes: bit 7 in set 1, a prefix F0 before the last byte in sets 2 and 3."""
    one, two = bytes.fromhex(set1), bytes.fromhex(set2)
    three = b"" if set3 == "-" else bytes.fromhex(set3)
    return Key(
        name,
        (one, two, three),
        (one[:-1] + bytes([one[-1] | 0x80]), two[:-1] + b"\xf0" + two[-1:], b"\xf0" + three if three else b""),
    )


def _special(name: str, make: str, release: str) -> Key:
    """Print Screen and Pause, which pretend to be several keys in sets 1 and 2: codes of sets 1, 2 and 3, "-" for nothing."""
    one, two, three = (bytes.fromhex(code) for code in make.split())
    one_up, two_up, three_up = (bytes.fromhex(code.strip("-")) for code in release.split())
    return Key(name, (one, two, three), (one_up, two_up, three_up))


def _table() -> dict[str, Key]:
    words = _TABLE.split()
    keys = {words[at]: _ordinary(*words[at : at + 4]) for at in range(0, len(words), 4)}
    keys["print"] = _special("print", "e02ae037 e012e07c 57", "e0b7e0aa e0f07ce0f012 f057")
    keys["pause"] = _special("pause", "e11d45e19dc5 e11477e1f014f077 62", "- - f062")
    return keys


KEYS: dict[str, Key] = _table()
"""Every key by its name."""

US_104: tuple[str, ...] = (*_TABLE.split("\n\n", maxsplit=1)[0].split()[::4], "print", "pause")
"""The names of the 104 keys of a US keyboard; the others are on keyboards of other countries, or for media."""

PRINT_SHIFTED = _special("print", "e037 e07c 57", "e0b7 e0f07c f057")
"""Print Screen while Ctrl or Shift is held."""

BREAK = _special("pause", "e046e0c6 e07ee0f07e 62", "- - f062")
"""Pause while Ctrl is held: Break."""


def find(name: str) -> Key:
    """Return the key called ``name`` (a qcode or a usual alias, any case); ValueError when there is none."""
    lower = name.lower()
    key = KEYS.get(_ALIASES.get(lower, lower))
    if key is None:
        raise ValueError(f"no key is called {name!r}")
    return key


def _layout() -> dict[str, tuple[str, str | None]]:
    """The US layout as character -> (key, modifier held)."""
    letters = {c: (c, None) for c in "abcdefghijklmnopqrstuvwxyz"}
    layout: dict[str, tuple[str, str | None]] = dict(letters)
    layout |= {c.upper(): (c, "shift") for c in letters}
    layout |= {chr(ord(c) - 0x60): (c, "ctrl") for c in letters}
    layout |= {c: (c, None) for c in "0123456789"}
    layout |= {c: (str((n + 1) % 10), "shift") for n, c in enumerate("!@#$%^&*()")}
    pairs = {
        "grave_accent": "`~", "minus": "-_", "equal": "=+", "bracket_left": "[{", "bracket_right": "]}", "backslash": "\\|",
        "semicolon": ";:", "apostrophe": "'\"", "comma": ",<", "dot": ".>", "slash": "/?",
    }  # fmt: skip
    for name, chars in pairs.items():
        layout[chars[0]] = (name, None)
        layout[chars[1]] = (name, "shift")
    # Control characters as the BIOS and every terminal driver make them; those with a key of their own take it.
    layout |= {"\0": ("2", "ctrl"), "\x1c": ("backslash", "ctrl"), "\x1d": ("bracket_right", "ctrl")}
    layout |= {"\x1e": ("6", "ctrl"), "\x1f": ("minus", "ctrl"), "\x7f": ("backspace", "ctrl")}
    layout |= {"\n": ("ret", None), "\r": ("ret", None), "\t": ("tab", None), "\b": ("backspace", None)}
    layout |= {"\x1b": ("esc", None), " ": ("spc", None)}
    return layout


LAYOUT: dict[str, tuple[str, str | None]] = _layout()
"""US layout: character -> (key, "shift" or "ctrl" or None). All of ASCII."""


def for_char(char: str) -> tuple[str, bool]:
    """Return (key, shift) for a character that a key makes alone or with Shift; ValueError for any other."""
    key, modifier = LAYOUT.get(char, ("", None))
    if not key or modifier == "ctrl":
        raise ValueError(f"{char!r} is not on a US keyboard")
    return key, modifier == "shift"


def _tap(key: str) -> Iterator[tuple[str, bool]]:
    yield key, True
    yield key, False


def _for_one(char: str) -> Iterator[tuple[str, bool]]:
    if char in LAYOUT:
        key, modifier = LAYOUT[char]
        keys = [key]
    else:
        try:
            code = char.encode("cp437")[0]
        except UnicodeEncodeError:
            raise ValueError(f"{char!r} cannot be typed on a US keyboard") from None
        modifier = "alt"
        keys = [f"kp_{digit}" for digit in f"{code:03}"]
    if modifier is not None:
        yield modifier, True
    for key in keys:
        yield from _tap(key)
    if modifier is not None:
        yield modifier, False


def typable(text: str) -> str:
    """Return the text without what a PC keyboard cannot type."""
    return "".join(char for char in text if _is_typable(char))


def _is_typable(char: str) -> bool:
    if char in LAYOUT:
        return True
    try:
        char.encode("cp437")
    except UnicodeEncodeError:
        return False
    return True


def for_text(text: str) -> list[tuple[str, bool]]:
    """Return the (key, pressed) events that type ``text`` on a US keyboard.

    Enter for both "\\n" and "\\r"; control characters with Ctrl; characters of code page 437 beyond ASCII by Alt and three
    digits on the keypad, as BIOS and DOS take them. ValueError for anything else.
    """
    return [event for char in text for event in _for_one(char)]
