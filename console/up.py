"""``avmm up machine.toml``: the host and the machines of a description, in the foreground, controlled through their sockets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

import avmm
from avmm.control.config import THREADS

from . import lifetime
from .group import CONTEXT
from .results import Status, say

if TYPE_CHECKING:
    from avmm.control.panel import Panel


@click.command("up", context_settings=CONTEXT)
@click.argument("description", metavar="MACHINE.TOML")
@click.option("--check", is_flag=True, help="Only check the description.")
@click.option("--threads", type=click.IntRange(1, THREADS), help="On how many processors guests run at once (overrides the file).")
@click.option("--quiet", is_flag=True, help="Do not say where the sockets are.")
def up(description: str, check: bool, threads: int | None, quiet: bool) -> int:
    """Start the machines that a file describes.

    They run until all have ended, or until Ctrl-C. MACHINE.TOML:

    \b
      [vm.try]                   # nothing to boot named: the built-in guest
      [vm.linux]
      memory = "256M"
      kernel = "vmlinuz"
      disks = ["root.img"]
      weight = 200

    `avmm ctl` and `avmm top` talk to them meanwhile. Exit status 2: the description is wrong (its line is named); 3: a machine failed.
    """
    from avmm.control.description import load
    from avmm.control.panel import Panel

    described = load(description)
    if check:
        if not quiet:
            click.echo(f"{description}: {len(described.vms)} machine{'s' if len(described.vms) != 1 else ''}, nothing wrong")
        return 0
    if threads is not None:
        described = replace(described, host=replace(described.host, threads=threads))
    panel = Panel(described)
    return lifetime.run(_run(panel, quiet))


async def _run(panel: Panel, quiet: bool) -> int:
    async with panel:
        vms = list(panel.host.vms.values())
        if not quiet:
            for name, server in panel.sockets.items():
                say(f"{name}: {server.path}")
            if panel.metrics is not None:
                say(f"metrics: http://127.0.0.1:{panel.metrics.port}/metrics")
        await panel.ended()
        failed = [vm for vm in vms if vm.state is avmm.RunState.FAILED]
        for vm in failed:
            say(f"avmm: {vm.partition.failure}")
    return Status.FAILED if failed else Status.DONE
