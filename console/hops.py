"""One disk request's way, as people read it: each hop with its moment, where it happens, and what."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.console import Console

WAYS = ("answered inside", "plain register")
"""How an access is answered that takes no packet."""
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
    """Yield the hops, each run of accesses that were answered, inside or outside, with nothing in between as one."""
    whole = {irp for irp in (hop["irp"] for hop in hops) if irp and _undisturbed(hops, irp)}

    def kind(hop: dict[str, Any]) -> str:
        return "packet" if hop["irp"] in whole else next((way for way in WAYS if hop["what"].endswith(f" traps, {way}")), "")

    for way, run in groupby(hops, key=kind):
        members = list(run)
        if not way:
            yield from members
            continue
        accesses = [list(one) for _, one in groupby(members, key=_irp if way == "packet" else id)]
        names = [access[0]["what"].partition(" traps")[0] for access in accesses]
        if way == "packet":
            average = sum(access[-1]["us"] - access[0]["us"] for access in accesses) / len(accesses)
            way = f"IRP, service OS, VM entry; {average:.1f} us"
        what = f"{', '.join(names)}: {'each traps' if len(names) > 1 else 'traps'}, {way}"
        yield {"us": members[0]["us"], "where": "hypervisor", "what": what, "irp": None}


def _irp(hop: dict[str, Any]) -> Any:
    return hop["irp"]


def _undisturbed(hops: list[dict[str, Any]], irp: int) -> bool:
    """Whether the hops of an access follow each other."""
    at = [index for index, hop in enumerate(hops) if hop["irp"] == irp]
    return at[-1] - at[0] == len(at) - 1
