"""What a run leaves: the exit status, pictures, sound, tables.

The invariant: reports for people go to standard error, what was asked for goes to standard output.
"""

from __future__ import annotations

import enum
import json
import sys

import click
from rich.console import Console
from rich.table import Table

import avmm
from avmm.control.stats import Stats

from .request import Request

BUSIEST = 12


class Status(enum.IntEnum):
    """Exit statuses; after a signal it is 128 and its number."""

    DONE = 0
    TIMEOUT = 1
    USAGE = 2
    FAILED = 3


def say(text: str) -> None:
    """Print a line or more for people."""
    click.echo(text, err=True)


def save_files(vm: avmm.Vm, request: Request) -> None:
    """Write the screenshot and the sound that were asked for."""
    for option, path, save in (
        ("--screenshot", request.screenshot, vm.screen.save_png),
        ("--speaker", request.speaker, vm.machine.speaker.save_wav),
    ):
        if path is not None:
            try:
                save(path)
            except OSError as error:
                raise click.ClickException(f"{option} {path}: {error.strerror or error}") from None


def final_state(vm: avmm.Vm) -> str:
    """Return the screen and the serial line's last words, as they are printed when something did not work out."""
    display = vm.screen.display
    screen = vm.screen.text() if display.mode() == "text" else "(graphics, {}x{})".format(*display.size)
    parts = [f"--- the screen after {vm.now:.3f} s of machine time", screen or "(empty)"]
    if vm.serial.output:
        parts += ["--- the serial line's last words", vm.serial.tail().rstrip().replace("\r\n", "\n")]
    return "\n".join([*parts, "---"])


def stats_tables(stats: Stats) -> list[Table]:
    """Return what a machine did, as tables."""
    totals = Table("what", "count", title="The machine", title_justify="left")
    totals.columns[1].justify = "right"
    for kind, count in stats.exits.items():
        totals.add_row(f"exits: {kind}", f"{count:,}")
    for what, count in (
        ("handled inside the hypervisor", stats.inside), ("sent to the service OS", stats.outside),
        ("plain registers outside", stats.plain), ("answered by nobody", stats.floating),
        ("words through data windows", stats.windowed), ("interrupts injected", stats.injected), ("exceptions", stats.exceptions),
        ("resets", stats.resets),
    ):  # fmt: skip
        totals.add_row(what, f"{count:,}")
    for what, ns in (
        ("machine time", stats.machine_ns), ("guest code", stats.guest_ns), ("devices inside", stats.inside_ns),
        ("waiting for the service OS", stats.outside_ns), ("idle", stats.idle_ns),
    ):  # fmt: skip
        totals.add_row(what, f"{ns / 1e6:,.1f} ms")
    busiest = Table("address", "device", "where", "reads", "writes", title="The busiest addresses", title_justify="left")
    for column in busiest.columns[3:]:
        column.justify = "right"
    for port in sorted(stats.ports + stats.memory, key=lambda p: -(p.reads + p.writes))[:BUSIEST]:
        busiest.add_row(f"{port.address:#x}", port.device, "inside" if port.inside else "outside", f"{port.reads:,}", f"{port.writes:,}")
    return [totals, busiest]


def print_stats(stats: Stats) -> None:
    """Print the tables on standard output."""
    console = Console(highlight=False)
    for table in stats_tables(stats):
        console.print(table)


def print_json(vm: avmm.Vm, request: Request, status: Status, outcome: str, done: int) -> None:
    """Print the result of a headless run on standard output."""
    result = {
        "status": int(status),
        "outcome": outcome,
        "steps": [{"kind": step.kind, "text": step.text, "done": i < done} for i, step in enumerate(request.steps)],
        "machine_seconds": vm.now,
        "state": vm.state.value,
        "screen": vm.screen.text().split("\n") if vm.screen.display.mode() == "text" else None,
        "serial": vm.serial.tail(),
        "stats": vm.stats.as_dict(),
    }
    json.dump(result, sys.stdout, indent=2)
    click.echo()
