"""Int 9 (IRQ 1) and int 16h: from scan codes of set 1 to key words in the ring buffer at 0040:001E, and out again.

IBM PS/2 and PC BIOS Interface Technical Reference, interrupts 09h and 16h. The invariant: all state (shift keys, E0 prefix,
the ring) is in the BIOS data area; a full ring drops the new key and never an old one.
"""

from __future__ import annotations

from collections.abc import Callable

from avmm.boot.bios import bda, keymap
from avmm.boot.bios.caller import Caller
from avmm.memory import GuestMemory

# 0040:0017
RIGHT_SHIFT, LEFT_SHIFT, CTRL, ALT, SCROLL, NUM, CAPS, INSERT = (1 << bit for bit in range(8))
# 0040:0018 low: left Ctrl, left Alt, SysReq; PAUSED; the upper four tell which lock key is held down
LEFT_CTRL, LEFT_ALT, SYSREQ, PAUSED = 0x01, 0x02, 0x04, 0x08
# 0040:0096
LAST_E1, LAST_E0, RIGHT_CTRL, RIGHT_ALT, ENHANCED = 0x01, 0x02, 0x04, 0x08, 0x10

_SHIFTS = {0x2A: LEFT_SHIFT, 0x36: RIGHT_SHIFT, 0x1D: CTRL, 0x38: ALT}
_LOCKS = {0x46: SCROLL, 0x45: NUM, 0x3A: CAPS}

BREAK_VECTOR, PRINT_SCREEN_VECTOR, ENTER_PAUSE = 0x1B, 0x05, 0xFF
"""What int 9 asks its stub to do next."""


