"""``avmm trace``: one disk request's whole way, from a program in the guest to the file and back, by each path."""

from __future__ import annotations

import json
from contextlib import aclosing

import click

import avmm_guests
from avmm.control.demo_trace import PATHS, demo_trace

from . import lifetime
from .hops import show

OPERATIONS = ("read", "write")


@click.command("trace")
@click.option("--path", "paths", type=click.Choice(PATHS), multiple=True, help="Only this path; may be given several times.")
@click.option("--op", type=click.Choice(OPERATIONS), default="read", show_default=True, help="What the guest's program does.")
@click.option("--all", "every", is_flag=True, help="Show each access to a register, not how many there were.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of {id, path, op, lba, sectors, us, hops: [{us, where, what, irp}]}.")
def trace(paths: tuple[str, ...], op: str, every: bool, as_json: bool) -> int:
    """Follow one disk request by each path.

    The built-in guest makes it; its way is shown from the program to the file and back.

    On a machine that runs: avmm ctl trace VM --requests 1.
    """

    async def run() -> int:
        found = []
        async with aclosing(demo_trace(avmm_guests.image(), dict.fromkeys(paths) or PATHS, op)) as traces:
            async for one in traces:
                found.append(one.as_dict())
                if not as_json:
                    show(found[-1], every=every)
        if as_json:
            click.echo(json.dumps(found, indent=2))
        return 0

    return lifetime.run(run())
