"""A machine as the console has it: a seat in front of it, the control panel's commands, and what was seen and typed there.

Nothing here knows whether the machine runs in this process. The invariant: what is typed for one line, screen or serial, arrives in
order; typing for one machine never waits for another.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from prompt_toolkit.output import ColorDepth

from avmm.control.inputs import InputsFull
from avmm.control.seat import PixelPicture, Seat, SeatError, TextPicture

from .history import ScreenHistory, plain
from .keys import Chord, Text
from .path_view import PathView
from .screen_view import Frame, ScreenView, fitted
from .serial_view import SerialView

Execute = Callable[[str, dict[str, object]], Awaitable[object]]
"""Carries out one of the control panel's commands. Raises QmpError, or ConfigError when there is no connection."""
PASTE_LIMIT = 8 << 20
"""Characters that may wait to be typed."""
LONG = 64
CHARACTER = (8, 16)
"""A character of a text mode in pixels."""


class TypeAhead:
    """What was pressed and pasted for one line and has not been passed on yet. Neighbouring texts melt into one."""

    def __init__(self) -> None:
        self._waiting: deque[Chord | Text] = deque()
        self._news = asyncio.Event()
        self.length = 0
        """Characters and chords that wait."""

    def put(self, event: Chord | Text) -> bool:
        """Add to the end; False when too much waits already."""
        size = len(event.text) if isinstance(event, Text) else 1
        if self.length + size > PASTE_LIMIT:
            return False
        self.length += size
        last = self._waiting[-1] if self._waiting else None
        if isinstance(event, Text) and isinstance(last, Text) and len(last.text) < LONG:
            self._waiting[-1] = Text(last.text + event.text)
        else:
            self._waiting.append(event)
        self._news.set()
        return True

    async def get(self) -> Chord | Text:
        """Take what comes next, a long text in pieces."""
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        event = self._waiting.popleft()
        if isinstance(event, Text) and len(event.text) > LONG:
            self._waiting.appendleft(Text(event.text[LONG:]))
            event = Text(event.text[:LONG])
        self.length -= len(event.text) if isinstance(event, Text) else 1
        return event

    def drop(self) -> None:
        """Forget what waits."""
        self._waiting.clear()
        self.length = 0


@dataclass(frozen=True, slots=True)
class Changed:
    """What has changed at a machine: ``picture``, ``facts``, ``serial``, ``bell`` or ``lost``; or ``message``, which has a text."""

    what: str
    text: str = ""


class Machine:
    """One machine. ``on_change`` hears what happens there; between ``start`` and ``stop`` what is typed is passed on."""

    def __init__(self, seat: Seat, execute: Execute, depth: ColorDepth) -> None:
        self.seat = seat
        self.execute = execute
        self.on_change: Callable[[Machine, Changed], None] = _ignore
        self.history = ScreenHistory()
        self.path = PathView()
        self.lost_because = ""
        """Why nothing more comes from it; empty while it does."""
        self.keyboard, self.line = TypeAhead(), TypeAhead()
        self._depth = depth
        self._screen = ScreenView(depth)
        self._serial = SerialView(depth)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def name(self) -> str:
        """What it is called."""
        return self.seat.name

    def start(self) -> None:
        """Begin to watch, and to type."""
        create = asyncio.get_running_loop().create_task
        self._tasks = [create(self._type(), name=f"type:{self.name}"), create(self._send(), name=f"send:{self.name}")]
        self.seat.watch(self)

    async def stop(self) -> None:
        """Watch and type no more."""
        self.seat.unwatch(self)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- the seat's viewer

    def picture_changed(self) -> None:
        """The screen shows something else."""
        picture = self.seat.picture
        if isinstance(picture, TextPicture):
            self.history.look(picture.lines())
        self.on_change(self, Changed("picture"))

    def facts_changed(self) -> None:
        """There are new facts."""
        self._back()
        if self.seat.facts is not None:
            self.path.take(self.seat.facts, asyncio.get_running_loop().time())
        self.on_change(self, Changed("facts"))

    def serial(self, data: bytes) -> None:
        """The guest wrote to its serial line."""
        self._back()
        self._serial.take(data)
        self.on_change(self, Changed("serial"))

    def bell(self) -> None:
        """The machine beeped."""
        self.on_change(self, Changed("bell"))

    def lost(self, reason: str) -> None:
        """Nothing more will come."""
        self.lost_because = reason
        self.on_change(self, Changed("lost", reason))

    def _back(self) -> None:
        """Something comes from it. If it was lost it is another now, which tells its serial line's past from the beginning."""
        if self.lost_because:
            self.lost_because = ""
            self._serial = SerialView(self._depth)

    # -- what is shown

    def frame(self, serial: bool, width: int, height: int) -> Frame:
        """Return the screen, or the serial line's terminal, for a place of this size."""
        if not serial:
            return self._screen.frame(self.seat.picture, width, height)
        frame = self._serial.frame(width, height)
        if self._serial.rang():
            self.on_change(self, Changed("bell"))
        return frame

    def cell(self, width: int, height: int) -> tuple[int, int]:
        """Return how many of the guest's pixels a cell of a place of this size is, across and down."""
        picture = self.seat.picture
        if not isinstance(picture, PixelPicture):
            return CHARACTER
        columns, lines = fitted(width, height)
        return max(1, picture.size[0] // columns), max(1, 2 * picture.size[1] // lines)

    def past(self, serial: bool) -> str:
        """Return everything that was shown, as text."""
        return plain(self._serial.text()) if serial else self.history.text()

    # -- what is typed

    async def _type(self) -> None:
        while True:
            event = await self.keyboard.get()
            try:
                if isinstance(event, Text):
                    await self.seat.type(event.text)
                else:
                    await self.seat.press(event.keys)
            except (SeatError, InputsFull) as error:
                self.keyboard.drop()
                self.on_change(self, Changed("message", str(error)))

    async def _send(self) -> None:
        while True:
            event = await self.line.get()
            data = event.text.replace("\n", "\r") if isinstance(event, Text) else event.data
            try:
                await self.seat.send(data.encode("utf-8", "replace"))
            except (SeatError, InputsFull) as error:
                self.line.drop()
                self.on_change(self, Changed("message", str(error)))


def _ignore(machine: Machine, changed: Changed) -> None:
    pass
