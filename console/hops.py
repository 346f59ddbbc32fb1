"""One disk request's way, as people read it: each hop with its moment, where it happens, and what."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.console import Console

COLOURS = {"guest": "green", "hypervisor": "yellow", "service OS": "magenta", "VMBus": "cyan", "VM-H": "blue"}


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
