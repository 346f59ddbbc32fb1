"""The console: the screens, keyboards and serial lines of machines on the whole terminal, with lines around them.

prompt_toolkit reads the keys and draws what is around the guests; the guests are drawn by the painter. Everything happens when something
changes, a key, a picture, new facts; nothing polls. The invariant: the terminal is as it was before when the console ends, for whatever
reason, and no machine ends because a console does.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import time
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
from avmm.control.qmp import QmpError
from avmm.control.seat import SeatError

from .commands import Interpreter
from .doctor import COLUMNS, ROWS
from .frame import Surroundings
from .keymenu import KeyMenu
from .keys import HELP, PREFIX, Chord, Command, Event, KeyRouter, Text, prefix_name
from .machines import Changed, Machine
from .mouse import MouseTracker
from .pager import LiveView, Page, Pager
from .painter import Painter, Place
from .panes import Panes, Tab
from .prompt import Prompt
from .screen_view import colour_depth
from .selection import clipboard, unused

FRAMES = 30
"""Redraws of what is around the guests a second, at most."""
ESCAPE_SECONDS = 0.03
MESSAGE_SECONDS = 4.0
BELL_SECONDS = 0.25
LIVE_SECONDS = 1.0
LOAD = 20
"""Painting the guests is followed by a pause of so many times the processor time it took: a twentieth of a core."""
SERIAL_SECONDS = 0.01
"""What came over a serial line is shown after so long: more may be on its way."""
STYLE = Style.from_dict(
    {
        "status": "reverse", "message": "reverse bold", "page": "reverse", "prompt": "bold", "hint": "reverse",
        "tab": "", "tab.shown": "underline", "tab.current": "reverse bold",
    }
)  # fmt: skip


def check_terminal() -> None:
    """UsageError without a terminal that is large enough and can do what is needed."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("the console needs a terminal, and there is none: use --headless")
    if os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        raise click.UsageError("the console needs a terminal that can move its cursor: set TERM, or use --headless")
    columns, lines = os.get_terminal_size(sys.stdout.fileno())
    if columns < COLUMNS or lines < ROWS:
        raise click.UsageError(f"the terminal is too small for the console: it has {columns}x{lines}, {COLUMNS}x{ROWS} are needed")


def depth_here() -> ColorDepth:
    """Return how many colours this terminal has."""
    return ColorDepth.from_env() or colour_depth(os.environ)


