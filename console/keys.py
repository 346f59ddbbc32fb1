"""From the keys of a terminal to those of a PC keyboard, and the console's own commands behind a prefix key.

A terminal sends characters and escape sequences, without key releases; prompt_toolkit names them ("c-x", "s-left", "f5").
The invariant: :class:`KeyRouter` does no I/O; each key that goes in comes out as events, in order, exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass

from avmm.devices.keys import KEYS, for_text

PREFIX = "c-a"
COMMANDS = {
    "h": "help", "?": "help", "x": "quit", "c": "command line", "s": "commit", "b": "break", "n": "next", "p": "previous",
    "[": "scroll back", "d": "path", "t": "serial", "k": "key menu", "|": "split beside", "-": "split below", "o": "other pane",
    "u": "unsplit", " ": "pause", "r": "reset", "w": "power button", "delete": "ctrl-alt-del", "i": "picture", "m": "mouse",
    "escape": "drop", "z": "suspend", "l": "redraw", "a": "literal", **{str(n): "tab" for n in range(1, 10)},
}  # fmt: skip
HELP = (
    ("x", "leave: a machine started here is switched off, an attached one goes on"),
    ("h ?", "this help"),
    ("c", "command line: stop, install, info, top, trace ...; Tab completes"),
    ("d", "the path of what happens now, with its rates"),
    ("k", "the key menu: every key, alone or together with others"),
    ("t  1-9", "the serial line, and back to the screen; a tab by its number"),
    ("n p", "next machine, the one before"),
    ("| -", "split: another pane beside or below"),
    ("o u", "the other pane has the keys; only this pane"),
    ("[", "scroll back and copy: PgUp, PgDn, w writes a file, q leaves"),
    ("s", "commit: flush disks, write overlays into their images"),
    ("b", "a break on the serial line"),
    ("Space", "pause, go on"),
    ("r w", "reset; press the power button (ACPI)"),
    ("Delete", "Ctrl-Alt-Delete"),
    ("m", "the terminal's mouse is the guest's, or the terminal's own"),
    ("i", "save a picture of the screen"),
    ("Esc", "drop what was pasted and is not typed yet"),
    ("z l", "suspend the console; draw everything anew"),
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


def parse_prefix(given: str) -> str:
    """Return prompt_toolkit's name of a prefix such as ``Ctrl-b``, ``C-b``, ``^b`` or ``b``. ValueError for others."""
    lower = given.lower().removeprefix("^").removeprefix("ctrl-").removeprefix("ctrl+").removeprefix("c-")
    if len(lower) != 1 or not ("a" <= lower <= "z" or lower in "\\]^_") or lower in "mij":
        raise ValueError(f"{given!r} cannot be a prefix: choose Ctrl and a letter but i, j, m, such as Ctrl-b")
    return f"c-{lower}"


def prefix_name(prefix: str) -> str:
    """Return how people write the prefix."""
    return f"Ctrl-{prefix[2:]}"


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

    @property
    def escaped(self) -> bool:
        """Whether an Escape waits for what comes with it."""
        return self._escape

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
        if name != "literal":
            return [Command(name, key)]
        return self._plain(self.prefix, data if key == self.prefix else chr(ord(self.prefix[2].upper()) & 0x1F))

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
