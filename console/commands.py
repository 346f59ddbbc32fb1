"""The console's command line without its terminal: what can be said, how it is completed, and what is answered.

Each line becomes one of the control panel's commands (avmm.control.commands), or one of its human monitor; those that somebody adds there
can be said here without more. The invariant: a mistake is answered with a sentence; nothing that can be typed ends the console.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avmm.control.commands import COMMANDS, Command
from avmm.control.commands.command import REQUIRED
from avmm.control.commands.monitor import subjects, usages
from avmm.control.config import ConfigError
from avmm.control.placement import PLACES
from avmm.control.qmp import QmpError
from avmm.control.stats import PortStats, Stats
from avmm.devices.guest_port import MODES
from avmm.devices.keys import KEYS

from . import top
from .machines import Machine
from .pager import LiveView
from .results import stats_tables
from .tables import WIDTH, rendered, shown

OWN = "x-avmm-"
FILES = ("filename", "path", "file")
"""Arguments that name a file: relative to where the console was started, not to the host's folder."""
TRACED = 500


@dataclass(frozen=True, slots=True)
class Verb:
    """One thing that can be said. ``qmp`` names the command and ``arguments`` its parameters in order; without it the monitor answers."""

    usage: str
    what: str
    qmp: str = ""
    arguments: tuple[str, ...] = ()
    always: tuple[tuple[str, object], ...] = ()
    """Arguments that are the same each time."""


CDROM = (("device", "cdrom"),)
_OWN_VERBS = {
    "help": Verb("[COMMAND]", "this list, or one of it"),
    "start": Verb("", "let it begin, or go on", "cont"),
    "stop": Verb("", "let machine time stand still", "stop"),
    "pause": Verb("", "the same as stop", "stop"),
    "cont": Verb("", "go on", "cont"),
    "reset": Verb("", "press the reset button", "system_reset"),
    "powerdown": Verb("", "press the power button (ACPI)", "system_powerdown"),
    "quit": Verb("", "switch the machine off", "quit"),
    "status": Verb("", "whether it runs", "query-status"),
    "top": Verb("", "live: all machines, what each does in a second"),
    "trace": Verb("", "live: the last events worth knowing"),
    "stats": Verb("", "what the machine did, as tables"),
    "install": Verb("DEVICE [IMAGE [SHA256]]", "bring a device into the hypervisor", "x-avmm-install", ("device", "image", "sha256")),
    "uninstall": Verb("DEVICE [PLACE]", "put a device outside", "x-avmm-uninstall", ("device", "to")),
    "virtualize": Verb("DEVICE", "give the guest a virtual device", "x-avmm-virtualize", ("device",)),
    "devirtualize": Verb("DEVICE", "give the guest the real one again", "x-avmm-devirtualize", ("device",)),
    "commit": Verb("", "flush disks, write what overlays hold into their images", "x-avmm-commit"),
    "inspect": Verb("DEVICE", "where a device lives, what it answers to, its registers", "x-avmm-inspect", ("device",)),
    "snapshot": Verb("FILE", "save the machine", "x-avmm-snapshot", ("file",)),
    "restore": Verb("FILE", "go on from what was saved", "x-avmm-restore", ("file",)),
    "keep-history": Verb("[EVERY]", "remember from now on, to go back: every so many seconds", "x-avmm-keep-history", ("every",)),
    "rewind": Verb("SECONDS", "go back in machine time", "x-avmm-rewind", ("seconds",)),
    "mode": Verb("MODE", "choose how the guest reaches its disks", "x-avmm-mode", ("mode",)),
    "type": Verb("TEXT", "type it on the guest's keyboard", "x-avmm-type", ("text",)),
    "screendump": Verb("FILE", "save the screen as PNG", "screendump", ("filename",), (("format", "png"),)),
    "eject": Verb("[force]", "open the CD-ROM drive; with force also when the guest has locked it", "eject", ("force",), CDROM),
    "insert": Verb("FILE", "put another CD-ROM in", "blockdev-change-medium", ("filename",), CDROM),
    "qmp": Verb("COMMAND [JSON]", "any command of the QMP socket"),
}
_HERE = ("help", "top", "trace", "stats", "qmp")
_HIDDEN = ("system_reset", "system_powerdown", "change", "c", "list", "screen", "savevm", "loadvm", "remove_interposer")
"""What is there under another name, or says nothing that a console does not show."""