class Console:
    """Machines on the terminal. ``done`` says, whenever something is new about one, whether it is time to end."""

    def __init__(
        self, machines: Sequence[Machine], done: Callable[[], bool], *, prefix: str = PREFIX, output: Output | None = None
    ) -> None:
        self.machines = list(machines)
        self.panes = Panes(self.machines)
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
        self._repaint: asyncio.TimerHandle | None = None
        self._rested = 0.0
        """When guests may be painted again."""
        self._bug: BaseException | None = None
        self.around = Surroundings(self)
        self.app: Application[None] = Application(
            self.around.layout(), key_bindings=self._bindings(), style=STYLE, full_screen=True, color_depth=depth_here(),
            min_redraw_interval=1 / FRAMES, output=output, mouse_support=Condition(self._has_mouse),
            before_render=self._rendering, after_render=self._rendered,
        )  # fmt: skip
        self.app.ttimeoutlen = ESCAPE_SECONDS
        self.app.timeoutlen = 0
        self._painter = Painter(self.app.output, STYLE, self.app.color_depth)
        self._places: list[Place | None] = []
        self._fresh = True

    def width(self) -> int:
        """Return the terminal's columns."""
        return self.app.output.get_size().columns

    @property
    def machine(self) -> Machine:
        """The machine that has the keys."""
        return self.panes.tab.machine

    # -- drawing

    def _rendering(self, app: Application[None]) -> None:
        for pane in self.panes.shown:
            pane.area.place = None
        self._fresh = app.renderer.last_rendered_screen is None

    def _rendered(self, app: Application[None]) -> None:
        """The lines around are drawn; where the guests' places have moved, begin with an empty terminal."""
        places = [pane.area.place for pane in self.panes.shown]
        if places != self._places:
            self._places = places
            self._room()
            app.renderer.erase(leave_alternate_screen=False)
            app.renderer.render(app, app.layout)
            self._fresh = True
        if self._fresh:
            self._painter.forget()
        self._paint()

    def _redraw(self) -> None:
        if self.app.is_running:
            self.app.renderer.erase(leave_alternate_screen=False)
            self.app.invalidate()

    def _room(self) -> None:
        for machine in self.machines:
            places = [pane.area.place for pane in self.panes.shown if pane.tab.machine is machine and pane.area.place is not None]
            if places:
                machine.seat.room(max(place.width for place in places), max(2 * place.height for place in places))

    def _paint(self) -> None:
        """Bring the guests up to date that are shown."""
        if self._repaint is not None:
            self._repaint.cancel()
            self._repaint = None
        if not self.app.is_running or self.app.renderer.last_rendered_screen is None:
            return
        began = time.thread_time()
        for pane in self.panes.shown:
            place = pane.area.place
            if place is not None:
                self._painter.paint(place, pane.tab.machine.frame(pane.tab.serial, place.width, place.height))
        self._rested = asyncio.get_running_loop().time() + LOAD * (time.thread_time() - began)

    def _paint_soon(self, tab: Tab, delay: float = 0.0) -> None:
        """Paint after a delay, and after the pause that the last painting has earned, if a tab is shown."""
        if self._repaint is not None or not any(pane.tab == tab for pane in self.panes.shown):
            return
        loop = asyncio.get_running_loop()
        delay = max(delay, self._rested - loop.time())
        if delay <= 0:
            self._paint()
        else:
            self._repaint = loop.call_later(delay, self._paint)

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
                self.app.invalidate()

        asyncio.get_running_loop().call_later(MESSAGE_SECONDS, expire)
        self.app.invalidate()

    def _changed(self, machine: Machine, changed: Changed) -> None:
        match changed.what:
            case "picture":
                self._paint_soon(Tab(machine, serial=False))
            case "serial":
                self._paint_soon(Tab(machine, serial=True), SERIAL_SECONDS)
            case "bell":
                now = asyncio.get_running_loop().time()
                if now - self._rang >= BELL_SECONDS and self.app.is_running:
                    self._rang = now
                    self.app.output.bell()
                    self.app.output.flush()
            case "message":
                self.say(changed.text)
            case _:
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
                key = press.key.value if isinstance(press.key, Keys) else press.key
                self._take(self.router.feed(key, press.data))
            if self.router.escaped:
                asyncio.get_running_loop().call_soon(lambda: self._take(self.router.flush()))
            if waited != self.router.waiting:
                self.app.invalidate()
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
                self._command(event)
                self.around.arrange()
            elif self.page is not None:
                if not self.page.take(event, self.around.page_height() - 1):
                    self.page = None
                self.around.arrange()
            else:
                self._to_guest(event)

    def _to_guest(self, event: Chord | Text) -> None:
        tab = self.panes.tab
        if not (tab.machine.line if tab.serial else tab.machine.keyboard).put(event):
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
            self.background(self._guarded(self.machine.seat.mouse(moved.dx, moved.dy, moved.wheel, moved.buttons)))

    def _command(self, command: Command) -> None:
        if command.name in _SAID:
            name, said = _SAID[command.name]
            self.background(self._carry_out(name, {}, said))
            return
        action = _ACTIONS.get(command.name)
        if action is None:
            self.say(f"{prefix_name(self.router.prefix)} {command.key} is no command: h lists them")
        else:
            action(self, command)

    def _leave(self, command: Command) -> None:
        self.quit = True
        self._exit()

    def _help(self, command: Command) -> None:
        name = prefix_name(self.router.prefix)
        lines = [f"  {name} {key:<7} {what}" for key, what in HELP]
        text = "\n".join(["", "  All other keys go to the guest.", "", *lines, f"  {name} {name:<7} {name} for the guest"])
        self.page = Pager(text, title="help")

    def _command_line(self, command: Command) -> None:
        self.prompt.begin()
        self.app.layout.focus(self.prompt.window)

    def _commit(self, command: Command) -> None:
        """It changes images, so it is put on the command line for somebody to press Enter."""
        self._command_line(command)
        self.prompt.buffer.insert_text("commit")

    def _scroll_back(self, command: Command) -> None:
        tab = self.panes.tab

        def save(text: str) -> None:
            path = unused(f"{tab.title.replace(' ', '-')}", "txt")
            try:
                path.write_text(text)
            except OSError as error:
                self.say(f"cannot write {path}: {error.strerror}")
            else:
                self.say(f"saved {path}")

        def copy(text: str) -> None:
            self.app.output.write_raw(clipboard(text))
            self.app.output.flush()
            self.say("copied what is shown, if the terminal lets programs copy")

        self.page = Pager(tab.machine.past(tab.serial), title="scroll-back", at_end=True, sticky=True, save=save, copy=copy)

    def _key_menu(self, command: Command) -> None:
        self.page = KeyMenu(lambda keys: self._to_guest(Chord(keys, "")))

    def _path(self, command: Command) -> None:
        self.show_path = not self.show_path

    def _tab(self, command: Command) -> None:
        if not self.panes.choose(int(command.key) - 1):
            self.say(f"there are {len(self.panes.tabs)} tabs")

    def _split(self, beside: bool) -> None:
        if not self.panes.split(beside):
            self.say("there are as many panes as there can be")

    def _break(self, command: Command) -> None:
        self.background(self._guarded(self.machine.seat.send_break(), f"sent a break to {self.machine.name}'s serial line"))

    def _pause(self, command: Command) -> None:
        facts = self.machine.seat.facts
        self.background(self._carry_out("cont" if facts is not None and facts.state == "paused" else "stop", {}))

    def _picture(self, command: Command) -> None:
        path = unused(self.machine.name, "png")
        self.background(self._carry_out("screendump", {"filename": str(path.absolute()), "format": "png"}, f"saved {path}"))

    def _switch_mouse(self, command: Command) -> None:
        self._mouse_wanted = not self._has_mouse()
        self._mouse.forget()
        self.say("the mouse is the guest's" if self._mouse_wanted else "the mouse is the terminal's")

    def _drop(self, command: Command) -> None:
        tab = self.panes.tab
        (tab.machine.line if tab.serial else tab.machine.keyboard).drop()
        self.say("dropped what was not typed yet")

    def _suspend(self, command: Command | None = None) -> None:
        """Give the terminal back to the shell until it says fg."""

        async def stop() -> None:
            await run_in_terminal(lambda: os.kill(os.getpid(), signal.SIGSTOP))

        self.background(stop())

    def _continued(self) -> None:
        """The process was stopped and goes on: the terminal may show anything."""
        if self.app.is_running and not self.app._running_in_terminal:
            self._redraw()

    # -- commands

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that takes time; it ends with the console at the latest."""
        self.app.create_background_task(work)

    async def _guarded(self, work: Coroutine[Any, Any, None], said: str = "") -> None:
        try:
            await work
        except SeatError as error:
            said = str(error)
        if said:
            self.say(said)

    async def _carry_out(self, name: str, arguments: dict[str, object], said: str = "") -> None:
        machine = self.machine
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
        answer = await self._interpreters[self.machine].run(line)
        if isinstance(answer, LiveView):
            self.page = answer
            self.around.arrange()
            await self._keep_live(answer)
        elif "\n" in answer:
            self.page = Pager(answer, title=line)
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
            self.app.invalidate()
            await asyncio.sleep(LIVE_SECONDS)

    # -- life

    async def run(self) -> None:
        """Show the machines until it is time to end or the person leaves."""
        loop = asyncio.get_running_loop()
        for machine in self.machines:
            machine.on_change = self._changed
            machine.start()
        before = loop.get_exception_handler()
        loop.set_exception_handler(self._callback_failed)
        loop.add_signal_handler(signal.SIGTSTP, self._suspend)
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


_SAID = {
    "reset": ("system_reset", "reset"), "power button": ("system_powerdown", "power button pressed"),
}
"""Commands that are one of the panel's, and what is said when it is done."""

_ACTIONS: dict[str, Callable[[Console, Command], None]] = {
    "help": Console._help, "quit": Console._leave, "command line": Console._command_line, "commit": Console._commit,
    "scroll back": Console._scroll_back,
    "key menu": Console._key_menu, "path": Console._path, "tab": Console._tab, "break": Console._break, "pause": Console._pause,
    "picture": Console._picture, "mouse": Console._switch_mouse, "drop": Console._drop, "suspend": Console._suspend,
    "serial": lambda console, _: console.panes.toggle(),
    "next": lambda console, _: console.panes.step(1),
    "previous": lambda console, _: console.panes.step(-1),
    "split beside": lambda console, _: console._split(beside=True),
    "split below": lambda console, _: console._split(beside=False),
    "other pane": lambda console, _: console.panes.other(),
    "unsplit": lambda console, _: console.panes.unsplit(),
    "ctrl-alt-del": lambda console, _: console._to_guest(Chord(("ctrl", "alt", "delete"), "")),
    "redraw": lambda console, _: console._redraw(),
}  # fmt: skip
