"""``avmm attach``: a console on machines of another process, such as those of ``avmm up``.

Each machine has two sockets: NAME.console for its screen, keyboard and serial line, and NAME.qmp for the control panel's commands.
The invariant: leaving, or being killed, changes nothing for the machines.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import click

import avmm
from avmm.control.client import QmpClient
from avmm.control.seat import RemoteSeat
from avmm.control.sockets import CONSOLE_SUFFIX, SUFFIX, runtime_folder

from . import lifetime
from .app import Console, check_terminal, depth_here
from .group import CONTEXT
from .keys import PREFIX, parse_prefix, prefix_name
from .machines import Machine
from .outputs import check_writable
from .recording import recorded
from .results import Status, say
from .running import socket_of, sockets


class Commands:
    """The control panel's commands over a QMP socket, connected anew if it has to be; one after another."""

    def __init__(self, path: Path, held: AsyncExitStack) -> None:
        self._path = path
        self._held = held
        self._client: QmpClient | None = None
        self._turn = asyncio.Lock()

    async def execute(self, name: str, arguments: dict[str, object]) -> object:
        """Carry out a command. QmpError when it is refused, ConfigError when there is no connection."""
        async with self._turn:
            if self._client is None:
                self._client = await self._held.enter_async_context(QmpClient(self._path))
            try:
                return await self._client.execute(name, **arguments)
            except (avmm.ConfigError, asyncio.CancelledError):
                self._client = None  # an answer may come that nobody waits for
                raise


@click.command("attach", context_settings=CONTEXT)
@click.argument("vms", nargs=-1, metavar="[VM]...")
@click.option("--socket", metavar="F", multiple=True, help="A machine's console socket; by default found by name in $XDG_RUNTIME_DIR/avmm.")
@click.option("--prefix", metavar="KEY", default=prefix_name(PREFIX), show_default=True, help="The key before the console's commands.")
@click.option("--record", metavar="F.cast", help="Record the console as an asciicast (asciinema plays it).")
def attach(vms: tuple[str, ...], socket: tuple[str, ...], prefix: str, record: str | None) -> int:
    """Open a console on machines that run.

    All that there are, or those named. A machine may have several consoles at once.

    \b
      avmm up machine.toml &         a host with its machines
      avmm attach                    all of them: Ctrl-a n goes from one to the next, Ctrl-a | splits
      avmm attach linux              one of them

    Ctrl-a x leaves, and the machines go on. Exit status 1: the machines, or their host, have ended; 2: there is no such machine.
    """
    try:
        key = parse_prefix(prefix)
    except ValueError as error:
        raise click.UsageError(f"--prefix: {error}") from None
    paths = [*map(Path, socket), *(socket_of(vm, CONSOLE_SUFFIX) for vm in vms)] or everything()
    check_terminal("avmm ctl works without")
    if record is not None:
        check_writable("--record", record)
    return lifetime.run(run_attached(paths, key, record))


def everything() -> list[Path]:
    """Return the console sockets of all machines. ConfigError when there are none."""
    paths = sockets(runtime_folder(), CONSOLE_SUFFIX)
    if not paths:
        raise avmm.ConfigError("no machine runs: avmm up starts some")
    return paths


async def run_attached(paths: list[Path], prefix: str, record: str | None) -> int:
    """Show the machines behind these sockets, and return the exit status."""
    with ExitStack() as files:
        output = files.enter_context(recorded(record))
        async with AsyncExitStack() as held:
            machines = []
            for path in paths:
                seat = await held.enter_async_context(RemoteSeat(path))
                machines.append(Machine(seat, Commands(path.with_suffix(SUFFIX), held).execute, depth_here()))
            console = Console(machines, lambda: all(machine.lost_because for machine in machines), prefix=prefix, output=output)
            await console.run()
            reasons = [f"{machine.name}: {machine.lost_because}" for machine in machines if machine.lost_because]
    if console.quit:
        say(f"left {', '.join(machine.name for machine in machines)}")
        return Status.DONE
    for reason in reasons:
        say(f"avmm: {reason}")
    return Status.TIMEOUT
