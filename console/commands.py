"""The console's command line without its terminal: what can be said, how it is completed, and what is answered.

Each line becomes one of the control panel's commands (avmm.control.commands), or one of its human monitor. The invariant: a
mistake is answered with a sentence; nothing that can be typed ends the console.
"""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import avmm
from avmm.control.commands import COMMANDS, Target
from avmm.control.commands.block import drives
from avmm.control.placement import PLACES
from avmm.control.qmp import QmpError
from avmm.devices.keys import KEYS

from .results import stats_tables

WIDTH = 76
INFO = ("block", "cpus", "irq", "mtree", "name", "placement", "registers", "stats", "status", "trace", "version")


@dataclass(frozen=True, slots=True)
class Verb:
    """One thing that can be said. ``qmp`` names the command and ``arguments`` its parameters in order; without it the monitor answers."""

    usage: str
    what: str
    qmp: str = ""
    arguments: tuple[str, ...] = ()


VERBS = {
    "stop": Verb("", "let machine time stand still", "stop"),
    "cont": Verb("", "go on", "cont"),
    "reset": Verb("", "press the reset button", "system_reset"),
    "powerdown": Verb("", "press the power button (ACPI)", "system_powerdown"),
    "quit": Verb("", "switch the machine off and leave", "quit"),
    "install": Verb("DEVICE [IMAGE [SHA256]]", "bring a device into the hypervisor", "x-avmm-install", ("device", "image", "sha256")),
    "uninstall": Verb("DEVICE [PLACE]", "put a device outside", "x-avmm-uninstall", ("device", "to")),
    "virtualize": Verb("DEVICE", "give the guest a virtual device", "x-avmm-virtualize", ("device",)),
    "devirtualize": Verb("DEVICE", "give the guest the real one again", "x-avmm-devirtualize", ("device",)),
    "mode": Verb("MODE", "choose how the guest reaches its disks", "x-avmm-mode", ("mode",)),
    "stats": Verb("", "what the machine did, as tables"),
    "status": Verb("", "whether it runs", "query-status"),
    "type": Verb("TEXT", "type it on the guest's keyboard", "x-avmm-type", ("text",)),
    "sendkey": Verb("KEY-KEY... [HOLD-MS]", "press keys together"),
    "info": Verb("SUBJECT", "registers, block, irq, mtree, placement, trace ..."),
    "x": Verb("/FORMAT ADDRESS", "dump linear memory: x /8xw 0x7c00, x /4i $pc"),
    "xp": Verb("/FORMAT ADDRESS", "dump physical memory"),
    "screendump": Verb("FILE", "save the screen, .png or .ppm"),
    "eject": Verb("[-f] DRIVE", "open the CD-ROM drive"),
    "change": Verb("DRIVE FILE", "put another image in"),
    "qmp": Verb("COMMAND [JSON]", "any command of the QMP socket"),
    "help": Verb("[COMMAND]", "this list, or one of it"),
}


class Interpreter:
    """Carries out lines for one machine."""

    def __init__(self, host: avmm.Host, vm: avmm.Vm) -> None:
        self.vm = vm
        self.left = False
        """Whether ``quit`` was said."""
        self.target = Target(host, COMMANDS, self._quit, vm)

    async def _quit(self, vm: avmm.Vm | None) -> None:
        self.left = True
        await self.vm.partition.stop("quit")

    def close(self) -> None:
        """Stop watching the machine."""
        self.target.unwatch(self.vm)

    async def run(self, line: str) -> str:
        """Carry out a line and return the answer as text, empty when there is nothing to say."""
        name, _, rest = line.strip().partition(" ")
        name, slash, _ = name.partition("/")
        if not name:
            return ""
        verb = VERBS.get(name)
        if verb is None:
            return f"{name} is no command: help lists them"
        try:
            if slash or (not verb.qmp and name not in ("stats", "qmp", "help")):
                return await self._monitor(line.strip())
            if name == "help":
                return help_text(rest.strip())
            if name == "stats":
                return _rendered(*stats_tables(self.vm.stats))
            if name == "qmp":
                return await self._qmp(rest)
            return shown(await self.target.execute(verb.qmp, _arguments(name, verb, rest)))
        except (QmpError, ValueError) as error:
            return f"{error}"

    async def _monitor(self, line: str) -> str:
        answer = await self.target.execute("human-monitor-command", {"command-line": line})
        return str(answer).replace("\r\n", "\n").rstrip()

    async def _qmp(self, rest: str) -> str:
        name, _, text = rest.strip().partition(" ")
        given = json.loads(text or "{}")
        if not isinstance(given, dict):
            raise QmpError("the arguments are a JSON object")
        return json.dumps(await self.target.execute(name, given), indent=2)

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
        sources: dict[str, Callable[[], Sequence[tuple[str, str]]]] = {
            "help": lambda: [(verb, "") for verb in VERBS],
            "info": lambda: [(subject, "") for subject in INFO],
            "qmp": lambda: [(command, "") for command in sorted(COMMANDS)],
            "eject": lambda: [(drive, "") for drive in drives(self.vm)],
            "change": lambda: [(drive, "") for drive in drives(self.vm)],
            "sendkey": lambda: [(key, "") for key in sorted(KEYS)],
            **dict.fromkeys(("install", "uninstall"), lambda: list(self.vm.placement.items())),
        }
        source = sources.get(name)
        return source() if source is not None else []


def help_text(name: str = "") -> str:
    """Return the list of commands, or one line of it."""
    if name and name not in VERBS:
        return f"{name} is no command"
    return "\n".join(f"{one + ' ' + verb.usage:<34} {verb.what}" for one, verb in VERBS.items() if name in ("", one))


def hint(line: str) -> str:
    """Return the inline help for what is being typed."""
    name = line.lstrip().partition(" ")[0].partition("/")[0]
    verb = VERBS.get(name)
    if verb is not None:
        return f"{name} {verb.usage}: {verb.what}"
    return "Tab completes, Up recalls, Enter does it, Esc leaves; help lists all"


def _arguments(name: str, verb: Verb, rest: str) -> dict[str, object]:
    words = [rest] if verb.arguments == ("text",) else shlex.split(rest)
    if len(words) > len(verb.arguments) or (verb.arguments and not rest.strip()):
        raise QmpError(f"{name} {verb.usage}".strip() if verb.arguments else f"{name} takes no arguments")
    return dict(zip(verb.arguments, words, strict=False))


def shown(answer: object) -> str:
    """Return a command's answer as people read it: objects as tables, nothing as nothing."""
    if answer is None or answer in ({}, []):
        return ""
    if isinstance(answer, dict):
        table = Table("what", "value", box=SIMPLE_HEAD)
        for key, value in answer.items():
            table.add_row(str(key), value if isinstance(value, str) else json.dumps(value))
        return _rendered(table)
    return answer if isinstance(answer, str) else json.dumps(answer, indent=2)


def _rendered(*tables: Table) -> str:
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, highlight=False, color_system=None, force_terminal=False, markup=False)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
