"""``avmm attach``: a console on machines of another process, such as those of ``avmm up``.

Each machine has two sockets: NAME.console for its screen, keyboard and serial line, and NAME.qmp for the control panel's commands.
The invariant: leaving, or being killed, changes nothing for the machines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path

import click

import avmm
from avmm.control.client import QmpClient
from avmm.control.qmp import QmpError
from avmm.control.seat import RemoteSeat
from avmm.control.sockets import CONSOLE_SUFFIX, SUFFIX, runtime_folder

from . import lifetime
from .app import Console, check_terminal, depth_here
from .group import CONTEXT
from .keys import PREFIX, parse_prefix, prefix_name
from .machines import Machine
from .outputs import check_writable
from .recording import recorded, seats_logged
from .results import Status, say
from .running import socket_of, sockets

RETRY = 1.0
"""Seconds between two attempts to reach a machine that has gone."""


class Commands:
    """The control panel's commands over a QMP socket. One that comes while another is under way has a connection of its own."""

    def __init__(self, path: Path, held: AsyncExitStack) -> None:
        self._path = path
        self._held = held
        self._idle: list[QmpClient] = []

    async def execute(self, name: str, arguments: dict[str, object]) -> object:
        """Carry out a command. QmpError when it is refused, ConfigError when there is no connection."""
        client = self._idle.pop() if self._idle else await self._held.enter_async_context(QmpClient(self._path))
        try:
            answer = await client.execute(name, **arguments)
        except QmpError:
            self._idle.append(client)
            raise
        # After anything else an answer may come that nobody waits for: the connection is not used again.
        self._idle.append(client)
        return answer

    def forget(self) -> None:
        """The host is another: connect anew."""
        self._idle.clear()


@click.command("attach", context_settings=CONTEXT)
@click.argument("vms", nargs=-1, metavar="[VM]...")
@click.option("--socket", metavar="F", multiple=True, help="A machine's console socket; by default found by name in $XDG_RUNTIME_DIR/avmm.")
@click.option("--prefix", metavar="KEY", default=prefix_name(PREFIX), show_default=True, help="The key before the console's commands.")
@click.option("--record", metavar="F.cast", help="Record the console as an asciicast (asciinema plays it).")
@click.option("--log", metavar="F.txt", help="Write the serial lines' output and the machines' states as plain text.")
@click.option("--reconnect", is_flag=True, help="When machines have gone, wait for them to come back.")
def attach(  # noqa: PLR0917 - click names them
    vms: tuple[str, ...], socket: tuple[str, ...], prefix: str, record: str | None, log: str | None, reconnect: bool
) -> int:
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
    for option, path in (("--record", record), ("--log", log)):
        if path is not None:
            check_writable(option, path)
    return lifetime.run(run_attached(paths, key, record, log, reconnect=reconnect))


def everything() -> list[Path]:
    """Return the console sockets of all machines. ConfigError when there are none."""
    paths = sockets(runtime_folder(), CONSOLE_SUFFIX)
    if not paths:
        raise avmm.ConfigError("no machine runs: avmm up starts some")
    return paths


async def run_attached(paths: list[Path], prefix: str, record: str | None, log: str | None, *, reconnect: bool) -> int:
    """Show the machines behind these sockets, and return the exit status."""
    with ExitStack() as files:
        output = files.enter_context(recorded(record))
        async with AsyncExitStack() as held:
            seats = [await held.enter_async_context(RemoteSeat(path)) for path in paths]
            panels = [Commands(path.with_suffix(SUFFIX), held) for path in paths]
            depth = depth_here()
            machines = [Machine(seat, commands.execute, depth) for seat, commands in zip(seats, panels, strict=True)]
            held.enter_context(seats_logged(seats, log))
            done = (lambda: False) if reconnect else (lambda: all(machine.lost_because for machine in machines))
            console = Console(machines, done, prefix=prefix, output=output)
            if reconnect:
                held.enter_context(_kept(seats, panels))
            await console.run()
            reasons = [f"{machine.name}: {machine.lost_because}" for machine in machines if machine.lost_because]
    if console.quit:
        say(f"left {', '.join(machine.name for machine in machines)}")
        return Status.DONE
    for reason in reasons:
        say(f"avmm: {reason}")
    say("avmm attach connects again when it runs; with --reconnect the console waits for that")
    return Status.TIMEOUT


@contextmanager
def _kept(seats: Sequence[RemoteSeat], panels: Sequence[Commands]) -> Iterator[None]:
    """Try to reach again what was lost, for the time of a with block."""

    async def keep() -> None:
        while True:
            await asyncio.sleep(RETRY)
            for seat, commands in zip(seats, panels, strict=True):
                if seat.lost:
                    with suppress(avmm.ConfigError):
                        await seat.reconnect()
                        commands.forget()

    task = asyncio.get_running_loop().create_task(keep(), name="reconnect")
    try:
        yield
    finally:
        task.cancel()
