"""The PS/2 keyboard on the far end of the 8042's cable: commands, scan code sets and the 16-byte buffer.

Follows the IBM PS/2 Hardware Interface Technical Reference, "Keyboards (101- and 102-key)": commands from and to the
system, scan code sets 1 to 3. It speaks its own set; translation to set 1 is the controller's work.

Invariant: what a person presses and lets go is never half lost. A scan code enters the 16-byte buffer whole or waits in
front of it, and when the guest clears the buffer the releases in it are sent again, so that no key stays down.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from avmm.devices.keys import BREAK, KEYS, PRINT_SHIFTED, Key, find

ACK, RESEND, ECHO, BAT_OK = 0xFA, 0xFE, 0xEE, 0xAA
BUFFER = 16
REPLIES = 32
QUEUE = 4096

# What a key does in set 3 (commands F7 to FD).
_BREAKS, _REPEATS = 1, 2
_BREAKS3 = frozenset(bytes.fromhex("1112145919"))
_MAKE_ONLY3 = frozenset(bytes.fromhex("58 39 79 77 7e 84 76 5f 62 57 6e 65 6f 6d 67 08 07 0f 17 1f 27 2f 37 3f 47 4f 56 5e"))

_SET_ALL = {0xF7: _REPEATS, 0xF8: _BREAKS, 0xF9: 0, 0xFA: _BREAKS | _REPEATS}
_SET_KEY = {0xFB: _REPEATS, 0xFC: _BREAKS, 0xFD: 0}
_DEFAULT_RATE = 0x2B


def _default_kind(code: int) -> int:
    if code in _BREAKS3:
        return _BREAKS
    return 0 if code in _MAKE_ONLY3 else _REPEATS


@dataclass(frozen=True)
class KeyboardState:
    """A saved keyboard."""

    version: int = 1
    scanning: bool = True
    scan_set: int = 2
    leds: int = 0
    rate: int = _DEFAULT_RATE
    command: int | None = None
    last: int = 0
    kinds: tuple[tuple[int, int], ...] = ()
    all_kinds: int | None = None
    replies: bytes = b""
    buffer: tuple[tuple[int, str], ...] = ()
    queue: tuple[tuple[str, bool], ...] = ()
    held: tuple[str, ...] = ()
    down: tuple[tuple[str, str], ...] = ()


class Ps2Keyboard:
    """A keyboard without a clock: bytes in by :meth:`write`, bytes out by :meth:`take` while :attr:`ready`."""

    def __init__(self, *, patient: bool = True) -> None:
        self.patient = patient
        """Whether keys wait for room in the 16-byte buffer; otherwise they overrun it, as fingers do."""
        self.reset()

    def reset(self) -> None:
        """Power on. Nothing typed before is kept."""
        self.queue: deque[tuple[str, bool]] = deque()
        self.held: dict[str, None] = {}
        self._replies: deque[int] = deque()
        self._buffer: deque[tuple[int, str]] = deque()  # byte, and the name of the key whose release ends with it
        self._down: dict[str, str] = {}  # keys down as the guest was told, and what they pretended to be
        self._last = 0
        self.leds = 0
        """Bit 0 Scroll Lock, bit 1 Num Lock, bit 2 Caps Lock."""
        self._defaults()
        self.scanning = True

    def _defaults(self) -> None:
        self._command: int | None = None
        self.scan_set = 2
        self.rate = _DEFAULT_RATE
        self._all_kinds: int | None = None
        self._kinds: dict[int, int] = {}

    # -- the person

    def press(self, name: str) -> bool:
        """Press a key, or repeat one that is held. False when 4096 events wait already; ValueError for no such key."""
        key = find(name)
        if len(self.queue) >= QUEUE:
            return False
        self.held[key.name] = None
        self._put(key.name, True)
        return True

    def release(self, name: str) -> bool:
        """Let a key go. False when it is not held (or its press was refused); a release is never refused for want of room."""
        key = find(name)
        if key.name not in self.held:
            return False
        del self.held[key.name]
        self._put(key.name, False)
        return True

    def _put(self, name: str, pressed: bool) -> None:
        if self.patient:
            self.queue.append((name, pressed))
            self._fill()
        elif self.scanning:
            self._scan(name, pressed, self._codes(name, pressed))

    def _fill(self) -> None:
        """Move events from the person's queue to the buffer while whole scan codes fit."""
        while self.queue and self.scanning:
            name, pressed = self.queue[0]
            codes = self._codes(name, pressed)
            if len(self._buffer) + len(codes) > BUFFER:
                return
            self.queue.popleft()
            self._scan(name, pressed, codes)

    def _codes(self, name: str, pressed: bool) -> bytes:
        """What the event sends, in the set in force."""
        key = self._variant(name, pressed)
        index = self.scan_set - 1
        if index == 2 and key.make[2]:
            kind = self._kind(key.make[2][0])
            if (pressed and name in self._down and not kind & _REPEATS) or (not pressed and not kind & _BREAKS):
                return b""
        return key.make[index] if pressed else key.release[index]

    def _variant(self, name: str, pressed: bool) -> Key:
        """Print Screen and Pause are other keys with Ctrl, Shift or Alt; a release undoes what the press was."""
        down = self._down
        pretended = down.get(name, "") if not pressed or name in down else self._pretend(name)
        if pretended == "shifted":
            return PRINT_SHIFTED
        if pretended == "break":
            return BREAK
        return KEYS[pretended or name]

    def _pretend(self, name: str) -> str:
        down = self._down
        ctrl = "ctrl" in down or "ctrl_r" in down
        if name == "pause" and ctrl:
            return "break"
        if name == "print":
            if "alt" in down or "alt_r" in down:
                return "sysrq"
            if ctrl or "shift" in down or "shift_r" in down:
                return "shifted"
        return ""

    def _kind(self, code: int) -> int:
        if code in self._kinds:
            return self._kinds[code]
        return _default_kind(code) if self._all_kinds is None else self._all_kinds

    def _scan(self, name: str, pressed: bool, codes: bytes) -> None:
        if not pressed:
            self._down.pop(name, None)
        elif name not in self._down:
            self._down[name] = self._pretend(name)
        if len(self._buffer) + len(codes) > BUFFER:
            # The overrun code takes the place behind the last one, once.
            if len(self._buffer) <= BUFFER and (not self._buffer or self._buffer[-1][1] != "overrun"):
                self._buffer.append((0xFF if self.scan_set == 1 else 0x00, "overrun"))
            return
        self._buffer.extend((code, "") for code in codes)
        if codes and not pressed:
            self._buffer[-1] = (codes[-1], name)

    # -- the wire to the controller

    @property
    def ready(self) -> bool:
        """Whether :meth:`take` has a byte. Between a command and its option the keyboard sends no scan codes."""
        return bool(self._replies) or (bool(self._buffer) and self._command is None)

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be sent."""
        return not (self._replies or self._buffer or self.queue)

    def take(self) -> int:
        """Return the next byte for the controller, replies first."""
        if self._replies:
            byte = self._replies.popleft()
        else:
            byte = self._buffer.popleft()[0]
            self._fill()
        if byte != RESEND:
            self._last = byte
        return byte

    def _reply(self, *codes: int) -> None:
        if len(self._replies) + len(codes) <= REPLIES:
            self._replies.extend(codes)

    def _clear(self) -> None:
        """Forget the buffer; the releases in it go back to the head of the queue."""
        for _, name in reversed(self._buffer):
            if name and name != "overrun":
                self.queue.appendleft((name, False))
        self._buffer.clear()

    def write(self, value: int) -> None:
        """Take a byte from the controller: a command, or the option of the one before."""
        command = self._command
        # FBh-FDh take one code after another until a command comes; every other option is a single byte.
        if command is not None and value < 0xED and self._option(command, value):
            return
        self._command = None
        self._execute(value)
        self._fill()

    def _option(self, command: int, value: int) -> bool:
        if command in _SET_KEY:
            self._kinds[value] = _SET_KEY[command]
            self._reply(ACK)
            return True
        self._command = None
        if command == 0xED and value < 0x80:
            self.leds = value & 7
        elif command == 0xF3 and value < 0x80:
            self.rate = value
        elif command == 0xF0 and value == 0:
            self._reply(ACK, self.scan_set)
            return True
        elif command == 0xF0 and value <= 3:
            self._clear()
            self.scan_set = value
        else:
            return False
        self._reply(ACK)
        self._fill()
        return True

    def _execute(self, value: int) -> None:
        if value == 0xFF:
            self._replies.clear()
            self._clear()
            self._defaults()
            self.leds = 0
            self.scanning = True
            self._reply(ACK, BAT_OK)
        elif value == 0xFE:
            self._reply(self._last)
        elif value == 0xEE:
            self._reply(ECHO)
        elif value in (0xED, 0xF0, 0xF3) or value in _SET_KEY:
            self._command = value
            self._reply(ACK)
        elif value == 0xF2:
            self._reply(ACK, 0xAB, 0x83)
        elif value in (0xF4, 0xF5, 0xF6):
            self._clear()
            if value != 0xF4:
                self._defaults()
            self.scanning = value != 0xF5
            self._reply(ACK)
        elif value in _SET_ALL:
            self._all_kinds = _SET_ALL[value]
            self._kinds.clear()
            self._reply(ACK)
        else:
            self._reply(RESEND)

    # -- saved state

    def save(self) -> KeyboardState:
        """Return the state; the queue in front of the keyboard is part of it."""
        return KeyboardState(
            scanning=self.scanning, scan_set=self.scan_set, leds=self.leds, rate=self.rate, command=self._command, last=self._last,
            kinds=tuple(self._kinds.items()), all_kinds=self._all_kinds, replies=bytes(self._replies), buffer=tuple(self._buffer),
            queue=tuple(self.queue), held=tuple(self.held), down=tuple(self._down.items()),
        )  # fmt: skip

    def restore(self, state: KeyboardState) -> None:
        """Continue from a saved state."""
        if state.version != 1 or state.scan_set not in (1, 2, 3):
            raise ValueError(f"this is not a keyboard state of version 1: version {state.version}, scan code set {state.scan_set}")
        self.scanning, self.scan_set, self.leds, self.rate = state.scanning, state.scan_set, state.leds, state.rate
        self._command, self._last = state.command, state.last
        self._kinds, self._all_kinds = dict(state.kinds), state.all_kinds
        self._replies, self._buffer = deque(state.replies), deque(state.buffer)
        self.queue, self.held, self._down = deque(state.queue), dict.fromkeys(state.held), dict(state.down)
