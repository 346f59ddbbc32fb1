"""The console: a machine's screen and keyboard on the whole terminal, with a status line.

Two tasks beside prompt_toolkit's: one looks 30 times a second whether something changed, one types what was pressed. The
invariant: the terminal is as it was before when the console ends, for whatever reason, and the machine is shut down after that.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import click
from prompt_toolkit.application import Application
from prompt_toolkit.data_structures import Point
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import (
    CompletionsMenu,
    ConditionalContainer,
    Float,
    FloatContainer,
    FormattedTextControl,
    HSplit,
    Layout,
    Window,
)
from prompt_toolkit.layout.controls import UIContent, UIControl
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.styles import Style
from prompt_toolkit.widgets import Frame as Border

import avmm
from avmm.devices.keys import typable

from . import serial_io
from .commands import Interpreter
from .doctor import COLUMNS, ROWS
from .headless import raise_nothing_booted
from .history import ScreenHistory, plain
from .keys import HELP, Chord, Command, Event, KeyRouter, Text
from .pager import Pager
from .path_view import PathView, whereabouts
from .prompt import Prompt
from .recording import logged, recorded
from .request import Request
from .results import Status, print_stats, save_files, say
from .screen_view import Frame, ScreenView, SerialView, colour_depth

FRAMES = 30
"""Redraws a second, at most."""
LOAD = 4
"""A redraw that took long is followed by a pause of so many times its length."""
ESCAPE_SECONDS = 0.03
MESSAGE_SECONDS = 4.0
PASTE_DELAY = 0.004
ENOUGH = 512
"""Key events waiting in the keyboard controller before typing pauses."""
STYLE = Style.from_dict({"status": "reverse", "message": "reverse bold", "help": "reverse", "prompt": "bold", "hint": "reverse"})


def check_terminal() -> None:
    """UsageError without a terminal that is large enough."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("the console needs a terminal, and there is none: use --headless")
    columns, lines = os.get_terminal_size(sys.stdout.fileno())
    if columns < COLUMNS or lines < ROWS:
        raise click.UsageError(f"the terminal is too small for the console: it has {columns}x{lines}, {COLUMNS}x{ROWS} are needed")


