"""The console: the screens, keyboards and serial lines of machines on the whole terminal, with lines around them.

prompt_toolkit reads the keys, says what is where, and draws the command line; all else is drawn by the painter. Everything happens when
something changes, a key, a picture, new facts; nothing polls. The invariant: the terminal is as it was before when the console ends, for
whatever reason, and no machine ends because a console does.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import click
from prompt_toolkit.application import Application, run_in_terminal
from prompt_toolkit.filters import Condition
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.styles import Style

from avmm.control.config import ConfigError
from avmm.control.inputs import InputsFull
from avmm.control.qmp import QmpError
from avmm.control.seat import SeatError

from .actions import carry_out
from .commands import Interpreter
from .doctor import LEAST
from .frame import Surroundings
from .keys import PREFIX, Chord, Command, Event, KeyRouter, Text, prefix_name
from .machines import Changed, Machine, TypeAhead
from .mouse import MouseTracker
from .pager import LiveView, Page, Pager
from .panes import Panes, Tab
from .prompt import Prompt
from .screen_view import colour_depth
from .stage import Stage

FRAMES = 30
"""prompt_toolkit's redraws a second, at most."""
ESCAPE_SECONDS = 0.03
MESSAGE_SECONDS = 4.0
BELL_SECONDS = 0.25
LIVE_SECONDS = 1.0
SERIAL_SECONDS = 0.01
"""What came over a serial line is shown after so long: more may be on its way."""
STYLE = Style.from_dict(
    {
        "status": "reverse", "message": "reverse bold", "page": "reverse", "prompt": "bold", "hint": "reverse",
        "tab": "", "tab.shown": "underline", "tab.current": "reverse bold",
    }
)  # fmt: skip


