"""``avmm doctor``: what works on this machine, and what to do about the rest.

The invariant: each check stands alone; one that cannot even be made counts as missing, with the reason.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import click
from prompt_toolkit.output import ColorDepth
from rich.console import Console
from rich.table import Column, Table

import avmm
import avmm_guests
from avmm.boot import firmware

from . import lifetime
from .group import CONTEXT
from .screen_view import colour_depth

COLUMNS, ROWS = 80, 26
"""Of a terminal on which all of a guest's screen of 80x25 is seen; on a smaller one a part is."""
LEAST = 40, 10
GREETING = "avmm boots"
BOOT_SECONDS = 1.0
MEMORY_WANTED = 256 << 20

_PRINT = bytes.fromhex(
    "31c0 8ed8 be187c"  # xor ax,ax; mov ds,ax; mov si,7c18h
    "ac 84c0 7409 b40e bb0700 cd10 ebf2"  # lodsb; test al,al; jz halt; int 10h with AH=0Eh; again
    "f4 ebfd 90"  # hlt, for ever
)


@click.command("doctor", context_settings=CONTEXT)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def doctor(as_json: bool) -> int:
    """Tell what works on this machine, and what to do about the rest.

    Exit status 1 if something essential is missing.
    """
    return print_checks(examine(), as_json=as_json)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``advice`` says what to do when it is not ok."""

    subject: str
    state: Literal["ok", "note", "missing"]
    found: str
    advice: str = ""
    essential: bool = False


def examine() -> list[Check]:
    """Look at everything."""
    checks: list[tuple[str, bool, Callable[[], Check]]] = [
        ("platform", True, _platform), ("Python", True, _python), ("processor", True, _processor), ("event loop", True, _event_loop),
        ("boot test", True, _boot), ("memory", False, _memory), ("built-in guest", False, _guest), ("SeaBIOS", False, _seabios),
        ("terminal", False, _terminal),
    ]  # fmt: skip
    return [_guarded(subject, essential, check) for subject, essential, check in checks]


def _guarded(subject: str, essential: bool, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        return Check(subject, "missing", f"{type(error).__name__}: {error}", "see the message", essential)


def _platform() -> Check:
    found = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if sys.platform == "linux" and platform.machine() == "x86_64":
        return Check("platform", "ok", found, essential=True)
    return Check("platform", "missing", found, "avmm runs on Linux on x86-64 only", essential=True)


def _python() -> Check:
    good = sys.version_info >= (3, 11)
    found = f"{platform.python_implementation()} {platform.python_version()}"
    return Check("Python", "ok" if good else "missing", found, "" if good else "install Python 3.11 or newer", essential=True)


def _processor() -> Check:
    from avmm.cpu.unicorn import layout

    found = f"unicorn {importlib.metadata.version('unicorn')}"
    try:
        native = layout.native()
    except (avmm.ProcessorError, ImportError) as error:
        return Check("processor", "missing", f"{found}: {error}", f"pip install unicorn=={layout.NEEDED}, then make", essential=True)
    if native.tlb is None:
        off = f"{found}, verified, fast stores and global pages off"
        return Check("processor", "note", off, "guests that write or switch tasks much run slower", essential=True)
    return Check("processor", "ok", f"{found}, verified, fast stores and global pages on", essential=True)


def _event_loop() -> Check:
    return Check("event loop", "ok", f"uvloop {importlib.metadata.version('uvloop')}", essential=True)


def _boot() -> Check:
    began = time.perf_counter()
    with tempfile.NamedTemporaryFile(suffix=".img") as image:
        image.write((_PRINT + GREETING.encode() + b"\0").ljust(510, b"\0") + b"\x55\xaa")
        image.flush()
        status = lifetime.run(_boot_image(image.name))
    if status:
        return Check("boot test", "missing", "interrupted", "run avmm doctor again", essential=True)
    took = time.perf_counter() - began
    return Check("boot test", "ok", f"a boot sector printed through int 10h after {took * 1000:.0f} ms", essential=True)


async def _boot_image(path: str) -> int:
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="1M", disks=[avmm.Disk(path, "ro")], clock="virtual"))
        await vm.start()
        await vm.screen.wait_for(GREETING, timeout=BOOT_SECONDS)
    return 0


def _memory() -> Check:
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    good = free >= MEMORY_WANTED
    found = f"{free >> 20} MiB free"
    return Check("memory", "ok" if good else "note", found, "" if good else "give guests less, such as --memory 16M")


def _guest() -> Check:
    try:
        path = avmm_guests.image()
    except FileNotFoundError as error:
        return Check("built-in guest", "missing", str(error), "make guests")
    return Check("built-in guest", "ok", f"{path} ({path.stat().st_size >> 10} KiB)")


def _seabios() -> Check:
    try:
        paths = [firmware.find(firmware.SEABIOS), firmware.find(firmware.VGABIOS)]
    except avmm.BootError:
        return Check("SeaBIOS", "missing", "only needed for --bios seabios", "apt install seabios, or set AVMM_FIRMWARE to its folder")
    return Check("SeaBIOS", "ok", " and ".join(map(str, paths)))


def _terminal() -> Check:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return Check("terminal", "note", "none here", "the console needs one; --headless does not")
    size = shutil.get_terminal_size()
    colours = _COLOURS[ColorDepth.from_env() or colour_depth(os.environ)]
    found = f"{size.columns}x{size.lines}, {os.environ.get('TERM', 'TERM not set')}, {colours}"
    if size.columns < LEAST[0] or size.lines < LEAST[1]:
        return Check("terminal", "missing", found, f"make it at least {LEAST[0]}x{LEAST[1]}, better {COLUMNS}x{ROWS}")
    if size.columns < COLUMNS or size.lines < ROWS:
        return Check("terminal", "note", found, f"only a part of a guest's screen is seen: {COLUMNS}x{ROWS} shows all")
    return Check("terminal", "ok", found)


_COLOURS = {
    ColorDepth.DEPTH_1_BIT: "no colours",
    ColorDepth.DEPTH_4_BIT: "16 colours",
    ColorDepth.DEPTH_8_BIT: "256 colours",
    ColorDepth.DEPTH_24_BIT: "true colour",
}


def print_checks(checks: list[Check], *, as_json: bool) -> int:
    """Print the table, or JSON; return 1 if something essential is missing."""
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        table = Table("", "what", Column("found", overflow="fold"), "what to do")  # a path is of use in full only
        marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}
        for check in checks:
            table.add_row(marks[check.state], check.subject, check.found, check.advice)
        Console(highlight=False).print(table)
    return int(any(check.essential and check.state == "missing" for check in checks))
