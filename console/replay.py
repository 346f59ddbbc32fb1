"""``avmm replay``: a recorded run, once more."""

from __future__ import annotations

import time

import click

import avmm
from avmm.control import record as records
from avmm.control.inputs import Diverged

from . import lifetime
from .group import CONTEXT
from .outputs import check_writable
from .results import Status, final_state, print_stats, say


@click.command("replay", context_settings=CONTEXT)
@click.argument("file")
@click.option("--print-screen", is_flag=True, help="Print the screen's text at the end.")
@click.option("--screenshot", metavar="F.png", help="Save the screen at the end.")
@click.option("--stats", is_flag=True, help="Print at the end what the machine did.")
def replay(file: str, print_screen: bool, screenshot: str | None, stats: bool) -> int:
    """Make a recorded run again.

    FILE is from avmm run --record-input FILE.

    The same machine gets the same input at the same moments, and does the same to the byte, also when it failed. Exit status 1:
    it did something else, and where first is said; 2: the file, or an image of the machine, cannot be used.
    """
    if screenshot is not None:
        check_writable("--screenshot", screenshot)
    return lifetime.run(run_replay(file, print_screen, screenshot, stats))


async def run_replay(path: str, print_screen: bool, screenshot: str | None, stats: bool) -> Status:
    """Replay a record and tell how that went."""
    record = records.read(path)
    async with avmm.Host() as host:
        replay = await records.Replay.make(host, record)
        vm, began = replay.vm, time.monotonic()
        try:
            await replay.run()
        except Diverged as difference:
            say(f"avmm: {difference}")
            say(final_state(vm))
            return Status.TIMEOUT
        say(f"{_told(record)}: identical ({time.monotonic() - began:.1f} s here)")
        if vm.partition.failure is not None:
            say(f"it failed as it did: {vm.partition.failure}")
        if print_screen:
            click.echo(vm.screen.text())
        if screenshot is not None:
            vm.screen.save_png(screenshot)
        if stats:
            print_stats(vm.stats)
    return Status.DONE


def _told(record: records.Record) -> str:
    """Say what was replayed."""
    inputs = sum(entry.kind != "check" for entry in record.inputs)
    cut = "" if record.end is not None else ", up to where the record was cut off"
    return f"{record.last / 1e9:.6f} s of machine time, {inputs} inputs, {len(record.inputs) - inputs} checks{cut}"