def check_terminal(instead: str) -> None:
    """UsageError without a terminal that is large enough and can do what is needed; ``instead`` says what works without."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(f"the console needs a terminal, and there is none: {instead}")
    if os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        raise click.UsageError(f"the console needs a terminal that can move its cursor: set TERM, or {instead}")
    columns, lines = os.get_terminal_size(sys.stdout.fileno())
    if columns < LEAST[0] or lines < LEAST[1]:
        raise click.UsageError(f"the terminal is too small for the console: it has {columns}x{lines}, {LEAST[0]}x{LEAST[1]} are needed")


def depth_here() -> ColorDepth:
    """Return how many colours this terminal has."""
    return ColorDepth.from_env() or colour_depth(os.environ)


class Console:
    """Machines on the terminal. ``done`` says, whenever something is new about one, whether it is time to end."""

    def __init__(
        self, machines: Sequence[Machine], done: Callable[[], bool], *, prefix: str = PREFIX, output: Output | None = None
    ) -> None:
        self.machines = list(machines)
        self.panes: Panes = Panes(self.machines)
        self.router = KeyRouter(prefix)
        self.page: Page | None = None
        self.show_path = False
        self.quit = False
        """Whether the person left, and not the machine."""
        self._done = done
        self._interpreters = {machine: Interpreter(machine, self.machines, self.width) for machine in self.machines}
        self.prompt = Prompt(lambda: self._interpreters[self.machine], self._entered, self._focus)
        self._message = ""
        self._rang = 0.0
        self._mouse = MouseTracker()
        self._mouse_wanted: bool | None = None
        self._had_mouse = False
        self._away = False
        """Whether the shell has the terminal."""
        self._going_back: Machine | None = None
        """Which machine a search backwards is under way on: Ctrl-C ends that, and is not the guest's."""
        self._bug: BaseException | None = None
        self.around = Surroundings(self, STYLE, depth_here())
        self.stage: Stage = Stage(self.around.areas, self.around.tell_room)
        self.app: Application[None] = Application(
            self.around.layout(), key_bindings=self._bindings(), style=STYLE, full_screen=True, color_depth=depth_here(),
            min_redraw_interval=1 / FRAMES, output=output, mouse_support=Condition(self._has_mouse),
            before_render=self.stage.before_render, after_render=self.stage.after_render,
        )  # fmt: skip
        self.app.ttimeoutlen = ESCAPE_SECONDS
        self.app.timeoutlen = 0

    def width(self) -> int:
        """Return the terminal's columns."""
        return self.app.output.get_size().columns

    @property
    def machine(self) -> Machine:
        """The machine that has the keys."""
        return self.panes.tab.machine

    # -- what is said

    def message(self) -> str:
        """Return what is to be said instead of the state."""
        if self._message:
            return f" {self._message} "
        name = prefix_name(self.router.prefix)
        return f" {name}: x leaves, h lists all commands, d shows the path, c is a command line " if self.router.waiting else ""

    def say(self, message: str) -> None:
        """Show a message in the status line for a moment."""
        self._message = message

        def expire() -> None:
            if self._message == message:
                self._message = ""
                self.stage.paint_soon()

        asyncio.get_running_loop().call_later(MESSAGE_SECONDS, expire)
        self.stage.paint_soon()

    def _changed(self, machine: Machine, changed: Changed) -> None:
        match changed.what:
            case "picture":
                if self.panes.shows(Tab(machine, serial=False)):
                    self.stage.paint_soon()
            case "serial":
                if self.panes.shows(Tab(machine, serial=True)):
                    self.stage.paint_soon(SERIAL_SECONDS)
            case "bell":
                now = asyncio.get_running_loop().time()
                if now - self._rang >= BELL_SECONDS and self.app.is_running:
                    self._rang = now
                    self.app.output.bell()
                    self.app.output.flush()
            case "message":
                self.say(changed.text)
            case _:
                self.stage.paint_soon()
                if self._has_mouse() != self._had_mouse:  # which prompt_toolkit tells the terminal when it draws
                    self._had_mouse = not self._had_mouse
                    self.app.invalidate()
        if changed.what in ("facts", "lost") and self._done():
            self._exit()

    # -- keys and mouse

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()
        to_guest = Condition(lambda: not self.prompt.open)

        # NotImplemented: what is around the guests is not drawn anew for a key that is theirs, which would take longer than their echo.
        @bindings.add(Keys.Any, eager=True, filter=to_guest)
        def any_key(event: KeyPressEvent) -> object:
            waited = self.router.waiting
            for press in event.key_sequence:
                if press.key == Keys.ControlC and self._going_back is not None:
                    self.background(self._execute(self._going_back, "stop", {}, ""))
                    continue
                key = press.key.value if isinstance(press.key, Keys) else press.key
                self._take(self.router.feed(key, press.data))
            if self.router.escaped:
                asyncio.get_running_loop().call_soon(lambda: self._take(self.router.flush()))
            if waited != self.router.waiting:
                self.stage.paint_soon()
            return NotImplemented

        @bindings.add(Keys.BracketedPaste, eager=True, filter=to_guest)
        def paste(event: KeyPressEvent) -> None:
            self._take([Text(event.data.replace("\r\n", "\n").replace("\r", "\n"))])

        @bindings.add(Keys.Vt100MouseEvent, eager=True)
        def mouse(event: KeyPressEvent) -> object:
            self._moved(event.data)
            return NotImplemented

        for ignored in (Keys.CPRResponse, Keys.ScrollUp, Keys.ScrollDown, Keys.Ignore, Keys.SIGINT):
            bindings.add(ignored, eager=True)(lambda event: None)
        return bindings

    def _take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Command):
                self.page = None
                carry_out(self, event)
                self.around.arrange()
            elif self.page is not None:
                if not self.page.take(event, self.around.page_height() - 1):
                    self.page = None
                self.around.arrange()
            else:
                self.to_guest(event)

    def typing(self) -> TypeAhead:
        """Return where what is typed waits for the current tab."""
        tab = self.panes.tab
        return tab.machine.line if tab.serial else tab.machine.keyboard

    def to_guest(self, event: Chord | Text) -> None:
        """Type for the current tab."""
        if not self.typing().put(event):
            self.say("too much waits to be typed: what was pasted is dropped")

    def _has_mouse(self) -> bool:
        facts = self.machine.seat.facts
        listens = facts is not None and facts.mouse and not self.panes.tab.serial
        return self.page is None and (listens if self._mouse_wanted is None else self._mouse_wanted)

    def _moved(self, data: str) -> None:
        place, picture = self.panes.current.area.place, self.machine.seat.picture
        if place is None or picture is None or self.panes.tab.serial:
            self._mouse.forget()
            return
        moved = self._mouse.report(data, self.machine.cell(place.width, place.height))
        if moved is not None:
            self.background(self.guarded(self.machine.seat.mouse(moved.dx, moved.dy, moved.wheel, moved.buttons)))

    def switch_mouse(self) -> None:
        """Let the terminal's mouse be the guest's, or the terminal's own."""
        self._mouse_wanted = not self._has_mouse()
        self._mouse.forget()
        self.say("the mouse is the guest's" if self._mouse_wanted else "the mouse is the terminal's")

    # -- commands

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that takes time; it ends with the console at the latest."""
        self.app.create_background_task(work)

    async def guarded(self, work: Coroutine[Any, Any, None], said: str = "") -> None:
        """Do something at a seat, and say how it ended."""
        try:
            await work
        except (SeatError, InputsFull) as error:
            said = str(error)
        if said:
            self.say(said)

    def execute(self, name: str, said: str = "", **arguments: object) -> None:
        """Have one of the panel's commands carried out, and say something when it is done."""
        self.background(self._execute(self.machine, name, arguments, said))

    async def _execute(self, machine: Machine, name: str, arguments: dict[str, object], said: str) -> None:
        try:
            await machine.execute(name, arguments)
        except (QmpError, ConfigError) as error:
            said = str(error)
        if said:
            self.say(said)

    def _focus(self) -> None:
        self.around.arrange()

    def _entered(self, line: str) -> None:
        self.background(self._answer(line))

    async def _answer(self, line: str) -> None:
        machine = self.machine
        if line.split()[:1] == ["reverse-continue"]:
            self._going_back = machine
            self.say("it goes back: Ctrl-C stops it where it has come to")
        answer = await self._interpreters[machine].run(line)
        if self._going_back is not None:
            self._going_back, self._message = None, ""
        if isinstance(answer, LiveView):
            self.page = answer
            self.around.arrange()
            await self._keep_live(answer)
        elif "\n" in answer:
            self.page = Pager(answer, title=line)
        elif len(answer) > self.width() - 2:  # too long for the line of messages
            self.page = Pager(textwrap.fill(answer, self.width()), title=line)
        elif answer or line.strip():
            self.say(answer or f"{line.strip()}: done")
        self.around.arrange()

    async def _keep_live(self, view: LiveView) -> None:
        while self.page is view:
            try:
                await view.refresh()
            except (QmpError, ConfigError) as error:
                self.page = None
                self.say(str(error))
                self.around.arrange()
            self.stage.paint_soon()
            await asyncio.sleep(LIVE_SECONDS)

    # -- life

    def leave(self) -> None:
        """The person has had enough."""
        self.quit = True
        self._exit()

    def suspend(self) -> None:
        """Give the terminal back to the shell until it says fg."""

        async def stop() -> None:
            self._away = True
            await run_in_terminal(lambda: os.kill(os.getpid(), signal.SIGSTOP))
            self._away = False

        self.background(stop())

    def _continued(self) -> None:
        """The process was stopped and goes on."""
        if not self._away:
            self.stage.redraw(self.app)

    async def run(self) -> None:
        """Show the machines until it is time to end or the person leaves."""
        loop = asyncio.get_running_loop()
        for machine in self.machines:
            machine.on_change = self._changed
            machine.start()
        before = loop.get_exception_handler()
        loop.set_exception_handler(self._callback_failed)
        loop.add_signal_handler(signal.SIGTSTP, self.suspend)
        loop.add_signal_handler(signal.SIGCONT, self._continued)
        try:
            with suppress(EOFError):  # the terminal has gone
                await self.app.run_async(handle_sigint=False, set_exception_handler=False)
            if self._bug is not None:
                raise self._bug
        finally:
            loop.remove_signal_handler(signal.SIGTSTP)
            loop.remove_signal_handler(signal.SIGCONT)
            loop.set_exception_handler(before)
            self.stage.close()
            for machine in self.machines:
                await machine.stop()

    def _callback_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something went wrong while drawing or in a key's handler: leave the full screen, then say what."""
        error = context.get("exception") or RuntimeError(context["message"])
        if not (isinstance(error, OSError) and error.errno == errno.EIO):  # otherwise the terminal has gone
            self._bug = error
        self._exit()

    def _exit(self) -> None:
        if self.app.is_running and self.app.future is not None and not self.app.future.done():
            self.app.exit()
