"""``avmm campaign``: a scenario over a matrix of seeds and parameters, with progress, a table and files for other programs.

The invariant: whatever ends the campaign, what has been found is printed and written, and no worker is left.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import lifetime
from .group import CONTEXT
from .outputs import check_writable

if TYPE_CHECKING:
    from avmm.testing.campaign.campaign import Campaign, Result

SEEDS_SHOWN = 8
FAILURES_SHOWN = 50


@click.command("campaign", context_settings=CONTEXT)
@click.argument("scenario", metavar="SCENARIO.PY[::TEST]")
@click.option("--matrix", metavar="KEY=VALUES,...", multiple=True, help="Values of the seed and of parameters; may be given several times.")
@click.option("--workers", metavar="N", type=click.IntRange(1), help="Worker processes here.  [default: one a processor]")
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="Run on the Dask cluster with this scheduler instead.")
@click.option("--limit", metavar="S", type=click.FloatRange(min=0, min_open=True), default=300.0, show_default=True,
              help="Seconds of the host's time that an instance may take.")  # fmt: skip
@click.option("--most-failures", metavar="N", type=click.IntRange(1), help="Start no more instances when so many have failed.")
@click.option("--artefacts", metavar="FOLDER", help="Save pictures, recordings and traces of failed instances there.")
@click.option("--json", "json_file", metavar="F", help="Write all results as JSON; - is standard output.")
@click.option("--junit", "junit_file", metavar="F", help="Write all results as JUnit's XML; - is standard output.")
@click.option("--list", "only_list", is_flag=True, help="Only list the instances.")
def campaign(matrix: tuple[str, ...], workers: int | None, json_file: str | None, junit_file: str | None, **given: Any) -> int:
    """Run a scenario many times, over a matrix of parameters.

    All combinations are run, several at once.
    SCENARIO.PY is a file of tests for pytest. A test declares its parameters with their defaults by the marker
    avmm_params, and finds them in the fixtures avmm_param and avmm_seed; machines have the seed, too.

    \b
      avmm campaign crash.py --matrix seeds=1..1000
      avmm campaign crash.py --matrix "seeds=1..100,fault=none|torn|late" --junit results.xml
      avmm campaign crash.py::test_one --matrix size=8..64..8 --scheduler tcp://head:8786

    An instance whose worker dies is run again. Each failure is printed with the command that repeats it. Exit status 0: all
    passed; 1: some did not; 2: bad usage; 130: Ctrl-C, and what had been found until then was printed and written.
    """
    from avmm.testing.campaign.matrix import parse

    files = {"--json": json_file, "--junit": junit_file}
    request = _Request(matrix=parse(matrix), workers=workers or os.cpu_count() or 1, files=files, **given)
    request.check()
    return lifetime.run(_run(request))


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked for."""

    scenario: str
    matrix: dict[str, list[str]]
    workers: int
    scheduler: str | None
    limit: float
    most_failures: int | None
    artefacts: str | None
    files: dict[str, str | None]
    """Where the results go, by option."""
    only_list: bool

    def check(self) -> None:
        """Raise UsageError now, not when an hour's results are there to be written."""
        if all(path == "-" for path in self.files.values()):
            raise click.UsageError("--json - and --junit - cannot both have standard output: give one of them a file")
        for option, path in self.files.items():
            if path is not None and path != "-":
                check_writable(option, path)
        if self.artefacts is not None and Path(self.artefacts).exists() and not Path(self.artefacts).is_dir():
            raise click.UsageError(f"--artefacts {self.artefacts}: this is not a directory")

    def console(self) -> Console:
        """Return where the table goes: standard output, unless that is for a file's content."""
        return Console(highlight=False, stderr="-" in self.files.values())

    def pool(self) -> Any:
        """Return the workers."""
        if self.scheduler is not None:
            from avmm.testing.campaign.cluster import Cluster

            return Cluster(self.scheduler, self.limit, self.artefacts)
        from avmm.testing.campaign.processes import Processes

        return Processes(self.workers, self.limit, self.artefacts)