class Keyboard:
    """The keyboard services. ``on_reset`` is called for Ctrl-Alt-Del."""

    def __init__(self, caller: Caller, memory: GuestMemory, on_reset: Callable[[], None]) -> None:
        self.caller = caller
        self.memory = memory
        self.on_reset = on_reset

    def _byte(self, address: int) -> int:
        return self.memory.read(address, 1)[0]

    def _set_byte(self, address: int, value: int) -> None:
        self.memory.write(address, bytes((value & 0xFF,)))

    def _change(self, address: int, mask: int, on: bool) -> None:
        value = self._byte(address)
        self._set_byte(address, value | mask if on else value & ~mask)

    # -- int 9

    def interrupt(self) -> None:
        """Take the scan code in AL; AL becomes the vector the stub is to call, or 0."""
        self.caller["al"] = self.scan(self.caller["al"])

    def paused(self) -> None:
        """AL = 1 while Pause holds the machine."""
        self.caller["al"] = int(bool(self._byte(bda.KEY_STATES) & PAUSED))

    def scan(self, code: int) -> int:
        """Work on one byte of scan code set 1; return what int 9 has to call."""
        if code in (0xE0, 0xE1):
            self._change(bda.KEY_MODE, LAST_E0 if code == 0xE0 else LAST_E1, True)
            return 0
        if code in (0xFA, 0xFE):  # ACK, resend: answers to a command, not keys
            self._change(bda.KEY_LEDS, 0x10 if code == 0xFA else 0x20, True)
            return 0
        mode = self._byte(bda.KEY_MODE)
        extended = bool(mode & LAST_E0)
        if mode & LAST_E1:  # Pause: E1 1D 45 E1 9D C5
            if code & 0x7F != 0x1D:
                self._change(bda.KEY_MODE, LAST_E1, False)
            if code == 0x45:
                self._change(bda.KEY_STATES, PAUSED, True)
                return ENTER_PAUSE
            return 0
        self._change(bda.KEY_MODE, LAST_E0, False)
        key, make = code & 0x7F, code < 0x80
        if extended and key in (0x2A, 0x36):
            return 0  # the shifts a 101-key keyboard sends around its grey keys
        if key in _SHIFTS:
            self._shift(key, make, extended)
            return 0
        if key in _LOCKS and not extended and not self._is_break_or_pause(key):
            self._lock(_LOCKS[key], make)
            return 0
        if not make:
            if key == 0x52:
                self._change(bda.KEY_STATES, INSERT, False)
            return 0
        return self._make(key, extended)

    def _is_break_or_pause(self, key: int) -> bool:
        return key in (0x45, 0x46) and bool(self._byte(bda.KEY_FLAGS) & CTRL)

    def _shift(self, key: int, make: bool, extended: bool) -> None:
        mask = _SHIFTS[key]
        if key in (0x1D, 0x38):
            address, left, right = bda.KEY_STATES, LEFT_CTRL if key == 0x1D else LEFT_ALT, RIGHT_CTRL if key == 0x1D else RIGHT_ALT
            self._change(bda.KEY_MODE if extended else address, right if extended else left, make)
            make = make or bool(self._byte(address) & left or self._byte(bda.KEY_MODE) & right)
        self._change(bda.KEY_FLAGS, mask, make)
        if key == 0x38 and not make and (character := self._byte(bda.ALT_KEYPAD)):
            self._set_byte(bda.ALT_KEYPAD, 0)
            self.store(character)  # Alt and digits: the character by its number, scan code 0

    def _lock(self, mask: int, make: bool) -> None:
        held = self._byte(bda.KEY_STATES) & mask
        if make and not held:  # typematic repeats do not toggle
            self._set_byte(bda.KEY_FLAGS, self._byte(bda.KEY_FLAGS) ^ mask)
        self._change(bda.KEY_STATES, mask, make)

    def _make(self, key: int, extended: bool) -> int:
        flags = self._byte(bda.KEY_FLAGS)
        if self._byte(bda.KEY_STATES) & PAUSED:
            self._change(bda.KEY_STATES, PAUSED, False)  # the key that ends Pause is swallowed
            return 0
        if key == 0x53 and flags & (CTRL | ALT) == CTRL | ALT:
            self.memory.pack("<H", bda.RESET_FLAG, 0x1234)
            self.on_reset()
            return 0
        if key == 0x46 and flags & CTRL:  # Ctrl-Break empties the buffer and leaves one zero word
            start = self.memory.unpack("<H", bda.KEY_BUFFER_START_POINTER)[0]
            self.memory.pack("<HH", bda.KEY_HEAD, start, start)
            self._change(bda.BREAK, 0x80, True)
            self.store(0)
            return BREAK_VECTOR
        if key == 0x45 and flags & CTRL:
            self._change(bda.KEY_STATES, PAUSED, True)
            return ENTER_PAUSE
        if key == 0x37 and (extended or flags & (LEFT_SHIFT | RIGHT_SHIFT)) and not flags & ALT:
            if extended and flags & CTRL:
                self.store(0x7200)
                return 0
            return PRINT_SCREEN_VECTOR
        word = self._word(key, extended, flags)
        if word is not None:
            self.store(word)
        return 0

    def _word(self, key: int, extended: bool, flags: int) -> int | None:
        shift = bool(flags & (LEFT_SHIFT | RIGHT_SHIFT))
        if key == 0x52 and not flags & ALT and not (not extended and bool(flags & NUM) != shift):
            if not self._byte(bda.KEY_STATES) & INSERT:
                self._set_byte(bda.KEY_FLAGS, self._byte(bda.KEY_FLAGS) ^ INSERT)
            self._change(bda.KEY_STATES, INSERT, True)
        if extended:
            words = keymap.EXTENDED.get(key)
            return words[3 if flags & ALT else 2 if flags & CTRL else 1 if shift else 0] if words else None
        if key in keymap.KEYPAD:
            plain, digit, ctrl = keymap.KEYPAD[key]
            if flags & ALT:
                if key in keymap.KEYPAD_DIGITS:
                    self._set_byte(bda.ALT_KEYPAD, self._byte(bda.ALT_KEYPAD) * 10 + keymap.KEYPAD_DIGITS[key])
                return None
            return ctrl if flags & CTRL else digit if bool(flags & NUM) != shift else plain
        if flags & ALT:
            return keymap.ALT.get(key)
        if flags & CTRL:
            return keymap.CTRL.get(key)
        if key in keymap.LETTERS and flags & CAPS:
            shift = not shift
        return (keymap.SHIFT if shift else keymap.NORMAL).get(key)

    # -- the ring

    def store(self, word: int) -> bool:
        """Put a key word into the ring; False when it is full."""
        start, end = self.memory.unpack("<HH", bda.KEY_BUFFER_START_POINTER)
        head, tail = self.memory.unpack("<HH", bda.KEY_HEAD)
        after = tail + 2 if tail + 2 < end else start
        if after == head:
            return False
        self.memory.pack("<H", 0x400 + tail, word)
        self.memory.pack("<H", bda.KEY_TAIL, after)
        return True

    def _peek(self) -> int | None:
        head, tail = self.memory.unpack("<HH", bda.KEY_HEAD)
        return None if head == tail else self.memory.unpack("<H", 0x400 + head)[0]

    def _drop(self) -> None:
        start, end = self.memory.unpack("<HH", bda.KEY_BUFFER_START_POINTER)
        head = self.memory.unpack("<H", bda.KEY_HEAD)[0] + 2
        self.memory.pack("<H", bda.KEY_HEAD, head if head < end else start)

    def _next(self, enhanced: bool) -> int | None:
        """Return the first word the caller can see; an 83-key caller never sees those only a 101-key keyboard has."""
        for _ in range(256):  # bounded: the guest may have put anything into the pointers
            word = self._peek()
            if word is None:
                break
            seen = word if enhanced else _as_83_key(word)
            if seen is not None:
                return seen
            self._drop()
        return None

    # -- int 16h

    def call(self) -> None:
        """Int 16h. Waiting is done by the stub, which calls again after each interrupt."""
        caller = self.caller
        function = caller["ah"]
        caller.wait(False)
        if function in (0x00, 0x10, 0x20):
            word = self._next(function != 0)
            if word is None:
                caller.wait(True)
            else:
                self._drop()
                caller["ax"] = word
        elif function in (0x01, 0x11, 0x21):
            word = self._next(function != 1)
            caller.zero(word is None)
            if word is not None:
                caller["ax"] = word
        elif function == 0x02:
            caller["al"] = self._byte(bda.KEY_FLAGS)
        elif function in (0x12, 0x22):
            states, mode = self._byte(bda.KEY_STATES), self._byte(bda.KEY_MODE)
            caller["al"] = self._byte(bda.KEY_FLAGS)
            caller["ah"] = states & 0x73 | (states & SYSREQ) << 5 | mode & (RIGHT_CTRL | RIGHT_ALT)
        elif function == 0x05:
            caller["al"] = 0 if self.store(caller["cx"]) else 1
        elif function == 0x09:
            caller["al"] = 0x30  # 0Ah and 10h-12h are there
        elif function == 0x0A:
            caller["bx"] = 0x41AB  # as the keyboard answers F2h behind a translating i8042
        elif function == 0x92:
            caller["ah"] = 0x80  # 10h-12h are there (DOS KEYB asks)
        elif function == 0xA2:
            pass  # 20h-22h are not: AH unchanged


def _as_83_key(word: int) -> int | None:
    scan, character = word >> 8, word & 0xFF
    if scan == 0xE0:  # keypad Enter and /
        return (0x3500 if character == 0x2F else 0x1C00) | character
    if scan > 0x84 or (character == 0xF0 and scan):
        return None
    return scan << 8 if character == 0xE0 and scan else word
