"""``avmm top``: a live table of the machines that run, however many processes they run in."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

import avmm
from avmm.control.client import QmpClient
from avmm.control.qmp import QmpError
from avmm.control.sockets import runtime_folder

from . import lifetime
from .group import CONTEXT
from .running import sockets

Sample = dict[str, dict[str, Any]]
_COUNTED = ("exits", "injected", "outside")


@click.command("top", context_settings=CONTEXT)
@click.option("--interval", default=1.0, show_default=True, metavar="S", help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Look twice, an interval apart, print the table and end.")
@click.option("--json", "as_json", is_flag=True, help="Print each table as one line of JSON.")
@click.option("--folder", metavar="DIR", help="Where the sockets are; by default $XDG_RUNTIME_DIR/avmm.")
def top(interval: float, once: bool, as_json: bool, folder: str | None) -> int:
    """Watch the machines that run.

    A row tells a machine's state, its time, what it does in a second, and which devices live outside the hypervisor.
    """
    if not 0.05 <= interval <= 3600:
        raise click.UsageError("--interval is a number of seconds from 0.05 on")
    return lifetime.run(_watch(Path(folder) if folder else runtime_folder(), interval, once, as_json))


async def sample(folder: Path) -> Sample:
    """Ask every socket in ``folder``. Those that do not answer are left out."""

    async def ask(path: Path) -> list[dict[str, Any]]:
        try:
            async with QmpClient(path, patience=2.0) as qmp:
                answer: list[dict[str, Any]] = await qmp.execute("x-avmm-list")
                return [{**machine, "at": time.monotonic()} for machine in answer]
        except (avmm.ConfigError, QmpError):
            return []

    answers = await asyncio.gather(*map(ask, sockets(folder)))
    return {machine["name"]: machine for answer in answers for machine in answer}


def rows(before: Sample, now: Sample) -> list[dict[str, Any]]:
    """Return one row a machine: what it is, and what it did a second since the last look."""
    made = []
    for name, machine in sorted(now.items()):
        last = before.get(name, machine)
        seconds = machine["at"] - last["at"]
        rates = {f"{key}_per_second": max(0, machine[key] - last[key]) / seconds if seconds > 0 else 0.0 for key in _COUNTED}
        used = machine["guest_ns"] - last["guest_ns"]
        outside = {device: place for device, place in machine["placement"].items() if place != "hypervisor"}
        made.append(
            {
                "name": name, "status": machine["status"], "clock": machine["clock"], "machine_seconds": machine["machine_ns"] / 1e9,
                **rates, "guest_percent": max(0.0, used / seconds / 1e7) if seconds > 0 else 0.0,
                "memory": machine["memory"], "weight": machine["weight"], "cap": machine["cap"],
                "outside": outside, "placement": machine["placement"],
            }
        )  # fmt: skip
    return made


def table(made: list[dict[str, Any]]) -> Table:
    """Return the rows as people read them."""
    names = ("VM", "state", "time", "guest", "exits/s", "IRQ/s", "IRP/s", "RAM", "weight", "outside")
    shown = Table(*names, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in shown.columns[:9]:
        column.no_wrap = True
    for column in shown.columns[2:9]:
        column.justify = "right"
    for row in made:
        weight = str(row["weight"]) if row["cap"] is None else f"{row['weight']}, {row['cap']:.0%}"
        shown.add_row(
            row["name"], row["status"], f"{row['machine_seconds']:,.1f}", f"{row['guest_percent']:.0f}%",
            f"{row['exits_per_second']:,.0f}", f"{row['injected_per_second']:,.0f}", f"{row['outside_per_second']:,.0f}",
            f"{row['memory'] >> 20}M", weight, " ".join(row["outside"]) or "-",
        )  # fmt: skip
    return shown


async def _watch(folder: Path, interval: float, once: bool, as_json: bool) -> int:
    before = await sample(folder)
    if not before and once:
        if as_json:
            click.echo("[]")
        else:
            click.echo("no machine runs: avmm up starts some", err=True)
        return 0
    if as_json or once or not sys.stdout.isatty():
        while True:
            await asyncio.sleep(interval)
            now = await sample(folder)
            made = rows(before, now)
            if as_json:
                click.echo(json.dumps(made))
            else:
                Console(highlight=False).print(table(made))
            if once:
                return 0
            before = now
    with Live(table(rows(before, before)), screen=True, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(interval)
            now = await sample(folder)
            live.update(table(rows(before, now)), refresh=True)
            before = now