def _verbs() -> dict[str, Verb]:
    """Return all that can be said: the panel's own commands, the monitor's, and above them ours with their own wording."""
    panel = {name.removeprefix(OWN): _of_panel(command) for name, command in COMMANDS.items() if name.startswith(OWN)}
    monitor = {name: Verb(usage, what) for name, (usage, what) in usages().items()}
    found = {**panel, **monitor, **_OWN_VERBS}
    first = [name for name in _OWN_VERBS if name != "qmp"]
    names = [*first, *sorted(set(found) - set(_OWN_VERBS)), "qmp"]
    return {name: found[name] for name in names if name not in _HIDDEN}


def _of_panel(command: Command) -> Verb:
    words = [name.upper() if arg.default is REQUIRED else f"[{name.upper()}]" for name, arg in command.args.items()]
    what = (command.action.__doc__ or "").strip().partition("\n")[0].rstrip(".").removeprefix("Return ")
    return Verb(" ".join(words), what[:1].lower() + what[1:], command.name, tuple(command.args))


VERBS = _verbs()


class Interpreter:
    """Carries out lines for one machine; ``everyone`` are all that the console has, ``width`` says how wide tables may be."""

    def __init__(self, machine: Machine, everyone: Sequence[Machine], width: Callable[[], int] = lambda: WIDTH) -> None:
        self.machine = machine
        self._width = width
        self._everyone = everyone

    async def run(self, line: str) -> str | LiveView:
        """Carry out a line. Returns the answer as text, empty when there is nothing to say, or a view that is made again and again."""
        name, _, rest = line.strip().partition(" ")
        name, slash, _ = name.partition("/")
        if not name:
            return ""
        verb = VERBS.get(name)
        if verb is None:
            return f"{name} is no command: help lists them"
        try:
            if name in _HERE and not slash:
                return await self._here(name, rest.strip())
            if slash or not verb.qmp:
                return await self._monitor(line.strip())
            return shown(await self.machine.execute(verb.qmp, arguments(name, verb, rest)), self._width())
        except (QmpError, ConfigError, ValueError) as error:
            return f"{error}"

    async def _here(self, name: str, rest: str) -> str | LiveView:
        match name:
            case "help":
                return help_text(rest)
            case "qmp":
                return await self._qmp(rest)
            case "stats":
                return rendered(*stats_tables(stats_of(await self.machine.execute("x-avmm-stats", {}))))
            case "trace":
                return LiveView("trace", self._trace, follow=True)
        return LiveView("top", Top(self._everyone).ask)

    async def _monitor(self, line: str) -> str:
        answer = await self.machine.execute("human-monitor-command", {"command-line": line})
        return str(answer).replace("\r\n", "\n").rstrip()

    async def _qmp(self, rest: str) -> str:
        name, _, text = rest.partition(" ")
        try:
            given = json.loads(text or "{}")
        except ValueError as error:
            raise QmpError(f"the arguments are no JSON: {error}") from None
        if not isinstance(given, dict):
            raise QmpError("the arguments are a JSON object")
        return json.dumps(await self.machine.execute(name, given), indent=2)

    async def _trace(self) -> str:
        answer: Any = await self.machine.execute("x-avmm-trace", {"count": TRACED})
        lines = [
            " ".join([f"{event['time'] / 1e9:12.6f}", event["name"], *(f"{key}={value}" for key, value in event["fields"].items())])
            for event in answer["events"]
        ]
        lines += [f"{name}: {count} more were left out" for name, count in answer["suppressed"].items()]
        return "\n".join([*lines, *([answer["failure"]] if answer["failure"] else [])]) or "nothing happened that is worth knowing"

    # -- completion

    def candidates(self, line: str) -> list[tuple[str, str]]:
        """Return what the last word of a line can be, each with a few words about it."""
        words = line.split(" ")
        if len(words) == 1:
            return [(name, f"{verb.usage}  {verb.what}".strip()) for name, verb in VERBS.items() if name.startswith(words[0])]
        found = self._words(words[0], len(words) - 1)
        return [(word, about) for word, about in found if word.startswith(words[-1])]

    def _words(self, name: str, position: int) -> Sequence[tuple[str, str]]:
        if position > 1:
            return [(place, "") for place in PLACES] if (name, position) == ("uninstall", 2) else []
        verb = VERBS.get(name)
        facts = self.machine.seat.facts
        sources: dict[str, Callable[[], Sequence[tuple[str, str]]]] = {
            "help": lambda: [(verb, "") for verb in VERBS],
            "info": lambda: [(subject, "") for subject in subjects()],
            "qmp": lambda: [(command, "") for command in sorted(COMMANDS)],
            "mode": lambda: [(mode, "") for mode in MODES],
            "sendkey": lambda: [(key, "") for key in sorted(KEYS)],
        }
        source = sources.get(name)
        if source is not None:
            return source()
        if verb is None or not verb.arguments or facts is None:
            return []
        return list(facts.placement.items()) if verb.arguments[0] == "device" else []


