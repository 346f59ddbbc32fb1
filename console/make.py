"""The machine that ``avmm run`` was asked for: a new one, or the one of a snapshot; and the record of its inputs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import avmm
from avmm.control.record import Recorder

from .request import Request
from .results import say


async def make(host: avmm.Host, request: Request) -> avmm.Vm:
    """Make it, standing still. Raises what ``Host.create_vm`` and ``Host.clone`` do, each one sentence."""
    if request.restore is None:
        return await host.create_vm(request.machine())
    return await host.clone(await avmm.Snapshot.load(request.restore), request.name, paused=True)


async def begin(vm: avmm.Vm) -> None:
    """Switch it on, or let it go on."""
    if vm.state is avmm.RunState.PAUSED:
        await vm.resume()
    else:
        await vm.start()


@asynccontextmanager
async def recorded_input(vm: avmm.Vm, path: str | None, *, by_person: bool) -> AsyncIterator[None]:
    """Record what reaches the machine, if so asked; say so when the record has ended before the machine.

    In front of a person virtual time keeps the host's pace.
    """
    if path is None:
        yield
        return
    recorder = await Recorder.begin(vm, path)
    vm.partition.vcpu.paced = by_person
    try:
        yield
    finally:
        await recorder.close()
        if recorder.error is not None:
            say(f"avmm: the record {path} is not complete: {recorder.error.strerror}")
