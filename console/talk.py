"""Speaking to a machine that runs elsewhere: one command through its QMP socket, and its answer as it was asked for.

The invariant: what is printed with --json is what the machine answered, nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import uvloop

from avmm.control.client import QmpClient
from avmm.control.config import ConfigError
from avmm.control.qmp import QmpError
from avmm.control.sockets import SUFFIX

from .running import socket_of

Work = Callable[[QmpClient], Awaitable[Any]]


def socket_path(vm: str, given: str | None) -> Path:
    """Return a machine's socket. ConfigError with the names that there are when there is none."""
    if given is None:
        return socket_of(vm, SUFFIX)
    if not Path(given).exists():
        raise ConfigError(f"there is no socket {given}")
    return Path(given)


def talk(vm: str, socket: str | None, work: Work) -> Any:
    """Connect, do ``work``, and return its result; a refusal ends the command with status 1."""

    async def session() -> Any:
        async with QmpClient(socket_path(vm, socket), vm="" if socket is None else vm) as qmp:
            return await work(qmp)

    try:
        return uvloop.run(session())
    except QmpError as error:
        click.echo(f"avmm: {error}", err=True)
        raise SystemExit(1) from None


def answer(ctx: click.Context, vm: str, command: str, show: Callable[[Any], None] | None = None, **arguments: object) -> None:
    """Execute one QMP command and print the result, as JSON if so asked."""
    socket, as_json = ctx.obj
    result = talk(vm, socket, lambda qmp: qmp.execute(command, **arguments))
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif show is not None:
        show(result)
