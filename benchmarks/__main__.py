"""``python -m benchmarks [NAMES] [--runs N] [--json]``: measure, print one table."""

from __future__ import annotations

import importlib

import click

from benchmarks.measure import Result, show

SUITES = (
    "traps", "boot", "firmware", "disk", "storage", "vmbus", "idle", "key_latency", "snapshot", "scenario", "threads", "console",
    "virtualize",
)  # fmt: skip


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(SUITES))
@click.option("--runs", default=5, show_default=True, help="How often each is measured; the median counts.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(names: tuple[str, ...], runs: int, as_json: bool) -> None:
    """Measure what avmm promises, next to QEMU where there is something to compare."""
    results: list[Result] = []
    for name in names or SUITES:
        click.echo(f"measuring {name} ...", err=True)
        results += importlib.import_module(f"benchmarks.{name}").run(runs)
    show(results, as_json)


if __name__ == "__main__":
    main()
