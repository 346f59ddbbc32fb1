"""``avmm trace``: one disk request's whole way, from a program in the guest to the file and back, by each path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import aclosing
from itertools import groupby
from typing import Any

import click
from rich.console import Console

import avmm_guests
from avmm.control.demo_trace import PATHS, demo_trace

from . import lifetime

COLOURS = {"guest": "green", "hypervisor": "yellow", "service OS": "magenta", "VMBus": "cyan", "VM-H": "blue"}
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


def show(request: dict[str, Any], *, every: bool = False) -> None:
    """Print one request's way. Accesses with nothing else in their midst are counted together unless ``every`` one shall be shown."""
    console = Console(highlight=False)
    error = f", {request['error']}" if request["error"] else ""
    title = f"{request['path']}: request {request['id']}, {request['op']} {request['sectors']} at sector {request['lba']}{error}"
    console.print(f"[bold]{title}[/], {request['us']:,.1f} us", soft_wrap=True)
    for hop in request["hops"] if every else folded(request["hops"]):
        irp = f"  (packet {hop['irp']})" if hop["irp"] else ""
        console.print(f"{hop['us']:10,.1f}  [{COLOURS[hop['where']]}]{hop['where']:<10}[/]  {hop['what']}{irp}", soft_wrap=True)
    console.print()


def folded(hops: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the hops, each run of accesses that went out and came back with nothing in between as one."""
    whole = {irp for irp in (hop["irp"] for hop in hops) if irp and _undisturbed(hops, irp)}
    for simple, run in groupby(hops, key=lambda hop: hop["irp"] in whole):
        members = list(run)
        if not simple:
            yield from members
            continue
        accesses = [list(one) for _, one in groupby(members, key=lambda hop: hop["irp"])]
        names = [access[0]["what"].removesuffix(" traps") for access in accesses]
        average = sum(access[-1]["us"] - access[0]["us"] for access in accesses) / len(accesses)
        what = f"{', '.join(names)}: {'each traps' if len(names) > 1 else 'traps'}, IRP, service OS, VM entry; {average:.1f} us"
        yield {"us": members[0]["us"], "where": "hypervisor", "what": what, "irp": None}


def _undisturbed(hops: list[dict[str, Any]], irp: int) -> bool:
    """Whether the hops of an access follow each other."""
    at = [index for index, hop in enumerate(hops) if hop["irp"] == irp]
    return at[-1] - at[0] == len(at) - 1
