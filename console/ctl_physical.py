"""``avmm ctl virtualize``, ``devirtualize``, ``physical`` and ``interpose``: who has a machine's physical devices, and what is between."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .talk import answer

DEVICE = "avmm.device"
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


class Duration(click.ParamType[float]):
    """A time with its unit, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read ``2ms``."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|ms|us)", value)
        if match is None:
            self.fail(f"{value!r} is no time: write it like 2ms, 500us or 0.5s", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


def _option(name: str, kind: click.ParamType[Any], default: str, help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(name, type=kind, default=default, show_default=True, help=help)


def _switch(name: str, help: str) -> click.Command:
    @click.command(name, help=help)
    @click.argument("vm")
    @click.argument("device")
    @_option("--when", click.Choice(["between", "middle"]), "between", "Between I/O sequences, or also in the middle of one.")
    @_option("--bound", Duration(), "2ms", "Longest time for which the guest may find the device busy.")
    @_option("--on-bound", click.Choice(["rollback", "defer"]), "rollback", "Past it: as it was before, or go on and replay.")
    @_option("--patience", Duration(), "2s", "How long a place to switch at is waited for.")
    @click.pass_context
    def command(ctx: click.Context, vm: str, device: str, when: str, bound: float, on_bound: str, patience: float) -> None:  # noqa: PLR0917
        options = {"when": when, "bound": bound, "on-bound": on_bound, "patience": patience}
        result: dict[str, Any] = {}

        def show(report: dict[str, Any]) -> None:
            result.update(report)
            click.echo(f"{report['device']} is {report['to'] if report['done'] else 'as before'}: {report['outcome']}")
            if report["reason"]:
                click.echo(f"  {report['reason']}")
            pause, guest, bound = (report[name] / 1000 for name in ("pause_ns", "machine_pause_ns", "bound_ns"))
            click.echo(f"  pause {pause:.0f} us, {guest:.0f} us by the guest's clock, of at most {bound:.0f} us")
            click.echo(f"  at: {report['stage']}, word {report['word']}; {report['deferred']} accesses deferred and replayed")

        answer(ctx, vm, f"x-avmm-{name}", show, device=device, **options)
        if result and not result["done"]:
            raise SystemExit(1)

    return command


@click.command("physical")
@click.argument("vm")
@click.pass_context
def physical(ctx: click.Context, vm: str) -> None:
    """Tell who has each physical device, and what is put between."""
    answer(ctx, vm, "x-avmm-physical", _show_all)


def _show_all(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        _show(entry)


def _show(entry: dict[str, Any]) -> None:
    click.echo(f"{entry['device']}: {entry['mode']}")
    for kind, told in entry["interposers"].items():
        click.echo(f"  {kind}: {', '.join(f'{name} {value}' for name, value in told.items())}")


@click.group("interpose")
@click.argument("vm")
@click.argument("device")
@click.pass_context
def interpose(ctx: click.Context, vm: str, device: str) -> None:
    """Put something between a virtualized disk and its driver.

    The guest, which uses it meanwhile, does not notice.

    \b
      avmm ctl virtualize linux ata0
      avmm ctl interpose linux ata0 fault --rule error,op=read,lba=100-199,times=3
      avmm ctl interpose linux ata0 list
      avmm ctl interpose linux ata0 remove fault
    """
    ctx.meta[DEVICE] = vm, device


def _ask(ctx: click.Context, command: str, show: Callable[[Any], Any] = _show, **arguments: object) -> None:
    vm, device = ctx.meta[DEVICE]
    answer(ctx, vm, command, show, device=device, **arguments)


def _add(ctx: click.Context, kind: str, **options: object) -> None:
    given = {name: value for name, value in options.items() if value is not None}
    _ask(ctx, "x-avmm-interpose", kind=kind, options=given)


@interpose.command("trace")
@click.option("--file", required=True, metavar="F", help="Where to: a JSON object a line.")
@click.pass_context
def trace(ctx: click.Context, file: str) -> None:
    """Write every request down: when, what, which sectors, how long it took, the data's CRC, how it ended."""
    _add(ctx, "trace", path=str(Path(file).resolve()))


@interpose.command("fault")
@click.option("--rule", "rules", required=True, multiple=True, metavar="R", help="May be given more than once; see above.")
@click.option("--seed", type=int, default=0, show_default=True, help="For rules with a probability.")
@click.pass_context
def fault(ctx: click.Context, rules: tuple[str, ...], seed: int) -> None:
    """Have requests fail, come late or be torn.

    A rule is ACTION[,NAME=VALUE]...: the action is error, delay or torn (the first half of a write is done, then it fails), the
    names are op (read, write, flush), lba (A or A-B), times (how often at most), probability (0 to 1), seconds (for delay).
    """
    _add(ctx, "fault", rules=list(rules), seed=seed)


@interpose.command("limit")
@click.option("--mb-s", type=float, help="Megabytes a second.")
@click.option("--requests-s", type=float, help="Requests a second.")
@click.option("--burst", type=Duration(), default="10ms", show_default=True, help="What may come at once after a rest.")
@click.pass_context
def limit(ctx: click.Context, mb_s: float | None, requests_s: float | None, burst: float) -> None:
    """Token buckets, in machine time."""
    _add(ctx, "limit", bytes_per_s=None if mb_s is None else mb_s * 1e6, requests_per_s=requests_s, burst=burst)


@interpose.command("mirror")
@click.option("--file", required=True, metavar="F", help="The second disk: made if it is missing, of the same size if not.")
@click.option("--drive", type=click.IntRange(0, 1), default=0, show_default=True)
@click.pass_context
def mirror(ctx: click.Context, file: str, drive: int) -> None:
    """Copy a disk to a second one while it is used; `list` tells how far it is."""
    _add(ctx, "mirror", file=str(Path(file).resolve()), drive=drive)


@interpose.command("switch-over")
@click.pass_context
def switch_over(ctx: click.Context) -> None:
    """Use the mirror's file only, from now on."""
    _ask(ctx, "x-avmm-switch-over")


@interpose.command("share")
@click.option("--with", "other", required=True, metavar="VM", help="An enlightened machine of the same host: it gets the disk as a LUN.")
@click.option("--drive", type=click.IntRange(0, 1), default=0, show_default=True)
@click.pass_context
def share(ctx: click.Context, other: str, drive: int) -> None:
    """Let a second machine have the disk, read-only, while this one goes on using it."""

    def show(result: dict[str, Any]) -> None:
        click.echo(f"{result['vm']} has it as LUN {result['lun']}")

    _ask(ctx, "x-avmm-interpose", show, kind="share", options={"with": other, "drive": drive})


@interpose.command("list")
@click.pass_context
def list_(ctx: click.Context) -> None:
    """Tell what is between, and what it has done."""
    vm, device = ctx.meta[DEVICE]
    answer(ctx, vm, "x-avmm-physical", lambda entries: _show_all([entry for entry in entries if entry["device"] == device]))


@interpose.command("remove")
@click.argument("kind", type=click.Choice(["trace", "fault", "limit", "mirror", "share"]))
@click.pass_context
def remove(ctx: click.Context, kind: str) -> None:
    """Take it away."""
    _ask(ctx, "x-avmm-remove-interposer", kind=kind)


COMMANDS = (
    _switch("virtualize", "Take a physical device from the running guest. Its accesses trap, and the VMM emulates the device."),
    _switch("devirtualize", "Give it back: the guest drives the device itself again, without an exit."),
    physical,
    interpose,
)
"""The commands of ``avmm ctl`` that are made here."""
