"""What the keys behind the prefix do.

The invariant: each action returns at once; what takes time goes on in the background, and says how it ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .keymenu import KeyMenu
from .keys import HELP, Chord, Command, prefix_name
from .pager import Pager
from .selection import clipboard, unused

if TYPE_CHECKING:
    from .app import Console

Action = Callable[["Console", Command], None]


def carry_out(console: Console, command: Command) -> None:
    """Do what a command says."""
    action = _ACTIONS.get(command.name)
    if action is None:
        console.say(f"{prefix_name(console.router.prefix)} {command.key} is no command: h lists them")
    else:
        action(console, command)


def _help(console: Console, _: Command) -> None:
    name = prefix_name(console.router.prefix)
    lines = [f"  {name} {key:<7} {what}" for key, what in HELP]
    text = "\n".join(["", "  All other keys go to the guest.", "", *lines, f"  {name} {name:<7} {name} for the guest"])
    console.page = Pager(text, title="help")


def _command_line(console: Console, _: Command) -> None:
    console.prompt.begin()
    console.app.layout.focus(console.prompt.window)


def _commit(console: Console, command: Command) -> None:
    """It changes images, so it is put on the command line for somebody to press Enter."""
    _command_line(console, command)
    console.prompt.buffer.insert_text("commit")


def _scroll_back(console: Console, _: Command) -> None:
    tab = console.panes.tab

    def save(text: str) -> None:
        path = unused(tab.title.replace(" ", "-"), "txt")
        try:
            path.write_text(text)
        except OSError as error:
            console.say(f"cannot write {path}: {error.strerror}")
        else:
            console.say(f"saved {path}")

    def copy(text: str) -> None:
        console.app.output.write_raw(clipboard(text))
        console.app.output.flush()
        console.say("copied what is shown, if the terminal lets programs copy")

    console.page = Pager(tab.machine.past(tab.serial), title="scroll-back", at_end=True, sticky=True, save=save, copy=copy)


def _key_menu(console: Console, _: Command) -> None:
    console.page = KeyMenu(lambda keys: console.to_guest(Chord(keys, "")))


def _path(console: Console, _: Command) -> None:
    console.show_path = not console.show_path


def _tab(console: Console, command: Command) -> None:
    if not console.panes.choose(int(command.key) - 1):
        console.say(f"there are {len(console.panes.tabs)} tabs")


def _split(console: Console, command: Command) -> None:
    if not console.panes.split(beside=command.name == "split beside"):
        console.say("there are as many panes as there can be")


def _break(console: Console, _: Command) -> None:
    machine = console.machine
    console.background(console.guarded(machine.seat.send_break(), f"sent a break to {machine.name}'s serial line"))


def _pause(console: Console, _: Command) -> None:
    facts = console.machine.seat.facts
    console.execute("cont" if facts is not None and facts.state == "paused" else "stop")


def _picture(console: Console, _: Command) -> None:
    path = unused(console.machine.name, "png")
    console.execute("screendump", f"saved {path}", filename=str(path.absolute()), format="png")


def _drop(console: Console, _: Command) -> None:
    console.typing().drop()
    console.say("dropped what was not typed yet")


_ACTIONS: dict[str, Action] = {
    "help": _help, "command line": _command_line, "commit": _commit, "scroll back": _scroll_back, "key menu": _key_menu, "path": _path,
    "tab": _tab, "split beside": _split, "split below": _split, "break": _break, "pause": _pause, "picture": _picture, "drop": _drop,
    "quit": lambda console, _: console.leave(),
    "serial": lambda console, _: console.panes.toggle(),
    "next": lambda console, _: console.panes.step(1),
    "previous": lambda console, _: console.panes.step(-1),
    "other pane": lambda console, _: console.panes.other(),
    "unsplit": lambda console, _: console.panes.unsplit(),
    "reset": lambda console, _: console.execute("system_reset", "reset"),
    "power button": lambda console, _: console.execute("system_powerdown", "power button pressed"),
    "ctrl-alt-del": lambda console, _: console.to_guest(Chord(("ctrl", "alt", "delete"), "")),
    "mouse": lambda console, _: console.switch_mouse(),
    "suspend": lambda console, _: console.suspend(),
    "redraw": lambda console, _: console.stage.redraw(console.app),
}  # fmt: skip
