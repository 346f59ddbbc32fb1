"""QMP commands about a machine's past: snapshots in files, and going back in its history."""

from __future__ import annotations

from avmm.control.commands.command import Arg, Call, Table
from avmm.control.qmp import QmpError
from avmm.control.snapshot import Snapshot

TABLE = Table()


@TABLE.command("x-avmm-snapshot", file=Arg(str))
async def _snapshot(call: Call) -> object:
    return await save(call, call["file"])


@TABLE.command("x-avmm-restore", file=Arg(str))
async def _restore(call: Call) -> object:
    return await load(call, call["file"])


@TABLE.command("x-avmm-keep-history", every=Arg(float, 0.25))
async def _keep_history(call: Call) -> object:
    if not 0.001 <= call["every"] <= 1e6:
        raise QmpError("Parameter 'every' is a number of seconds of machine time, at least 0.001")
    history = await call.running.keep_history(call["every"])
    return {"start-ns": history.start, "snapshots": len(history.moments)}


@TABLE.command("x-avmm-rewind", seconds=Arg(float))
async def _rewind(call: Call) -> object:
    if not 0 <= call["seconds"] <= 1e9:
        raise QmpError("Parameter 'seconds' says how much machine time to go back")
    await call.vm.rewind(call["seconds"])
    call.target.announce(call.vm, "X_AVMM_RESTORED")
    return {"machine-ns": call.vm.partition.clock.now()}


async def save(call: Call, file: str) -> dict[str, object]:
    """Write a snapshot of the machine to ``file``."""
    taken = await call.running.snapshot()
    await taken.save(file)
    return {"machine-ns": taken.partition.now}


async def load(call: Call, file: str) -> dict[str, object]:
    """Let the machine go on from the snapshot in ``file``, also when it has ended."""
    await call.vm.restore(await Snapshot.load(file))
    call.target.announce(call.vm, "X_AVMM_RESTORED")
    return {"machine-ns": call.vm.partition.clock.now()}
