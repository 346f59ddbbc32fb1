"""``avmm ctl``: one command for a machine that runs somewhere else, through its QMP socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from avmm.control.client import QmpClient
from avmm.devices.guest_port import MODES

from .ctl_physical import COMMANDS as PHYSICAL_COMMANDS
from .group import CONTEXT
from .talk import answer, talk


class VmFirst(click.Group):
    """``ctl COMMAND VM ...`` as well as ``ctl VM COMMAND ...``."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Let the two first words change places if only the second is a command."""
        if len(args) > 1 and args[0] not in self.commands and args[1] in self.commands:
            args = [args[1], args[0], *args[2:]]
        return super().resolve_command(ctx, args)


@click.group("ctl", cls=VmFirst, context_settings=CONTEXT)
@click.option("--socket", metavar="F", help="Its QMP socket, or that of all machines; by default NAME.qmp in $XDG_RUNTIME_DIR/avmm.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.pass_context
def ctl(ctx: click.Context, socket: str | None, as_json: bool) -> None:
    """Control a running machine.

    `avmm ctl COMMAND VM ...`, or `avmm ctl VM COMMAND ...`:

    \b
      avmm ctl status linux
      avmm ctl install linux pit
      avmm ctl sendkey linux ctrl alt delete
      avmm ctl hmp linux info registers

    Exit status 1: the machine refused; 2: bad usage, or there is no such machine.
    """
    ctx.obj = (socket, as_json)


for command in PHYSICAL_COMMANDS:
    ctl.add_command(command)


def _simple(name: str, command: str, help: str) -> None:
    @ctl.command(name, help=help)
    @click.argument("vm")
    @click.pass_context
    def action(ctx: click.Context, vm: str) -> None:
        answer(ctx, vm, command)


_simple("stop", "stop", "Let machine time stand still.")
_simple("cont", "cont", "Let it go on.")
_simple("reset", "system_reset", "Press the reset button.")
_simple("powerdown", "system_powerdown", "Press the power button: the guest may shut down.")
_simple("quit", "quit", "Pull the plug.")


@ctl.command("status")
@click.argument("vm")
@click.pass_context
def status(ctx: click.Context, vm: str) -> None:
    """Tell whether it runs."""
    answer(ctx, vm, "query-status", lambda result: click.echo(result["status"]))


@ctl.command("stats")
@click.argument("vm")
@click.pass_context
def stats(ctx: click.Context, vm: str) -> None:
    """Tell what it did: exits, where they were handled, where the time went."""
    answer(ctx, vm, "x-avmm-stats", _show_stats)


def _show_stats(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "count")
    table.columns[1].justify = "right"
    for kind, count in result["exits"].items():
        table.add_row(f"exits: {kind}", f"{count:,}")
    for key in ("inside", "outside", "plain", "floating", "windowed", "injected", "exceptions", "resets", "slices"):
        table.add_row(key, f"{result[key]:,}")
    for key in ("machine_ns", "guest_ns", "inside_ns", "outside_ns", "idle_ns"):
        table.add_row(key.removesuffix("_ns"), f"{result[key] / 1e6:,.1f} ms")
    Console(highlight=False).print(table)


@ctl.command("trace")
@click.argument("vm")
@click.option("--count", default=100, show_default=True, help="Events at most.")
@click.option("--requests", metavar="N", type=click.IntRange(1, 1000), help="Instead follow the next N disk requests, hop by hop.")
@click.option("--op", type=click.Choice(("read", "write", "flush")), help="Only requests of this operation.")
@click.option("--seconds", metavar="S", default=10.0, show_default=True, help="How long to wait for them, in machine time.")
@click.option("--all", "every", is_flag=True, help="Show each access to a register, not how many there were.")
@click.pass_context
def trace(  # noqa: PLR0917 - click names them
    ctx: click.Context, vm: str, count: int, requests: int | None, op: str | None, seconds: float, every: bool
) -> None:
    """Print the last events worth knowing, or the whole way of disk requests."""
    if requests is None:
        if op or every:
            raise click.UsageError("--op and --all go with --requests")
        answer(ctx, vm, "x-avmm-trace", _show_events, count=count)
    else:
        answer(ctx, vm, "x-avmm-trace-requests", lambda found: _show_requests(found, every), count=requests, op=op or "", seconds=seconds)


def _show_events(result: dict[str, Any]) -> None:
    for event in result["events"]:
        click.echo(" ".join([f"{event['time'] / 1e9:12.6f}", event["name"], *(f"{k}={v}" for k, v in event["fields"].items())]))
    if result["failure"]:
        click.echo(result["failure"])


def _show_requests(found: list[dict[str, Any]], every: bool) -> None:
    from .hops import show

    for request in found:
        show(request, every=every)
    if not found:
        click.echo("The guest sent no request to its disks.")


@ctl.command("install")
@click.argument("vm")
@click.argument("device")
@click.option("--image", default="builtin", show_default=True, help="builtin, entry-point:NAME, a file or a URL.")
@click.option("--sha256", default="", help="The hash that a file or URL must have.")
@click.pass_context
def install(ctx: click.Context, vm: str, device: str, image: str, sha256: str) -> None:
    """Bring a device model into the hypervisor while the guest uses it."""
    path = str(Path(image).resolve()) if "://" not in image and image != "builtin" and ":" not in image else image
    answer(ctx, vm, "x-avmm-install", _show_move, device=device, image=path, sha256=sha256)


@ctl.command("uninstall")
@click.argument("vm")
@click.argument("device")
@click.option("--to", default="service", show_default=True, help="service, or kernel in the host structure.")
@click.pass_context
def uninstall(ctx: click.Context, vm: str, device: str, to: str) -> None:
    """Put a device model outside, to the service OS."""
    answer(ctx, vm, "x-avmm-uninstall", _show_move, device=device, to=to)


@ctl.command("mode")
@click.argument("vm")
@click.argument("mode", type=click.Choice(MODES))
@click.pass_context
def mode(ctx: click.Context, vm: str, mode: str) -> None:
    """Have the built-in guest reach its disk another way, in the midst of its work."""
    answer(ctx, vm, "x-avmm-mode", lambda result: click.echo(result["mode"]), mode=mode)


def _show_move(result: dict[str, Any]) -> None:
    for step in result.get("steps", ()):
        click.echo(f"{step['name']:<10} {step['ns'] / 1e3:9.1f} us  {step['detail']}".rstrip())
    click.echo(f"{result['device']} is in the {result['wanted']}")


def _with_file(name: str, command: str, help: str) -> None:
    @ctl.command(name, help=help)
    @click.argument("vm")
    @click.argument("file")
    @click.pass_context
    def action(ctx: click.Context, vm: str, file: str) -> None:
        answer(ctx, vm, command, _show_moment, file=str(Path(file).resolve()))


_with_file("snapshot", "x-avmm-snapshot", "Write the machine, as it is at this moment, to a file; it goes on.")
_with_file("restore", "x-avmm-restore", "Let the machine go on from a snapshot, also when it is off or has failed.")


@ctl.command("keep-history")
@click.argument("vm")
@click.option("--every", default=0.25, show_default=True, metavar="S", help="Machine time between two snapshots.")
@click.pass_context
def keep_history(ctx: click.Context, vm: str, every: float) -> None:
    """Remember the machine's past from now on, for rewind. Virtual time only."""
    answer(ctx, vm, "x-avmm-keep-history", every=every)


@ctl.command("rewind")
@click.argument("vm")
@click.argument("seconds", type=float)
@click.pass_context
def rewind(ctx: click.Context, vm: str, seconds: float) -> None:
    """Go back by so much machine time, as far as its past is remembered."""
    answer(ctx, vm, "x-avmm-rewind", _show_moment, seconds=seconds)


def _show_moment(result: dict[str, Any]) -> None:
    click.echo(f"at {result['machine-ns'] / 1e9:.9f} s of machine time")


@ctl.command("sendkey")
@click.argument("vm")
@click.argument("keys", nargs=-1, required=True)
@click.option("--hold", default=100, show_default=True, metavar="MS", help="How long the keys stay down.")
@click.pass_context
def sendkey(ctx: click.Context, vm: str, keys: tuple[str, ...], hold: int) -> None:
    """Press keys together: `avmm ctl sendkey linux ctrl alt delete`."""
    names = [name for key in keys for name in (key.split("-") if key != "-" else ["minus"])]
    answer(ctx, vm, "send-key", keys=[{"type": "qcode", "data": name} for name in names], hold_time=hold)


@ctl.command("type")
@click.argument("vm")
@click.argument("text")
@click.pass_context
def type_text(ctx: click.Context, vm: str, text: str) -> None:
    r"""Type text; \n is Enter."""
    answer(ctx, vm, "x-avmm-type", text=text.replace("\\n", "\n").replace("\\t", "\t"))


@ctl.command("screen")
@click.argument("vm")
@click.pass_context
def screen(ctx: click.Context, vm: str) -> None:
    """Print the text on the screen."""
    answer(ctx, vm, "x-avmm-screen", lambda result: click.echo(result["text"]))


@ctl.command("screendump")
@click.argument("vm")
@click.argument("file")
@click.pass_context
def screendump(ctx: click.Context, vm: str, file: str) -> None:
    """Save the screen as PNG, or as PPM if the file is called so."""
    answer(ctx, vm, "screendump", filename=str(Path(file).resolve()), format="ppm" if file.endswith(".ppm") else "png")


@ctl.command("eject")
@click.argument("vm")
@click.option("--force", is_flag=True, help="Also when the guest has locked the tray.")
@click.pass_context
def eject(ctx: click.Context, vm: str, force: bool) -> None:
    """Take the CD-ROM out."""
    answer(ctx, vm, "eject", device="cdrom", force=force)


@ctl.command("insert")
@click.argument("vm")
@click.argument("file")
@click.pass_context
def insert(ctx: click.Context, vm: str, file: str) -> None:
    """Put another CD-ROM image in."""
    answer(ctx, vm, "blockdev-change-medium", device="cdrom", filename=str(Path(file).resolve()))


@ctl.command("hmp", context_settings={"ignore_unknown_options": True})
@click.argument("vm")
@click.argument("line", nargs=-1, required=True)
@click.pass_context
def hmp(ctx: click.Context, vm: str, line: tuple[str, ...]) -> None:
    """Carry out a line of the human monitor: `avmm ctl hmp linux info registers`; try `help`."""
    answer(ctx, vm, "human-monitor-command", lambda text: click.echo(text.replace("\r\n", "\n"), nl=False), command_line=" ".join(line))


@ctl.command("qmp")
@click.argument("vm")
@click.argument("command")
@click.argument("arguments", default="{}")
@click.pass_context
def qmp(ctx: click.Context, vm: str, command: str, arguments: str) -> None:
    """Execute any QMP command, arguments as JSON, and print what it answers."""
    try:
        given = json.loads(arguments)
    except ValueError as error:
        raise click.UsageError(f"the arguments are no JSON: {error}") from None
    if not isinstance(given, dict):
        raise click.UsageError("the arguments are a JSON object")
    answer(ctx, vm, command, lambda result: click.echo(json.dumps(result, indent=2)), **given)


@ctl.command("events")
@click.argument("vm")
@click.pass_context
def events(ctx: click.Context, vm: str) -> None:
    """Print events as they come, one JSON object a line, until the machine ends."""

    async def listen(qmp: QmpClient) -> None:
        async for event in qmp.listen():
            click.echo(json.dumps(event))

    talk(vm, ctx.obj[0], listen)