class GuestControl(UIControl):
    """Shows a frame in the middle of its window."""

    def __init__(self, console: GuestConsole) -> None:
        self._console = console

    def create_content(self, width: int, height: int) -> UIContent:
        """Make the content for a window of this size."""
        frame = self._console.frame(width, height)
        top, left = max(0, (height - len(frame.rows)) // 2), max(0, (width - frame.width) // 2)
        margin = ("", " " * left)
        cursor = Point(frame.cursor[0] + left, frame.cursor[1] + top) if frame.cursor is not None else None
        return UIContent(
            get_line=lambda y: [margin, *frame.rows[y - top]] if 0 <= y - top < len(frame.rows) else [("", "")],
            line_count=max(top + len(frame.rows), 1),
            cursor_position=cursor,
            show_cursor=cursor is not None,
        )

    def is_focusable(self) -> bool:
        """The keys go here."""
        return True


class GuestConsole:
    """One machine on the terminal."""

    def __init__(self, host: avmm.Host, vm: avmm.Vm, request: Request, output: Output | None = None) -> None:
        self.vm = vm
        self.request = request
        self.interpreter = Interpreter(host, vm)
        self.prompt = Prompt(self.interpreter, self._entered, self._focus_guest)
        self.pager: Pager | None = None
        self.history = ScreenHistory()
        self.path = PathView(vm)
        self.show_path = False
        self.depth = ColorDepth.from_env() or colour_depth(os.environ)
        self.router = KeyRouter()
        self.screen = ScreenView(vm, self.depth)
        self.serial = SerialView(vm)
        self.on_serial = False
        self.help = False
        self.quit = False
        self._message, self._message_until = "", 0.0
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._rate = (0.0, 0, 0)
        self._draw_seconds = 0.0
        self._shots = 0
        self._bug: BaseException | None = None
        self._guest = Window(GuestControl(self), always_hide_cursor=False)
        self.app = self._application(output)

    # -- what is drawn

    def _application(self, output: Output | None) -> Application[None]:
        help_window = Border(Window(FormattedTextControl(_help_text()), style="class:help"), style="class:help")
        overlay = ConditionalContainer(help_window, Condition(lambda: self.help))
        status = Window(FormattedTextControl(self._status), height=1, style="class:status")
        path = Window(FormattedTextControl(self.path.text), height=PathView.HEIGHT)
        path_panel = ConditionalContainer(path, Condition(lambda: self.show_path))
        paged = Window(FormattedTextControl(self._paged), style="class:help")
        pager = ConditionalContainer(paged, Condition(lambda: self.pager is not None))
        root = FloatContainer(
            HSplit([self._guest, path_panel, self.prompt.container, status]),
            [
                Float(overlay), Float(pager, left=2, right=2, top=1, bottom=2),
                Float(CompletionsMenu(max_height=12, scroll_offset=1), xcursor=True, ycursor=True),
            ],
        )  # fmt: skip
        app: Application[None] = Application(
            Layout(root, focused_element=self._guest), key_bindings=self._bindings(), style=STYLE, full_screen=True, color_depth=self.depth,
            min_redraw_interval=1 / FRAMES, output=output,
        )  # fmt: skip
        app.ttimeoutlen = ESCAPE_SECONDS
        app.timeoutlen = 0
        return app

    def frame(self, width: int, height: int) -> Frame:
        """Return what is in front now."""
        began = time.perf_counter()
        frame = (self.serial if self.on_serial else self.screen).frame(width, height)
        self._draw_seconds = time.perf_counter() - began
        return frame

    def _status(self) -> StyleAndTextTuples:
        vm = self.vm
        if self._message:
            return [("class:message", f" {self._message} ")]
        if self.router.waiting:
            return [("class:message", " Ctrl-a: x quits, h lists all commands ")]
        where = "serial line" if self.on_serial else "x".join(map(str, vm.screen.display.size))
        parts = [vm.name, vm.state.value, where, f"{vm.config.clock} time {vm.now:.0f} s", f"{self._rate[2]:,} exits/s", *whereabouts(vm)]
        return [("", f" {'  '.join(parts)}   Ctrl-a h helps, Ctrl-a x quits")]

    def say(self, message: str) -> None:
        """Show a message in the status line for a moment."""
        self._message, self._message_until = message, time.monotonic() + MESSAGE_SECONDS
        self.app.invalidate()

    # -- keys

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()
        to_guest = Condition(lambda: not self.prompt.open)

        @bindings.add(Keys.Any, eager=True, filter=to_guest)
        def any_key(event: KeyPressEvent) -> None:
            for press in event.key_sequence:
                key = press.key.value if isinstance(press.key, Keys) else press.key
                self._take(self.router.feed(key, press.data))
            asyncio.get_running_loop().call_soon(lambda: self._take(self.router.flush()))

        @bindings.add(Keys.BracketedPaste, eager=True, filter=to_guest)
        def paste(event: KeyPressEvent) -> None:
            self._take([Text(event.data.replace("\r\n", "\n").replace("\r", "\n"))])

        for ignored in (Keys.CPRResponse, Keys.Vt100MouseEvent, Keys.ScrollUp, Keys.ScrollDown, Keys.Ignore, Keys.SIGINT):
            bindings.add(ignored, eager=True)(lambda event: None)
        return bindings

    def _take(self, events: list[Event]) -> None:
        for event in events:
            helping, self.help = self.help, False  # any key closes it
            if isinstance(event, Command):
                self.pager = None
                self._command(event)
            elif self.pager is not None:
                if not self.pager.take(event, self._page_height() - 1):
                    self.pager = None
            elif not helping:
                self._inbox.put_nowait(event)
        self.app.invalidate()

    def _command(self, command: Command) -> None:
        vm = self.vm
        match command.name:
            case "help":
                self.help = True
            case "quit":
                self.quit = True
                self._exit()
            case "reset":
                vm.partition.reset("reset button")
                self.say("reset")
            case "power button":
                vm.machine.power.press_power_button()
                self.say("power button pressed")
            case "pause":
                self.app.create_background_task(vm.resume() if vm.state is avmm.RunState.PAUSED else vm.pause())
            case "ctrl-alt-del":
                self._inbox.put_nowait(Chord(("ctrl", "alt", "delete"), ""))
            case "screenshot":
                self._screenshot()
            case "serial":
                self.on_serial = not self.on_serial
            case "command line":
                self.prompt.open = True
                self.app.layout.focus(self.prompt.window)
            case "scroll back":
                text = plain(self.vm.serial.text()) if self.on_serial else self._past()
                self.pager = Pager(text, title="scroll-back", at_end=True, sticky=True)
            case "path":
                self.show_path = not self.show_path
            case _:
                self.say(f"Ctrl-a {command.key} is no command: Ctrl-a h lists them")

    def _past(self) -> str:
        if self.vm.screen.display.mode() == "text":
            self.history.look(self.vm.screen.display.text_rows())
        return self.history.text()

    def _page_height(self) -> int:
        return max(2, self.app.output.get_size().rows - 3)

    def _paged(self) -> str:
        return self.pager.text(self.app.output.get_size().columns - 4, self._page_height()) if self.pager is not None else ""

    # -- the command line

    def _focus_guest(self) -> None:
        self.app.layout.focus(self._guest)

    def _entered(self, line: str) -> None:
        self.app.create_background_task(self._carry_out(line))

    async def _carry_out(self, line: str) -> None:
        answer = await self.interpreter.run(line)
        self.quit = self.quit or self.interpreter.left
        if "\n" in answer:
            self.pager = Pager(answer, title=line)
        elif answer or line.strip():
            self.say(answer or f"{line.strip()}: done")
        self.app.invalidate()

    def _screenshot(self) -> None:
        while (path := Path(f"{self.vm.name}-{self._shots}.png")).exists():
            self._shots += 1
        try:
            self.vm.screen.save_png(path)
        except OSError as error:
            self.say(f"cannot write {path}: {error.strerror}")
        else:
            self.say(f"saved {path}")

    async def _type(self) -> None:
        """Pass on what was pressed, as fast as the guest takes it."""
        keyboard = self.vm.keyboard
        while True:
            event = await self._inbox.get()
            if self.on_serial and not isinstance(event, Command):
                self.vm.serial.write(event.text.replace("\n", "\r") if isinstance(event, Text) else event.data)
            elif isinstance(event, Text):
                await self._type_text(event.text)
            elif isinstance(event, Chord):
                for key in event.keys:
                    keyboard.press(key)
                for key in reversed(event.keys):
                    keyboard.release(key)
            while keyboard.queued > ENOUGH:  # noqa: ASYNC110  the guest says nothing when it reads
                await asyncio.sleep(1 / FRAMES)

    async def _type_text(self, text: str) -> None:
        if len(text) == 1:
            self.vm.keyboard.feed(typable(text))
            return
        try:
            await self.vm.keyboard.type(typable(text), PASTE_DELAY)
        except avmm.WaitTimeout:
            self.say("the guest does not read its keyboard: the rest of what was pasted is dropped")

    # -- life

    async def _watch(self) -> None:
        """Redraw when something changed, and end with the machine."""
        vm = self.vm
        shown: tuple[object, ...] = ()
        looked: tuple[bool, int] | None = None
        while True:
            await asyncio.sleep(max(1 / FRAMES, LOAD * self._draw_seconds))
            if vm.state in (avmm.RunState.OFF, avmm.RunState.FAILED) or vm.boot_failure:
                self._exit()
                return
            now = time.monotonic()
            self._count(now)
            drawn = self.show_path and self.path.sample(now)
            if vm.screen.display.mode() == "text" and vm.screen.generation != looked:
                looked = vm.screen.generation
                self.history.look(vm.screen.display.text_rows())
            if self._message and now > self._message_until:
                self._message = ""
            seen = self.serial.generation if self.on_serial else vm.screen.generation
            state = (self.on_serial, seen, vm.state, self._message, self._rate)
            if state != shown or drawn:
                shown = state
                self.app.invalidate()

    def _count(self, now: float) -> None:
        since, before, _ = self._rate
        if now - since >= 1:
            exits = sum(self.vm.stats.exits.values())
            self._rate = (now, exits, int((exits - before) / (now - since)) if since else 0)

    def _exit(self) -> None:
        if self.app.is_running and self.app.future is not None and not self.app.future.done():
            self.app.exit()

    async def run(self) -> None:
        """Show the machine until it ends or the person quits."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(work, name=f"console:{name}") for name, work in (("watch", self._watch()), ("type", self._type()))]
        for task in tasks:
            task.add_done_callback(self._task_ended)
        before = loop.get_exception_handler()
        loop.set_exception_handler(self._callback_failed)
        try:
            await self.app.run_async(handle_sigint=False, set_exception_handler=False)
            if self._bug is not None:
                raise self._bug
        finally:
            loop.set_exception_handler(before)
            self.interpreter.close()
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError, avmm.MachineEnded, avmm.GuestFailure):
                    await task

    def _callback_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something went wrong while drawing or in a key's handler: leave the full screen, then say what."""
        self._bug = context.get("exception") or RuntimeError(context["message"])
        self._exit()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._exit()  # with the machine, or with an exception that run() raises


def _help_text() -> str:
    lines = [f"  Ctrl-a {key:<7} {what}  " for key, what in HELP]
    return "\n".join(["", "  All other keys go to the guest.", "", *lines, "", "  Any key closes this help.", ""])


async def run_console(request: Request) -> int:
    """Make the machine, show it, and return the exit status."""
    async with avmm.Host() as host:
        vm = await host.create_vm(request.machine())
        with ExitStack() as held:
            held.enter_context(serial_io.connected(vm, request.serial))
            held.enter_context(logged(vm, request.log))
            console = GuestConsole(host, vm, request, held.enter_context(recorded(request.record)))
            await vm.start()
            await console.run()
        status = _outcome(console)
        save_files(vm, request)
        if request.stats:
            print_stats(vm.stats)
    return status


def _outcome(console: GuestConsole) -> Status:
    vm = console.vm
    if vm.partition.failure is not None:
        say(f"avmm: {vm.partition.failure}")
        return Status.FAILED
    if vm.boot_failure:
        raise_nothing_booted(vm, console.request)
    if vm.partition.off_reason == "triple fault":
        say(f"avmm: {vm.report('triple fault')}")
        return Status.FAILED
    say(f"{vm.name}: {'switched off' if console.quit else f'the guest went off ({vm.partition.off_reason})'}")
    return Status.DONE
