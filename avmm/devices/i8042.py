"""The keyboard controller of a PC/AT with a PS/2 auxiliary port: Intel 8042 at ports 60h and 64h, and system port A (92h).

Follows the IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller", and IBM's AT
Technical Reference for the scan code translation and the output port. A keyboard and a wheel mouse are plugged in.

Invariant: there is one output buffer. It holds at most one byte; IRQ 1 or 12 is high exactly while a byte for it is there and
the command byte allows the interrupt; and no byte of a device is lost: a controller's reply that pushes one aside gives it back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from avmm.clock import MICROSECOND
from avmm.devices.device import Board, Device, PortRange
from avmm.devices.ps2_keyboard import KeyboardState, Ps2Keyboard
from avmm.devices.ps2_mouse import MouseState, Ps2Mouse

DATA, COMMAND, SYSTEM_A = 0x60, 0x64, 0x92

# Status register. AUX and TIMEOUT also mark a byte on its way, and CONTROLLER what the controller itself says.
OBF, SYS, CMD, UNLOCKED, AUX, TIMEOUT, CONTROLLER = 0x01, 0x04, 0x08, 0x10, 0x20, 0x40, 0x100

# Command byte.
KBD_INT, AUX_INT, KBD_OFF, AUX_OFF, TRANSLATE = 0x01, 0x02, 0x10, 0x20, 0x40

POWER_ON = TRANSLATE | AUX_OFF | KBD_INT
"""Command byte after power-on: good enough for a guest that was loaded without firmware."""

GAP = 100 * MICROSECOND
"""From the read of one byte to the next byte of a device: what makes each byte an interrupt edge of its own."""

REPLIES = 16
LOW_WATER = 1024

_TRANSLATED = """
ff 43 41 3f 3d 3b 3c 58 64 44 42 40 3e 0f 29 59   65 38 2a 70 1d 10 02 5a 66 71 2c 1f 1e 11 03 5b
67 2e 2d 20 12 05 04 5c 68 39 2f 21 14 13 06 5d   69 31 30 23 22 15 07 5e 6a 72 32 24 16 08 09 5f
6b 33 25 17 18 0b 0a 60 6c 34 35 26 27 19 0c 61   6d 73 28 74 1a 0d 62 6e 3a 36 1c 1b 75 2b 63 76
55 56 77 78 79 7a 0e 7b 7c 4f 7d 4b 47 7e 7f 6f   52 53 50 4c 4d 48 01 45 57 4e 51 4a 37 49 46 54
80 81 82 41 54
"""
TRANSLATION = bytes.fromhex(_TRANSLATED) + bytes(range(0x85, 0x100))
"""What a byte of the keyboard becomes with translation on; after F0 (which is swallowed) with bit 7 set."""

# Fixed bits of the ports that the controller shows with C0, D0 and E0.
_INPUT_PORT = 0xB0  # not locked, no manufacturing jumper, 512K on board
_OUTPUT_PORT = 0xCD  # clocks and data lines up, not in reset
_TEST_INPUTS = 0x03


class I8042(Device):
    """Keyboard controller with keyboard and mouse; the host types with :meth:`press` and :meth:`release` and moves with :meth:`mouse`."""

    name = "keyboard"
    ports = (PortRange(DATA, 1), PortRange(COMMAND, 1), PortRange(SYSTEM_A, 1))

    @dataclass(frozen=True)
    class State:
        """A saved controller with what is plugged in; ``due`` in ns of machine time."""

        version: int = 1
        ctr: int = POWER_ON
        ram: bytes = bytes(32)
        data: int = 0
        mark: int = 0
        full: bool = False
        last_was_command: bool = False
        expect: int | None = None
        replies: tuple[tuple[int, int], ...] = ()
        displaced: tuple[int, int] | None = None
        a20: bool = True
        due: int | None = None
        keyboard: KeyboardState = field(default_factory=KeyboardState)
        mouse: MouseState = field(default_factory=MouseState)

    def __init__(self, board: Board, *, keyboard: bool = True, mouse: bool = True, patient: bool = True) -> None:
        super().__init__(board)
        self.keyboard = Ps2Keyboard(patient=patient)
        self.aux = Ps2Mouse(board.clock, self._next)
        self.has_keyboard = keyboard
        self.has_mouse = mouse
        self.on_a20: Callable[[bool], None] = _ignore
        """Called when the A20 gate opens (True) or closes."""
        self.on_room: Callable[[], None] = _nothing
        """Called when the last waiting key event has entered the keyboard, or the queue has sunk to 1024."""
        self._irq1 = board.line(1)
        self._irq12 = board.line(12)
        self._gap = board.clock.timer(self._next)
        self._a20 = True
        self.reset()

    def reset(self) -> None:
        self.keyboard.reset()
        self.aux.reset()
        self._queued = 0
        self.ctr = POWER_ON
        self._ram = bytearray(32)
        self._data = 0
        self._mark = 0
        self._full = False
        self._last_was_command = False
        self._expect: int | None = None
        self._replies: deque[tuple[int, int]] = deque()
        self._displaced: tuple[int, int] | None = None
        self._gap.cancel()
        self._gate(True)
        self._lines()

    # -- the host

    def press(self, key: str) -> bool:
        """Press ``key`` (again, for a repeat). False when 4096 events wait; ValueError when no key is called so."""
        return self._typed(self.has_keyboard and self.keyboard.press(key))

    def release(self, key: str) -> bool:
        """Let ``key`` go. False when it was not down."""
        return self._typed(self.has_keyboard and self.keyboard.release(key))

    def _typed(self, taken: bool) -> bool:
        self._queued = self.queued
        self._next()
        return taken

    def mouse(self, dx: int, dy: int, dz: int = 0, buttons: int | None = None) -> None:
        """Move the mouse: counts right, down and wheel up; ``buttons`` bit 0 left, 1 right, 2 middle, 3 and 4 side (None: as before)."""
        if self.has_mouse:
            self.aux.move(dx, dy, dz, buttons)

    @property
    def queued(self) -> int:
        """Key events that wait for room in the keyboard (or for the guest to let it scan)."""
        return len(self.keyboard.queue)

    @property
    def idle(self) -> bool:
        """Whether the guest has read everything that was typed and moved."""
        on_its_way = self._displaced is not None or (self._full and not self._mark & CONTROLLER)
        return self.keyboard.idle and self.aux.idle and not on_its_way

    @property
    def a20(self) -> bool:
        """Whether the A20 gate is open. The 8042 and port 92h turn one gate; the last to say has it."""
        return self._a20

    def _gate(self, open_: bool) -> None:
        if open_ != self._a20:
            self._a20 = open_
            self.on_a20(open_)

    # -- the output buffer

    def _next(self) -> None:
        """Show the next byte, when the buffer is empty and the last one has been gone for a while."""
        if self._full or self._gap.armed:
            return
        if self._replies:
            self._load(*self._replies.popleft())
        elif self._displaced is not None:
            displaced, self._displaced = self._displaced, None
            self._load(*displaced)
        elif self.keyboard.ready and not self.ctr & KBD_OFF:
            self._load(self._from_keyboard(), 0)
            self._check_room()
        elif self.aux.ready and not self.ctr & AUX_OFF:
            self._load(self.aux.take(), AUX)

    def _from_keyboard(self) -> int:
        byte = self.keyboard.take()
        if not self.ctr & TRANSLATE:
            return byte
        if byte == 0xF0 and self.keyboard.ready:
            return TRANSLATION[self.keyboard.take()] | 0x80
        return TRANSLATION[byte]

    def _check_room(self) -> None:
        before, self._queued = self._queued, self.queued
        if self._queued < before and (not self._queued or self._queued <= LOW_WATER < before):
            self.on_room()

    def _load(self, value: int, mark: int) -> None:
        self._data, self._mark, self._full = value, mark, True
        self._lines()

    def _reply(self, value: int, mark: int = 0) -> None:
        """Answer for the controller itself: at once, before any device."""
        mark |= CONTROLLER
        if self._full and self._mark & CONTROLLER:
            if len(self._replies) < REPLIES:
                self._replies.append((value, mark))
            return
        if self._full:
            self._displaced = (self._data, self._mark)
        self._load(value, mark)

    def _lines(self) -> None:
        """Drive both lines. A controller's own reply is silent while its interface is off: drivers turn it off to ask in peace."""
        full, mark, ctr = self._full, self._mark, self.ctr
        own = mark & CONTROLLER
        self._irq1.set(bool(full and not mark & AUX and ctr & KBD_INT and not (own and ctr & KBD_OFF)))
        self._irq12.set(bool(full and mark & AUX and ctr & AUX_INT and not (own and ctr & AUX_OFF)))

    # -- ports

    def read(self, port: int, size: int) -> int:
        if port == DATA:
            if self._full:
                self._full = False
                self._lines()
                self._gap.arm(self.clock.now() + GAP)
            return self._data
        if port == COMMAND:
            return self._status()
        return self._a20 << 1 if port == SYSTEM_A else 0xFF

    def _status(self) -> int:
        due = self._gap.due
        if due is not None and self.clock.now() >= due:  # a driver that polls sees the byte even before the timer is served
            self._gap.cancel()
            self._next()
        status = UNLOCKED | self.ctr & SYS | (CMD if self._last_was_command else 0)
        return status | OBF | self._mark & (AUX | TIMEOUT) if self._full else status

    def write(self, port: int, size: int, value: int) -> None:
        if port == SYSTEM_A:
            self._gate(bool(value & 2))
            if value & 1:
                self.board.reset("port 92h")
        elif port == COMMAND:
            self._last_was_command = True
            self._expect = None
            self._execute(value)
        elif port == DATA:
            self._last_was_command = False
            expect, self._expect = self._expect, None
            if expect is None:
                self._to_keyboard(value)
            else:
                self._operand(expect, value)

    def _to_keyboard(self, value: int) -> None:
        self.ctr &= ~KBD_OFF  # sending opens the interface
        if not self.has_keyboard:
            self._reply(0xFE, TIMEOUT)
            return
        self.keyboard.write(value)
        self._answered()
        self._check_room()

    def _to_mouse(self, value: int) -> None:
        self.ctr &= ~AUX_OFF
        if not self.has_mouse:
            self._reply(0xFE, AUX | TIMEOUT)
            return
        self.aux.write(value)
        self._answered()

    def _answered(self) -> None:
        """A device was spoken to: its answer does not wait for the gap."""
        self._gap.cancel()
        self._lines()
        self._next()

    def _set_ctr(self, value: int) -> None:
        self.ctr = value
        self._lines()
        self._next()

    def _execute(self, command: int) -> None:
        """Carry out a byte written to port 64h."""
        if 0x20 <= command < 0x40:
            self._reply(self._ram[command & 0x1F] if command != 0x20 else self.ctr)
        elif 0x60 <= command < 0x80 or command in (0xD1, 0xD2, 0xD3, 0xD4):
            self._expect = command
        elif command in (0xA7, 0xA8):
            self._set_ctr(self.ctr | AUX_OFF if command == 0xA7 else self.ctr & ~AUX_OFF)
        elif command in (0xAD, 0xAE):
            self._set_ctr(self.ctr | KBD_OFF if command == 0xAD else self.ctr & ~KBD_OFF)
        elif command in (0xA9, 0xAB):
            self._reply(0x00)  # clock and data lines are well
        elif command == 0xAA:
            self.ctr |= SYS
            self._reply(0x55)
        elif command == 0xC0:
            self._reply(_INPUT_PORT)
        elif command == 0xD0:
            self._reply(self._output_port())
        elif command in (0xDD, 0xDF):
            self._gate(command == 0xDF)
        elif command == 0xE0:
            self._reply(_TEST_INPUTS & ~(self.ctr >> 4 & 1))
        elif command >= 0xF0:
            if not command & 1:  # pulse the low bits of the output port that are zero; bit 0 is the processor's reset
                self.board.reset("keyboard controller")
        else:
            self.board.trace("i8042: unknown command", command=command)

    def _operand(self, command: int, value: int) -> None:
        """Carry out a command that waited for its byte at port 60h."""
        if command == 0x60:
            self._set_ctr(value)
        elif command < 0x80:
            self._ram[command & 0x1F] = value
        elif command == 0xD1:
            self._gate(bool(value & 2))
            if not value & 1:
                self.board.reset("keyboard controller")
        elif command == 0xD2:
            self._reply(value)
        elif command == 0xD3:
            self._reply(value, AUX)
        else:
            self._to_mouse(value)

    def _output_port(self) -> int:
        kind = 0
        if self._full:
            kind = 0x20 if self._mark & AUX else 0x10
        return _OUTPUT_PORT | self._a20 << 1 | kind

    # -- saved state

    def save(self) -> State:
        return self.State(
            ctr=self.ctr, ram=bytes(self._ram), data=self._data, mark=self._mark, full=self._full,
            last_was_command=self._last_was_command, expect=self._expect, replies=tuple(self._replies), displaced=self._displaced,
            a20=self._a20, due=self._gap.due, keyboard=self.keyboard.save(), mouse=self.aux.save(),
        )  # fmt: skip

    def restore(self, state: Any) -> None:
        if not isinstance(state, self.State) or state.version != 1 or len(state.ram) != 32:
            raise ValueError("this is not a keyboard controller state of version 1")
        self.keyboard.restore(state.keyboard)
        self.aux.restore(state.mouse)
        self._queued = self.queued
        self.ctr, self._ram = state.ctr, bytearray(state.ram)
        self._data, self._mark, self._full = state.data, state.mark, state.full
        self._last_was_command, self._expect = state.last_was_command, state.expect
        self._replies, self._displaced = deque(state.replies), state.displaced
        self._gap.cancel()
        if state.due is not None:
            self._gap.arm(state.due)
        self._a20 = state.a20
        self.on_a20(state.a20)
        self._lines()


def _ignore(level: bool) -> None:
    pass


def _nothing() -> None:
    pass
