"""QMP commands that QEMU has not: run-time installation, statistics, the trace, the list of machines."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from avmm.control.commands.command import Arg, Call, Table
from avmm.control.commands.jsonable import jsonable
from avmm.control.commands.machine import STATUS
from avmm.control.qmp import QmpError
from avmm.control.request_trace import trace_requests
from avmm.control.vm import Vm
from avmm.host.requests import Op
from avmm.hypervisor.partition import RunState

TABLE = Table()
MOST_REQUESTS = 1000


def summary(vm: Vm) -> dict[str, Any]:
    """Return what a table of machines shows of one."""
    stats, share = vm.stats, vm.partition.vcpu.share
    return {
        "name": vm.name,
        "status": STATUS[vm.state],
        "reason": vm.partition.off_reason,
        "clock": vm.config.clock,
        "machine_ns": stats.machine_ns,
        "exits": sum(stats.exits.values()),
        "inside": stats.inside,
        "outside": stats.outside,
        "injected": stats.injected,
        "guest_ns": stats.guest_ns,
        "idle_ns": stats.idle_ns,
        "memory": vm.config.memory_bytes,
        "weight": vm.config.weight,
        "cap": vm.config.cap,
        "work_ns": share.work if share is not None else 0,
        "placement": dict(vm.partition.placement),
    }


@TABLE.command("x-avmm-list", machine=False)
async def _list_machines(call: Call) -> object:
    vms = [call.chosen] if call.chosen is not None else list(call.target.host.vms.values())
    return [summary(vm) for vm in vms]


@TABLE.command("x-avmm-stats")
async def _stats(call: Call) -> object:
    return {**call.vm.stats.as_dict(), "summary": summary(call.vm)}


@TABLE.command("x-avmm-trace", count=Arg(int, 100))
async def _trace(call: Call) -> object:
    """Return the last events, and for a machine that failed the report."""
    if call["count"] < 0:
        raise QmpError("Parameter 'count' is a number of events")
    log = call.vm.partition.trace_log
    events = list(log.events)[max(0, len(log.events) - call["count"]) :]
    failure = call.vm.partition.failure
    return {
        "events": [{"time": event.time, "name": event.name, "fields": jsonable(event.fields)} for event in events],
        "suppressed": dict(log.suppressed),
        "failure": str(failure) if failure is not None else None,
    }


@TABLE.command("x-avmm-inspect", device=Arg(str))
async def _inspect(call: Call) -> object:
    """Return where a device lives, what it answers to, and its registers."""
    partition = call.vm.partition
    device = partition.devices.get(call["device"])
    if device is None:
        raise QmpError(f"there is no device {call['device']!r}: choose of {', '.join(sorted(partition.devices))}", "DeviceNotFound")
    try:
        state = jsonable(device.save())
    except NotImplementedError:
        state = {}
    return {
        "device": device.name, "place": partition.placement.get(device.name, ""), "model": type(device).__qualname__,
        "ports": " ".join(f"{span.first:x}-{span.first + span.count - 1:x}" for span in device.ports),
        "memory": " ".join(f"{span.first:x}-{span.first + span.size - 1:x}" for span in device.memory),
        **({"state": state} if isinstance(state, dict) else {}),
    }  # fmt: skip


@TABLE.command("x-avmm-trace-requests", count=Arg(int, 1), op=Arg(str, ""), seconds=Arg(float, 10.0))
async def _trace_requests(call: Call) -> object:
    """Return the way of the next disk requests, hop by hop."""
    if not 1 <= call["count"] <= MOST_REQUESTS or call["seconds"] <= 0:
        raise QmpError(f"Parameters 'count' and 'seconds' are a number of requests up to {MOST_REQUESTS} and how long to wait")
    if call["op"] not in ("", *(op.value for op in Op)):
        raise QmpError(f"Parameter 'op' is {', '.join(op.value for op in Op)} or nothing")
    if call.running.state is RunState.PAUSED:
        raise QmpError(f"'{call.vm.name}' is paused: it sends no requests")
    return [one.as_dict() for one in await trace_requests(call.running, call["count"], call["op"], call["seconds"])]


@TABLE.command("x-avmm-install", device=Arg(str), image=Arg(str, "builtin"), sha256=Arg(str, ""))
async def _install(call: Call) -> object:
    return await _move(call, call.running.install(call["device"], call["image"], call["sha256"]))


@TABLE.command("x-avmm-uninstall", device=Arg(str), to=Arg(str, "service"), image=Arg(str, "builtin"), sha256=Arg(str, ""))
async def _uninstall(call: Call) -> object:
    return await _move(call, call.running.uninstall(call["device"], call["to"], call["image"], call["sha256"]))


async def _move(call: Call, moving: Awaitable[object]) -> object:
    report = await moving
    device = call["device"]
    call.target.announce(call.vm, "X_AVMM_PLACEMENT", device=device, placement=call.vm.partition.placement.get(device, ""))
    return jsonable(report)


@TABLE.command("x-avmm-mode", mode=Arg(str))
async def _mode(call: Call) -> object:
    mode = await call.running.set_mode(call["mode"])
    call.target.announce(call.vm, "X_AVMM_MODE", mode=mode)
    return {"mode": mode}
