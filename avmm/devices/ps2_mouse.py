"""The PS/2 mouse on the auxiliary port of the 8042: a wheel mouse that also speaks the two Microsoft extensions.

Follows the IBM PS/2 Hardware Interface Technical Reference (Mouse) for commands, packets and modes, and Microsoft's
IntelliMouse (id 3, wheel) and IntelliMouse Explorer (id 4, five buttons) knocks of sample rates.

Invariant: a packet leaves whole or not at all, at most one per sample period; when a command cuts one off, the next packet
carries the buttons again, and a press and its release never melt into one packet (while fewer than 256 changes wait).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from avmm.clock import SECOND, Clock

ACK, RESEND, ERROR, BAT_OK = 0xFA, 0xFE, 0xFC, 0xAA
REPLIES = 32
MOVES = 256
REACH = 4095
"""Counts kept for later packets in one direction; beyond it motion is lost and the packet says overflow."""

_RATES = frozenset((10, 20, 40, 60, 80, 100, 200))
_KNOCKS: dict[tuple[int, ...], tuple[int, tuple[int, ...]]] = {(200, 100, 80): (3, (0,)), (200, 200, 80): (4, (0, 3))}
_SCALED = (0, 1, 1, 3, 6, 9)


@dataclass(frozen=True)
class MouseState:
    """A saved mouse; ``next_sample`` and ``due`` in ns of machine time."""

    version: int = 1
    streaming: bool = True
    reporting: bool = False
    wrap: bool = False
    doubled: bool = False
    rate: int = 100
    resolution: int = 2
    ident: int = 0
    knock: tuple[int, ...] = ()
    command: int | None = None
    complained: bool = False
    replies: bytes = b""
    packet: bytes = b""
    last: bytes = b""
    moves: tuple[tuple[int, int, int, int, bool, bool], ...] = ()
    buttons: int = 0
    next_sample: int = 0
    due: int | None = None


@dataclass(slots=True)
class _Move:
    """Motion with the buttons as they were at its end; y up, z towards the person, as in the packets."""

    x: int
    y: int
    z: int
    buttons: int
    x_overflow: bool = False
    y_overflow: bool = False


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


class Ps2Mouse:
    """A mouse: bytes in by :meth:`write`, out by :meth:`take` while :attr:`ready`; ``on_data`` says that a packet is there."""

    def __init__(self, clock: Clock, on_data: Callable[[], None]) -> None:
        self._clock = clock
        self._on_data = on_data
        self._sampler = clock.timer(self._due)
        self.reset()

    def reset(self) -> None:
        """Power on."""
        self._replies: deque[int] = deque()
        self._moves: deque[_Move] = deque()
        self._packet = b""  # what is left of the packet on its way
        self._last = b""  # what a resend repeats
        self.buttons = 0
        self._next_sample = 0
        self._sampler.cancel()
        self.ident = 0
        self._knock: tuple[int, ...] = ()
        self._command: int | None = None
        self._complained = False
        self._defaults()

    def _defaults(self) -> None:
        self.rate, self.resolution, self.doubled = 100, 2, False
        self.streaming, self.reporting, self.wrap = True, False, False
        self._drop()

    # -- the hand

    def move(self, dx: int, dy: int, dz: int = 0, buttons: int | None = None) -> None:
        """Move by counts: x right, y down, z wheel away from the person; ``buttons`` bit 0 left, 1 right, 2 middle, 3 and 4 side."""
        buttons = self.buttons if buttons is None else buttons & 0x1F
        if not (dx or dy or dz) and buttons == self.buttons:
            return
        clicked = buttons != self.buttons
        self.buttons = buttons
        if self.streaming and not self.reporting:
            return  # nobody looks: the counters start from zero when somebody does
        moves = self._moves
        if not moves or (clicked and self.streaming and len(moves) < MOVES):
            moves.append(_Move(0, 0, 0, buttons))
        last = moves[-1]
        last.buttons = buttons
        x, y, z = last.x + dx, last.y - dy, last.z - dz
        last.x, last.y, last.z = (_clamp(v, -REACH, REACH) for v in (x, y, z))
        last.x_overflow |= last.x != x
        last.y_overflow |= last.y != y
        self._sample()
        if self._packet:
            self._on_data()

    # -- packets

    def _due(self) -> None:
        self._sample()
        if self._packet:
            self._on_data()

    def _sample(self) -> None:
        """Form the next packet of stream mode when it is time for one, or see that it will be."""
        if not (self.streaming and self.reporting) or self.wrap or self._packet or not self._moves:
            return
        now = self._clock.now()
        if now < self._next_sample:
            if not self._sampler.armed:
                self._sampler.arm(self._next_sample)
            return
        self._next_sample = now + SECOND // self.rate
        self._packet = self._last = self._form(scaled=self.doubled)

    def _form(self, *, scaled: bool) -> bytes:
        """Take one packet's worth of motion off the first move."""
        move = self._moves[0] if self._moves else _Move(0, 0, 0, self.buttons)
        x, y, z = _clamp(move.x, -255, 255), _clamp(move.y, -255, 255), _clamp(move.z, -8, 7) if self.ident else move.z
        x_over, y_over = move.x_overflow, move.y_overflow
        move.x, move.y, move.z = move.x - x, move.y - y, move.z - z
        move.x_overflow = move.y_overflow = False
        if self._moves and not (move.x or move.y or move.z):
            self._moves.popleft()
        if scaled:
            x, y = _double(x), _double(y)
            x_over, y_over = x_over or abs(x) > 255, y_over or abs(y) > 255
            x, y = _clamp(x, -255, 255), _clamp(y, -255, 255)
        head = move.buttons & 7 | 0x08 | (x < 0) << 4 | (y < 0) << 5 | x_over << 6 | y_over << 7
        packet = bytes((head, x & 0xFF, y & 0xFF))
        if self.ident == 3:
            packet += bytes((z & 0xFF,))
        elif self.ident == 4:
            packet += bytes((z & 0x0F | (move.buttons & 0x18) << 1,))
        return packet

    def _drop(self) -> None:
        """Forget motion and the packet on its way."""
        self._moves.clear()
        self._packet = b""
        self._sampler.cancel()

    def _cut(self) -> None:
        """A command stops the packet on its way; its buttons go out again."""
        if self._packet:
            buttons = self._last[0] & 7 | (self._last[3] & 0x30) >> 1 if self.ident == 4 else self._last[0] & 7
            self._packet = b""
            self._moves.appendleft(_Move(0, 0, 0, buttons))

    # -- the wire to the controller

    @property
    def ready(self) -> bool:
        """Whether :meth:`take` has a byte."""
        return bool(self._replies or self._packet)

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be sent."""
        return not (self._replies or self._packet or self._moves)

    def take(self) -> int:
        """Return the next byte for the controller, replies first."""
        if self._replies:
            return self._replies.popleft()
        byte = self._packet[0]
        self._packet = self._packet[1:]
        if not self._packet:
            self._sample()
        return byte

    def _reply(self, *codes: int) -> None:
        if len(self._replies) + len(codes) <= REPLIES:
            self._replies.extend(codes)
        data = bytes(codes[1:] if codes[0] == ACK and len(codes) > 1 else codes)
        if codes != (RESEND,):
            self._last = data

    def write(self, value: int) -> None:
        """Take a byte from the controller: a command, or the option of the one before."""
        self._cut()
        if self.wrap and value not in (0xEC, 0xFF):
            self._reply(value)
        elif self._command is not None and self._option(self._command, value):
            self._complained = False
        elif self._command is None:
            self._execute(value)
        elif value == 0xFF:
            self._command = None
            self._execute(value)
        elif self._complained:
            self._command, self._complained = None, False
            self._reply(ERROR)
        else:
            self._complained = True  # the option is asked for once more
            self._reply(RESEND)
        self._sample()

    def _option(self, command: int, value: int) -> bool:
        if command == 0xE8 and value <= 3:
            self.resolution = value
        elif command == 0xF3 and value in _RATES:
            self.rate = value
            self._knock = (*self._knock, value)[-3:]
            ident, before = _KNOCKS.get(self._knock, (0, ()))
            if self.ident in before:
                self.ident = ident
        else:
            return False
        self._command = None
        self._reply(ACK)
        return True

    def _execute(self, value: int) -> None:
        handler = _COMMANDS.get(value)
        if handler is None:
            self._reply(ERROR if self._complained else RESEND)
            self._complained = not self._complained
            return
        self._complained = False
        handler(self)

    def _scale_1(self) -> None:
        self.doubled = False
        self._reply(ACK)

    def _scale_2(self) -> None:
        self.doubled = True
        self._reply(ACK)

    def _ask_resolution(self) -> None:
        self._command = 0xE8
        self._reply(ACK)

    def _ask_rate(self) -> None:
        self._command = 0xF3
        self._reply(ACK)

    def _status(self) -> None:
        left, right, middle = self.buttons & 1, self.buttons >> 1 & 1, self.buttons >> 2 & 1
        mode = (not self.streaming) << 6 | self.reporting << 5 | self.doubled << 4
        self._reply(ACK, mode | left << 2 | middle << 1 | right, self.resolution, self.rate)

    def _stream(self) -> None:
        self.streaming = True
        self._drop()
        self._reply(ACK)

    def _remote(self) -> None:
        self.streaming = False
        self._drop()
        self._reply(ACK)

    def _read_data(self) -> None:
        self._reply(ACK, *self._form(scaled=False))

    def _set_wrap(self) -> None:
        self.wrap = True
        self._drop()
        self._reply(ACK)

    def _reset_wrap(self) -> None:
        self.wrap = False
        self._reply(ACK)

    def _identify(self) -> None:
        self._reply(ACK, self.ident)

    def _enable(self) -> None:
        # What was cut off by this very command stays: its buttons are still news.
        self.reporting = True
        self._reply(ACK)

    def _disable(self) -> None:
        self.reporting = False
        self._drop()
        self._reply(ACK)

    def _set_defaults(self) -> None:
        self._defaults()
        self._reply(ACK)

    def _resend(self) -> None:
        self._reply(*(self._last or b"\0"))

    def _restart(self) -> None:
        buttons = self.buttons
        self.reset()
        self.buttons = buttons
        self._reply(ACK, BAT_OK, 0x00)

    # -- saved state

    def save(self) -> MouseState:
        """Return the state."""
        return MouseState(
            streaming=self.streaming, reporting=self.reporting, wrap=self.wrap, doubled=self.doubled, rate=self.rate,
            resolution=self.resolution, ident=self.ident, knock=self._knock, command=self._command, complained=self._complained,
            replies=bytes(self._replies), packet=self._packet, last=self._last, buttons=self.buttons,
            moves=tuple((m.x, m.y, m.z, m.buttons, m.x_overflow, m.y_overflow) for m in self._moves),
            next_sample=self._next_sample, due=self._sampler.due,
        )  # fmt: skip

    def restore(self, state: MouseState) -> None:
        """Continue from a saved state."""
        if state.version != 1 or state.rate not in _RATES:
            raise ValueError(f"this is not a mouse state of version 1: version {state.version}, sample rate {state.rate}")
        self.streaming, self.reporting, self.wrap, self.doubled = state.streaming, state.reporting, state.wrap, state.doubled
        self.rate, self.resolution, self.ident, self._knock = state.rate, state.resolution, state.ident, state.knock
        self._command, self._complained, self.buttons = state.command, state.complained, state.buttons
        self._replies, self._packet, self._last = deque(state.replies), state.packet, state.last
        self._moves = deque(_Move(*move) for move in state.moves)
        self._next_sample = state.next_sample
        self._sampler.cancel()
        if state.due is not None:
            self._sampler.arm(state.due)


def _double(value: int) -> int:
    """2:1 scaling: 0 1 1 3 6 9, then twice the count."""
    size = abs(value)
    scaled = _SCALED[size] if size < len(_SCALED) else 2 * size
    return scaled if value >= 0 else -scaled


_COMMANDS: dict[int, Callable[[Ps2Mouse], None]] = {
    0xE6: Ps2Mouse._scale_1, 0xE7: Ps2Mouse._scale_2, 0xE8: Ps2Mouse._ask_resolution, 0xE9: Ps2Mouse._status,
    0xEA: Ps2Mouse._stream, 0xEB: Ps2Mouse._read_data, 0xEC: Ps2Mouse._reset_wrap, 0xEE: Ps2Mouse._set_wrap,
    0xF0: Ps2Mouse._remote, 0xF2: Ps2Mouse._identify, 0xF3: Ps2Mouse._ask_rate, 0xF4: Ps2Mouse._enable,
    0xF5: Ps2Mouse._disable, 0xF6: Ps2Mouse._set_defaults, 0xFE: Ps2Mouse._resend, 0xFF: Ps2Mouse._restart,
}  # fmt: skip
