"""From the keys of a terminal to those of a PC keyboard, and the console's own commands behind a prefix key.

A terminal sends characters and escape sequences, without key releases; prompt_toolkit names them ("c-x", "s-left", "f5").
The invariant: :class:`KeyRouter` does no I/O; each key that goes in comes out as events, in order, exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass

from avmm.devices.keys import KEYS, for_text

PREFIX = "c-a"
COMMANDS = {
    "h": "help", "?": "help", "x": "quit", "r": "reset", "s": "screenshot", "b": "power button", "p": "pause", "d": "ctrl-alt-del",
    "t": "serial", "c": "command line", "[": "scroll back", "v": "path", "a": "literal", PREFIX: "literal",
}  # fmt: skip
HELP = (
    ("x", "quit: switch the machine off"),
    ("h", "this help"),
    ("p", "pause, go on"),
    ("r", "reset"),
    ("b", "press the power button (ACPI)"),
    ("d", "Ctrl-Alt-Delete"),
    ("s", "save a screenshot"),
    ("t", "the serial line, and back to the screen"),
    ("c", "command line: stop, install, info, x ...; Tab completes"),
    ("v", "the path of what happens now, with its rates"),
    ("[", "scroll back: PgUp, PgDn, q leaves"),
    ("Ctrl-a", "Ctrl-a for the guest"),
)

_NAMED = {
    "c-m": "ret", "c-j": "ret", "c-i": "tab", "c-h": "backspace", "escape": "esc", "pageup": "pgup", "pagedown": "pgdn", "c-@": "c-2",
    "c-\\": "c-backslash", "c-]": "c-bracket_right", "c-^": "c-6", "c-_": "c-minus",
}  # fmt: skip
_PREFIXES = {"c": "ctrl", "s": "shift"}


@dataclass(frozen=True, slots=True)
class Chord:
    """Keys of the PC keyboard pressed together; ``data`` is what the terminal sent."""

    keys: tuple[str, ...]
    data: str


@dataclass(frozen=True, slots=True)
class Text:
    """Text to type, such as what was pasted."""

    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command to the console, or a key behind the prefix that means nothing ("")."""

    name: str
    key: str


Event = Chord | Text | Command


def chord(key: str) -> tuple[str, ...] | None:
    """Return the PC keys that a terminal's key stands for, modifiers first; None when there are none."""
    if len(key) == 1:
        return None
    modifiers: list[str] = []
    name = _NAMED.get(key, key)
    while len(name) > 2 and name[1] == "-" and name[0] in _PREFIXES:
        modifiers.append(_PREFIXES[name[0]])
        name = _NAMED.get(name[2:], name[2:])
    if name[:1] == "f" and name[1:].isdigit() and 13 <= int(name[1:]) <= 24:  # how terminals say Shift and a function key
        modifiers.append("shift")
        name = f"f{int(name[1:]) - 12}"
    return (*modifiers, name) if name in KEYS else None


class KeyRouter:
    """Key presses in, events out. The key after Escape may come at once (then it was Alt) or later: :meth:`flush` decides."""

    def __init__(self, prefix: str = PREFIX) -> None:
        self.prefix = prefix
        self.waiting = False
        """Whether the prefix was pressed and its command is to come."""
        self._escape = False

    def feed(self, key: str, data: str) -> list[Event]:
        """Take one key press by prompt_toolkit's name; ``data`` is what the terminal sent."""
        if self.waiting:
            self.waiting = False
            return self._command(key, data)
        if self._escape:
            self._escape = False
            if key == "escape":
                self._escape = True
                return self._plain("escape", "\x1b")
            return self._with_alt(key, data)
        if key == self.prefix:
            self.waiting = True
            return []
        if key == "escape":
            self._escape = True
            return []
        return self._plain(key, data)

    def flush(self) -> list[Event]:
        """No more keys came at once: an Escape that waits was the Escape key."""
        if not self._escape:
            return []
        self._escape = False
        return self._plain("escape", "\x1b")

    def _command(self, key: str, data: str) -> list[Event]:
        name = COMMANDS.get(key, "") if key != self.prefix else "literal"
        return self._plain(self.prefix, data if key == self.prefix else "\x01") if name == "literal" else [Command(name, key)]

    def _plain(self, key: str, data: str) -> list[Event]:
        if len(key) == 1:
            return [Text(key)]
        keys = chord(key)
        return [Chord(keys, data)] if keys is not None else []

    def _with_alt(self, key: str, data: str) -> list[Event]:
        keys = chord(key)
        if keys is None and len(key) == 1:
            keys = _char_keys(key)
        return [Chord(("alt", *keys), "\x1b" + data)] if keys is not None else self._plain("escape", "\x1b")


def _char_keys(char: str) -> tuple[str, ...] | None:
    """The keys held together for one character, if it is on the keyboard."""
    try:
        pressed = [key for key, down in for_text(char) if down]
    except ValueError:
        return None
    return tuple(pressed) if len(pressed) <= 2 else None
