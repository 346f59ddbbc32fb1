"""``avmm demo``, and ``avmm demo inside``: a table and a chart of what it costs to touch a device inside the hypervisor and outside."""

from __future__ import annotations

import json
import math

import click
from rich.console import Console
from rich.table import Table

from avmm.control.demo_inside import Cost, demo_inside

from . import lifetime
from .demo_devirtualize import devirtualize
from .demo_storage import storage

WIDTH = 40


@click.group("demo")
def demo() -> None:
    """Measure what the machine's structure costs and gains."""


demo.add_command(devirtualize)
demo.add_command(storage)


@demo.command("inside")
@click.option("--structure", type=click.Choice(["hybrid", "host"]), default="hybrid", show_default=True, help="The host's structure.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of {operation, placement, exits, hops, us}.")
def inside(structure: str, as_json: bool) -> int:
    """Touch four devices inside the hypervisor and outside.

    Exits, hops and microseconds are compared.
    """

    async def run() -> int:
        costs = await demo_inside(structure)
        if as_json:
            click.echo(json.dumps([cost.as_dict() for cost in costs], indent=2))
        else:
            show(costs)
        return 0

    return lifetime.run(run())


def show(costs: list[Cost]) -> None:
    """Print the table, and bars on a logarithmic scale."""
    console = Console(highlight=False)
    table = Table("operation", "placement", "exits", "hops", "us", title="One operation on average", title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for cost in costs:
        table.add_row(cost.operation, cost.placement, f"{cost.exits:,.1f}", f"{cost.hops:,.1f}", f"{cost.us:,.2f}")
    console.print(table)
    console.print("\nMicroseconds, logarithmic", markup=False)
    least = min(cost.us for cost in costs)
    span = math.log(max(cost.us for cost in costs) / least) or 1
    for cost in costs:
        length = 1 + round((WIDTH - 1) * math.log(cost.us / least) / span)
        style = "green" if cost.placement == "inside" else "yellow"
        console.print(f"{cost.operation:<16} {cost.placement:<8} [{style}]{'█' * length}[/] {cost.us:,.2f}")
