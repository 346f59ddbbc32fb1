"""The machine that ``avmm run`` was asked for: a new one, or the one of a snapshot."""

from __future__ import annotations

import avmm

from .request import Request


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
