"""The console on a terminal that is only written down: what it draws, where keys go, and that it cleans up when it breaks."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pyte
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output

from avmm.control.seat import Counters, Facts, TextPicture, Viewer
from avmm_console.app import Console
from avmm_console.machines import Execute, Machine

pytestmark = pytest.mark.asyncio
COLUMNS, ROWS = 90, 30


class FakeSeat:
    """A seat in front of nothing: it shows what it is given and remembers what is done."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.picture: TextPicture | None = None
        self.facts: Facts | None = Facts("running", "", "real", 0, Counters(), (), {}, None, mouse=False)
        self.viewers: list[Viewer] = []
        self.done: list[object] = []

    def watch(self, viewer: Viewer) -> None:
        self.viewers.append(viewer)

    def unwatch(self, viewer: Viewer) -> None:
        self.viewers.remove(viewer)

    def room(self, width: int, height: int) -> None:
        self.done.append(("room", width, height))

    async def press(self, keys: tuple[str, ...]) -> None:
        self.done.append(keys)

    async def type(self, text: str) -> None:
        self.done.append(text)

    async def send(self, data: bytes) -> None:
        self.done.append(data)

    async def send_break(self) -> None:
        self.done.append("break")

    async def mouse(self, dx: int, dy: int, wheel: int, buttons: int) -> None:
        self.done.append((dx, dy, wheel, buttons))

    def typed(self) -> list[object]:
        """What was done but for saying how large the place is."""
        return [done for done in self.done if not (isinstance(done, tuple) and done[0] == "room")]

    def show(self, text: str) -> None:
        """Show a text, each of its lines a row."""
        cells = b"".join(bytes(part for char in f"{line:<80}" for part in (ord(char), 7)) for line in text.split("\n"))
        self.picture = TextPicture(80, 25, cells + b" \x07" * (80 * 25 - len(cells) // 2), None, bytes(n // 3 * 17 for n in range(48)), blink=False)
        for viewer in self.viewers:
            viewer.picture_changed()


class Rig:
    """A running console, its seats, its terminal."""

    def __init__(self, console: Console, seats: list[FakeSeat], keys: PipeInput, written: io.StringIO) -> None:
        self.console, self.seats, self.keys, self.written = console, seats, keys, written

    def screen(self) -> list[str]:
        """What a terminal shows that was sent all that was written."""
        screen = pyte.Screen(COLUMNS, ROWS)
        pyte.Stream(screen).feed(self.written.getvalue())
        return list(screen.display)

    async def met(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)

    async def until(self, text: str) -> list[str]:
        """Wait for a text on the screen."""
        await self.met(lambda: any(text in line for line in self.screen()))
        return self.screen()


async def refuse(name: str, arguments: dict[str, object]) -> object:
    raise AssertionError(f"{name} {arguments}")


@asynccontextmanager
async def running(*names: str, execute: Execute = refuse) -> AsyncIterator[Rig]:
    written = io.StringIO()
    output = Vt100_Output(written, lambda: Size(ROWS, COLUMNS), term="xterm-256color")
    seats = [FakeSeat(name) for name in names]
    with create_pipe_input() as keys, create_app_session(input=keys, output=output):
        console = Console([Machine(seat, execute, ColorDepth.DEPTH_8_BIT) for seat in seats], lambda: False, output=output)
        task = asyncio.ensure_future(console.run())
        rig = Rig(console, seats, keys, written)
        try:
            await rig.until("Ctrl-a h helps")
            yield rig
        finally:
            console.leave()
            await asyncio.wait([task])
        task.result()


async def test_each_machine_has_its_keys_and_its_place() -> None:
    async with running("left", "right") as rig:
        left, right = rig.seats
        left.show("this is on the left")
        await rig.until("this is on the left")
        rig.keys.send_text("a\x1b[A\x01|")
        right.show("and this on the right")
        lines = await rig.until("and this")
        assert any("this is on the left" in line and line.index("and this") >= COLUMNS // 2 for line in lines if "and this" in line)
        rig.keys.send_text("b\x01tc\x01b")  # a key for the right, then one and a break for its serial line
        await rig.met(lambda: "break" in right.done and b"c" in right.done)
        assert left.typed() == ["a", ("up",)]
        assert [done for done in right.typed() if done != "break"] == ["b", b"c"]
        rig.keys.send_text("\x01u\x01n\x1b[200~two\nlines\x1b[201~")  # one pane, the left's serial line
        await rig.met(lambda: b"two\rlines" in left.done)


async def test_only_what_changed_is_written_and_nothing_outside_its_place() -> None:
    async with running("one") as rig:
        rig.seats[0].show("first\nsecond")
        before = await rig.until("second")
        length = len(rig.written.getvalue())
        rig.seats[0].show("first\nchanged")
        after = await rig.until("changed")
        assert len(rig.written.getvalue()) - length < 400
        assert [line for line in before if "second" not in line] == [line for line in after if "changed" not in line]


async def test_a_guest_that_draws_escape_characters_draws_no_sequences() -> None:
    async with running("evil") as rig:
        rig.seats[0].show("\x1b[2J\x1b]0;title\x07 and \x9b31m")
        lines = await rig.until(" and ")
        assert any("←[2J←]0;title•" in line for line in lines)


async def test_ctrl_c_ends_a_search_backwards_and_is_not_the_guests() -> None:
    stopped = asyncio.Event()

    async def execute(name: str, arguments: dict[str, object]) -> object:
        if name == "stop":
            stopped.set()
            return {}
        assert arguments == {"command-line": "reverse-continue"}
        await stopped.wait()
        return "=> where it has come to"

    async with running("one", execute=execute) as rig:
        rig.keys.send_text("\x01creverse-continue\r")
        await rig.until("it goes back: Ctrl-C stops it where it has come to")
        rig.keys.send_text("a\x03")
        await rig.until("=> where it has come to")
        rig.keys.send_text("\x03")
        await rig.met(lambda: len(rig.seats[0].typed()) == 2)
        assert rig.seats[0].typed() == ["a", ("ctrl", "c")]


async def test_a_control_character_in_a_message_reaches_no_terminal() -> None:
    async with running("one") as rig:
        rig.console.say("cannot read \x1b[2Jfile\x9b31m: 漢字")
        lines = await rig.until("cannot read")
        assert any("cannot read ·[2Jfile·31m: 漢" in line for line in lines)


async def test_a_bug_leaves_the_full_screen_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    written = ""

    async def break_it() -> None:
        nonlocal written
        async with running("broken") as rig:
            monkeypatch.setattr(rig.console.prompt, "begin", lambda: 1 // 0)
            rig.keys.send_text("\x01c")
            await rig.met(lambda: not rig.console.app.is_running and not rig.seats[0].viewers)
            written = rig.written.getvalue()

    with pytest.raises(ZeroDivisionError):
        await break_it()
    assert "\x1b[?1049l" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
