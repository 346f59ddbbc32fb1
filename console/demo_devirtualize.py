"""``avmm demo devirtualize``: a disk changes hands under a running guest, with a chart while it does and a table of what it costs."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

from avmm.control.demo_devirtualize import Demo, Figures, Sample

from . import lifetime
from .ctl_physical import Duration

WIDTH = 34
"""Of the chart's bars; a line is narrower than 80 columns."""


@click.command("devirtualize")
@click.option("--cycles", type=click.IntRange(1), default=100, show_default=True, help="How often the disk is taken and given back.")
@click.option("--bound", type=Duration(), default="2ms", show_default=True, help="Longest time for which the guest may find it busy.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures only.")
def devirtualize(cycles: int, bound: float, as_json: bool) -> int:
    """Virtualize and devirtualize a disk under a guest that reads it without pause."""

    async def run() -> int:
        demo = Demo(cycles, bound)
        console = Console(highlight=False)
        most = 1.0
        async for sample in demo.run():
            most = max(most, sample.mb_s)
            if not as_json:
                console.print(bar(sample, most))
        assert demo.figures is not None
        if as_json:
            click.echo(json.dumps(demo.figures.as_dict(), indent=2))
        else:
            console.print(table(demo.figures))
        return 0 if not demo.figures.errors and not demo.figures.lost else 1

    return lifetime.run(run())


def bar(sample: Sample, most: float) -> str:
    """Return one line of the chart."""
    length = 1 + round((WIDTH - 1) * sample.mb_s / most)
    style = "green" if sample.mode == "direct" else "yellow"
    return f"{sample.mode:<12}[{style}]{'█' * length:<{WIDTH}}[/] {sample.mb_s:8.1f} MB/s {sample.exits_per_s:10,.0f} exits/s"


def table(figures: Figures) -> Table:
    """Return the table."""
    title = f"{figures.cycles} cycles, {figures.errors} errors, {figures.lost} lost"
    made = Table("", "direct", "virtualized", title=title, title_justify="left")
    made.add_row("MB/s", f"{figures.direct_mb_s:.1f} (afterwards {figures.direct_after_mb_s:.1f})", f"{figures.virtualized_mb_s:.1f}")
    made.add_row("exits per request", f"{figures.exits_per_request_direct:.1f}", f"{figures.exits_per_request_virtualized:.1f}")
    guest = figures.pause_p50_us, figures.pause_p99_us, figures.pause_max_us
    made.add_row(f"pause, us (bound {figures.bound_us:.0f})", _ranks(*guest), "")
    made.add_row("  by the host's clock", _ranks(*figures.host_pauses_us), "")
    made.add_row("rolled back", str(figures.rolled_back), "")
    made.add_row("accesses deferred and replayed", str(figures.deferred_accesses), "")
    return made


def _ranks(middle: float, late: float, longest: float) -> str:
    return f"p50 {middle:.0f}, p99 {late:.0f}, max {longest:.0f}"
