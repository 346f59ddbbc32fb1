"""Terminal keys to PC keys, the prefix, and what an image is told to be by its content."""

from __future__ import annotations

import struct

import pytest
from prompt_toolkit.keys import Keys

from avmm.devices.keys import KEYS, typable
from avmm_console.images import kind_of
from avmm_console.keymenu import KeyMenu
from avmm_console.keys import COMMANDS, HELP, Chord, Command, Event, KeyRouter, Text, chord, parse_prefix
from avmm_console.mouse import MouseTracker, Moved
from avmm_console.steps import unescape


@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("c-m", ("ret",)), ("c-i", ("tab",)), ("c-h", ("backspace",)), ("escape", ("esc",)), ("up", ("up",)), ("pagedown", ("pgdn",)),
        ("c-c", ("ctrl", "c")), ("c-z", ("ctrl", "z")), ("s-tab", ("shift", "tab")), ("c-left", ("ctrl", "left")),
        ("c-s-home", ("ctrl", "shift", "home")), ("f1", ("f1",)), ("f12", ("f12",)), ("f13", ("shift", "f1")), ("c-f2", ("ctrl", "f2")),
        ("c-\\", ("ctrl", "backslash")), ("c-@", ("ctrl", "2")), ("delete", ("delete",)), ("<sigint>", None),
    ],
)  # fmt: skip
def test_chords(key: str, keys: tuple[str, ...] | None) -> None:
    assert chord(key) == keys


def test_every_function_and_cursor_key_of_a_terminal_has_a_chord_of_real_keys() -> None:
    for key in Keys:
        keys = chord(key.value)
        if keys is None:
            assert key.value.startswith("<") or key.value in ("scroll", "ignore"), key
        else:
            assert set(keys) <= set(KEYS)


def feed(router: KeyRouter, *keys: str) -> list[Event]:
    return [event for key in keys for event in router.feed(key, key if len(key) == 1 else "")]


def test_the_prefix_takes_the_next_key() -> None:
    router = KeyRouter()
    assert feed(router, "a") == [Text("a")]
    assert feed(router, "c-a") == []
    assert router.waiting
    assert feed(router, "x") == [Command("quit", "x")]
    assert feed(router, "x") == [Text("x")]
    assert feed(router, "c-a", "c-a") == [Chord(("ctrl", "a"), "")]
    assert feed(router, "c-a", "ä") == [Command("", "ä")]
    named = {"Space": " ", "Delete": "delete", "Esc": "escape", "1-9": "1"}
    assert {named.get(key, key) for keys, _ in HELP for key in keys.split()} <= set(COMMANDS)


def test_another_prefix() -> None:
    router = KeyRouter(parse_prefix("Ctrl-b"))
    assert feed(router, "c-a") == [Chord(("ctrl", "a"), "")]
    assert feed(router, "c-b", "x") == [Command("quit", "x")]
    assert feed(router, "c-b", "a") == [Chord(("ctrl", "b"), "\x02")]
    assert [parse_prefix(name) for name in ("^t", "C-]", "o")] == ["c-t", "c-]", "c-o"]
    for nonsense in ("", "F1", "Ctrl-m", "C-i", "Ctrl-1", "ä"):
        with pytest.raises(ValueError, match="cannot be a prefix"):
            parse_prefix(nonsense)


def test_the_key_menu_reaches_every_key() -> None:
    pressed: list[tuple[str, ...]] = []
    for name in KEYS:
        menu = KeyMenu(pressed.append)
        for letter in name:
            assert menu.take(Text(letter), 20)
        assert not menu.take(Chord(("ret",), ""), 20)
    assert pressed == [(name,) for name in KEYS]
    menu = KeyMenu(pressed.append)
    for key in ("ctrl", " ", "alt", " ", "dele", "ret"):
        for event in [Chord((key,), "")] if key == "ret" else [Text(letter) for letter in key]:
            menu.take(event, 20)
    assert pressed[-1] == ("ctrl", "alt", "delete")
    assert "held: shift" in hold(KeyMenu(pressed.append)).text(100, 10)
    assert not KeyMenu(pressed.append).take(Chord(("esc",), ""), 20)


def hold(menu: KeyMenu) -> KeyMenu:
    for letter in "shift ":
        menu.take(Text(letter), 20)
    return menu


def test_the_terminals_mouse_moves_the_guests() -> None:
    tracker = MouseTracker()
    reports = ["\x1b[<35;10;5M", "\x1b[<35;12;4M", "\x1b[<0;12;4M", "\x1b[<32;11;4M", "\x1b[<2;11;4M", "\x1b[<0;11;4m", "\x1b[<64;11;4M", "\x1b[<65;11;4M"]
    moves = [tracker.report(report, (8, 16)) for report in reports]
    assert moves == [
        Moved(0, 0, 0, 0), Moved(16, -16, 0, 0), Moved(0, 0, 0, 1), Moved(-8, 0, 0, 1), Moved(0, 0, 0, 3), Moved(0, 0, 0, 2),
        Moved(0, 0, 1, 2), Moved(0, 0, -1, 2),
    ]  # fmt: skip
    assert tracker.report("\x1b[M !!", (8, 16)) is None
    tracker.forget()
    assert tracker.report("\x1b[<35;80;25M", (8, 16)) == Moved(0, 0, 0, 0)


def test_escape_and_a_key_at_once_are_alt() -> None:
    router = KeyRouter()
    assert feed(router, "escape", "f") == [Chord(("alt", "f"), "\x1bf")]
    assert feed(router, "escape", "F") == [Chord(("alt", "shift", "f"), "\x1bF")]
    assert feed(router, "escape", "up") == [Chord(("alt", "up"), "\x1b")]
    assert feed(router, "escape") == []
    assert router.flush() == [Chord(("esc",), "\x1b")]
    assert router.flush() == []


def test_what_cannot_be_typed_is_left_out_of_a_paste() -> None:
    assert typable("aä日b") == "aäb"


def test_escapes() -> None:
    assert unescape(r"a\n\t\e\\n") == "a\n\t\x1b\\n"


MULTIBOOT = struct.pack("<III", 0x1BADB002, 3, -(0x1BADB002 + 3) & 0xFFFFFFFF)
BOOTABLE = bytes(510) + b"\x55\xaa"


@pytest.mark.parametrize(
    ("size", "head", "volume", "kind"),
    [
        (1 << 20, BOOTABLE, b"CD001", "cdrom"),  # a hybrid image has a boot sector too
        (1474560, BOOTABLE, b"", "floppy"),
        (163840, b"", b"", "floppy"),
        (1474561, BOOTABLE, b"", "disk"),
        (8 << 20, BOOTABLE[:0x202].ljust(0x202, b"\0") + b"HdrS", b"", "kernel"),
        (9999, b"\x7fELF\x02", b"", "kernel"),
        (9999, bytes(4000) + MULTIBOOT, b"", "kernel"),
        (9999, bytes(4002) + MULTIBOOT, b"", "disk"),
        (9999, BOOTABLE + MULTIBOOT, b"", "disk"),
        (9999, b"", b"", "disk"),
    ],
)
def test_images_are_told_by_their_content(size: int, head: bytes, volume: bytes, kind: str) -> None:
    assert kind_of(size, head, volume) == kind