class Top:
    """The table of all machines, from one look to the next."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._machines = machines
        self._before: top.Sample = {}

    async def ask(self) -> str:
        """Ask every machine and return the table."""
        now = await self._sample()
        made = top.rows(self._before or now, now)
        self._before = now
        return rendered(top.table(made))

    async def _sample(self) -> top.Sample:
        async def ask(machine: Machine) -> list[dict[str, Any]]:
            try:
                answer: Any = await machine.execute("x-avmm-list", {})
            except (QmpError, ConfigError):
                return []
            return [{**found, "at": time.monotonic()} for found in answer]

        answers = await asyncio.gather(*map(ask, self._machines))
        return {found["name"]: found for answer in answers for found in answer}


def help_text(name: str = "") -> str:
    """Return the list of commands, or one line of it."""
    if name and name not in VERBS:
        return f"{name} is no command"
    said = {f"{one} {verb.usage}".rstrip(): verb.what for one, verb in VERBS.items() if name in ("", one)}
    width = max(map(len, said))
    return "\n".join(f"{usage:<{width}}  {what}".rstrip() for usage, what in said.items())


def hint(line: str) -> str:
    """Return the inline help for what is being typed."""
    name = line.lstrip().partition(" ")[0].partition("/")[0]
    verb = VERBS.get(name)
    if verb is not None:
        return f"{name} {verb.usage}: {verb.what}"
    return "Tab completes, Up recalls, Enter does it, Esc leaves; help lists all"


def arguments(name: str, verb: Verb, rest: str) -> dict[str, object]:
    """Return what was said behind a verb as its command's arguments. QmpError or ValueError for what does not fit."""
    command = COMMANDS[verb.qmp]
    required = [argument for argument in verb.arguments if command.args[argument].default is REQUIRED]
    words = [rest] if verb.arguments == ("text",) else shlex.split(rest)
    if len(words) > len(verb.arguments) or len(words) < len(required) or (required and not rest.strip()):
        raise QmpError(f"{name} {verb.usage}".strip() if verb.arguments else f"{name} takes no arguments")
    given = {argument: _value(argument, command.args[argument].type, word) for argument, word in zip(verb.arguments, words, strict=False)}
    return {**dict(verb.always), **given}


def _value(name: str, kind: type, word: str) -> object:
    try:
        if kind is bool:
            return {"on": True, "true": True, "yes": True, name: True, "off": False, "false": False, "no": False}[word.lower()]
        if kind is int:
            return int(word, 0)
        if kind is float:
            return float(word)
        if kind in (list, dict):
            return json.loads(word)
    except (KeyError, ValueError):
        raise QmpError(f"{name} is {'on or off' if kind is bool else f'no {kind.__name__}'}: {word}") from None
    if name in FILES or (name == "image" and ("/" in word or Path(word).exists()) and "://" not in word):
        return str(Path(word).expanduser().absolute())
    return word


def stats_of(answer: object) -> Stats:
    """Return the statistics that ``x-avmm-stats`` answered."""
    assert isinstance(answer, dict)
    given = {name: value for name, value in answer.items() if name != "summary"}
    for name in ("ports", "memory"):
        given[name] = tuple(PortStats(**port) for port in given[name])
    return Stats(**given)