async def _run(request: _Request) -> int:
    from avmm.testing.campaign.campaign import Campaign
    from avmm.testing.campaign.matrix import instances
    from avmm.testing.campaign.processes import collect

    made = instances(await collect(request.scenario), request.matrix)
    if request.only_list:
        for instance in made:
            click.echo(f"{instance.test} [{instance.variant}]")
        return 0
    campaign, console = Campaign(made, most_failures=request.most_failures), request.console()
    async with request.pool() as pool:
        try:
            with _progress(campaign, console):
                await campaign.run(pool)
        finally:
            _write_files(request, campaign)
            _show(console, campaign)
    return 0 if len(campaign.results) == len(made) and not campaign.failures else 1


def _progress(campaign: Campaign, console: Console) -> Progress:
    """Return a bar that follows the campaign, with failures above it as they come; a terminal is needed for the bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[now]}"))
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("campaign", total=len(campaign.instances), now="")

    def changed(result: Result | None) -> None:
        if result is not None and not result.good and console.is_terminal:
            bar.console.print(_headline(result), markup=False)
        failed = len(campaign.failures)
        running = [campaign.instances[number].variant for number in sorted(campaign.running)][:2]
        bar.update(task, completed=len(campaign.results), now=f"{failed} failed; running {' | '.join(running)}")

    campaign.on_change = changed
    return bar


def _headline(result: Result) -> str:
    return f"{result.outcome}: {result.instance.test} [{result.instance.variant}]: {result.message}"


def _show(console: Console, campaign: Campaign) -> None:
    """Print the table, and each failure with its command."""
    from avmm.testing.campaign.reports import summary

    console.print(_table(campaign))
    for sentence in campaign.lost:
        console.print(f"run again: {sentence}", markup=False, soft_wrap=True)
    for result in campaign.failures[:FAILURES_SHOWN]:
        console.print(_headline(result), markup=False, soft_wrap=True)
        console.print(f"    {result.instance.command}", markup=False, soft_wrap=True)
    if len(campaign.failures) > FAILURES_SHOWN:
        console.print(f"and {len(campaign.failures) - FAILURES_SHOWN} more failures: --json F has them all")
    console.print(", ".join(f"{count} {outcome}" for outcome, count in summary(campaign).items()) or "nothing was run")


def _table(campaign: Campaign) -> Table:
    """A row for each test and combination of parameters; its seeds are counted."""
    rows: dict[tuple[str, str], list[Result]] = {}
    for _, result in sorted(campaign.results.items()):
        instance = result.instance
        parameters = " ".join(f"{name}={value}" for name, value in instance.parameters.items())
        rows.setdefault((instance.test, parameters), []).append(result)
    table = Table("test", "parameters", "passed", "failed", "machine s", "seeds that failed")
    table.columns[0].overflow = table.columns[1].overflow = "fold"
    for column in table.columns[2:5]:
        column.justify = "right"
    for (test, parameters), results in rows.items():
        bad = [str(result.instance.seed) for result in results if not result.good]
        seeds = " ".join(bad[:SEEDS_SHOWN]) + (f" and {len(bad) - SEEDS_SHOWN} more" if len(bad) > SEEDS_SHOWN else "")
        passed = sum(result.outcome == "passed" for result in results)
        machine = sum(result.machine_seconds or 0 for result in results)
        name = test.partition("::")[2]
        table.add_row(name, parameters, str(passed), f"[red]{len(bad)}[/]" if bad else "0", f"{machine:,.1f}", seeds)
    return table


def _write_files(request: _Request, campaign: Campaign) -> None:
    from avmm.testing.campaign.reports import as_json, as_junit

    writers: dict[str, Callable[[], str]] = {
        "--json": lambda: json.dumps(as_json(campaign, request.scenario, request.matrix), indent=2),
        "--junit": lambda: as_junit(campaign, request.scenario),
    }
    for option, path in request.files.items():
        if path == "-":
            click.echo(writers[option]())
        elif path is not None:
            try:
                Path(path).write_text(writers[option]() + "\n", encoding="utf-8")
            except OSError as error:  # must not cost the other results
                click.echo(f"avmm: {option} {path}: {error.strerror}", err=True)
